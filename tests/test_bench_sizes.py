"""How the bench `sizes` cuts a log: every size is tested on the same lists, and learns from the last ones before."""

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.sizes import TEST_LISTS, Cut
from rayapp.contracts.config import DAY_MS
from tests.conftest import T0

NUM_DAYS = 20


@pytest.fixture(scope="module")
def requests() -> pa.Table:
    """1,000 lists a day of 300 users."""
    rng = np.random.default_rng(3)
    size = 1_000 * NUM_DAYS
    user = [f"u{n}" for n in rng.integers(300, size=size)]
    return pa.table({"user_id": user, "timestamp_ms": np.sort(T0 + rng.integers(NUM_DAYS * DAY_MS, size=size))})


@pytest.mark.parametrize("lists", [500, 3_000, 10_000, 1_000_000])
def test_a_log_is_cut_before_its_test(requests: pa.Table, lists: int) -> None:
    cut = Cut.of(requests, lists)
    kept = requests.filter(pa.array(cut.holds(requests)))
    tested = kept["timestamp_ms"].to_numpy() >= cut.split.test_ms
    whole = requests["timestamp_ms"].to_numpy() >= Cut.of(requests, 100).split.test_ms
    assert TEST_LISTS <= tested.sum() == whole.sum() < TEST_LISTS + 1_200
    before = int((~tested).sum())
    assert before == cut.lists
    assert 0.9 * min(lists, len(requests) - whole.sum()) <= before <= min(lists, len(requests)) * 1.1
    assert cut.split.since_ms < cut.split.validation_ms < cut.split.test_ms < cut.split.until_ms
