"""What counts, how often and in which step."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from rayapp.contracts.config import Domain
from rayapp.contracts.hashing import hash64
from rayapp.contracts.schema import EVENT_SCHEMA, REQUEST_SCHEMA, columns_of
from rayapp.features.statistics import Grid
from rayapp.statistics.agreement import Agreement
from rayapp.statistics.observations import Observations, acted, shown

EVENTS = columns_of(EVENT_SCHEMA, "user_id", "item_id", "action", "received_at_ms")
REQUESTS = columns_of(REQUEST_SCHEMA, "user_id", "timestamp_ms", "item_ids", "labels")
STEP_MS = 600_000


def observations(*rows: tuple[str, str, int, int]) -> Observations:
    user, item, step, kind = zip(*rows, strict=True) if rows else ((), (), (), ())
    hashes = [np.array([hash64(name) for name in names], np.uint64) for names in (user, item)]
    return Observations(*hashes, np.array(step, np.int64), np.array(kind, np.int64))


def test_a_user_counts_once_for_an_item_a_kind_and_a_step() -> None:
    many = observations(*[("u", "i", 5, 1)] * 1_000, ("v", "i", 5, 1), ("u", "i", 6, 1), ("u", "i", 5, 0))
    increments = many.once().of_items(2)
    assert increments.step_E.tolist() == [5, 6]
    assert increments.count_EA.tolist() == [[1, 2], [0, 1]]


def test_what_was_counted_before_is_told_by_its_keys() -> None:
    before = observations(("u", "i", 5, 1), ("u", "i", 5, 0))
    new = observations(("u", "i", 5, 1), ("u", "i", 6, 1), ("v", "i", 5, 1)).not_in(before.keys())
    assert sorted(new.keys()) == sorted(observations(("u", "i", 6, 1), ("v", "i", 5, 1)).keys())


def test_what_was_shown_counts_when_shown_and_its_flags_when_they_may_be_known(domain: Domain) -> None:
    labels = [1.0, 0.0, 0.0, 0.0, 0.0, 1.0]  # of two items, each with the domain's heads
    heads = len(domain.heads)
    rows = [{"user_id": "u", "timestamp_ms": 2 * STEP_MS, "item_ids": ["a", "b"], "labels": labels[: 2 * heads]}]
    rows.append({"user_id": "v", "timestamp_ms": 3 * STEP_MS, "item_ids": ["a"], "labels": None})
    row_E, found = shown(pa.Table.from_pylist(rows, schema=REQUESTS), domain, Grid.of(domain))
    told = sorted(zip(row_E.tolist(), found.step_E.tolist(), found.kind_E.tolist(), strict=True))
    flags = [(0, 3, 1 + heads + place % heads) for place, label in enumerate(labels[: 2 * heads]) if label]
    assert told == sorted([(0, 2, 0), (0, 2, 0), (1, 3, 0), *flags])


def test_actions_count_for_every_head_when_received(domain: Domain) -> None:
    rows = [
        {"user_id": "u", "item_id": "a", "action": domain.heads[0].actions[0], "received_at_ms": 7 * STEP_MS},
        {"user_id": "u", "item_id": "b", "action": "share of another app", "received_at_ms": 8 * STEP_MS},
    ]
    row_E, found = acted(pa.Table.from_pylist(rows, schema=EVENTS), domain, Grid.of(domain))
    assert row_E.tolist() == [0]
    assert (found.step_E.tolist(), found.kind_E.tolist()) == ([7], [1])
    assert found.item_hash_E.tolist() == [hash64("a")]


def test_users_can_be_left_out() -> None:
    left = observations(("bot", "i", 1, 0), ("u", "i", 1, 0)).without(np.array([hash64("bot")], np.uint64))
    assert left.user_hash_E.tolist() == [hash64("u")]


def test_a_row_counts_in_its_step_or_in_the_first_one_that_was_agreed_on_with_it() -> None:
    agreed = Agreement.of({10: [5, 0], 11: [9, 3]}, 2)
    step_E, seq_E = np.array([9, 9, 9, 9, 12]), np.array([5, 6, 9, 10, 10])
    # Row 6 came too late for the statistics of step 10, row 10 for those of 11.
    assert agreed.counted_in(step_E, seq_E, 0).tolist() == [9, 10, 10, 11, 12]
    assert agreed.counted_in(np.array([9]), np.array([0]), 1).tolist() == [9], "imported before all"
    assert Agreement.of({}, 2).counted_in(step_E, seq_E, 0).tolist() == step_E.tolist()


@given(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.integers(0, 9), st.integers(0, 30))
def test_what_a_step_counts_is_what_was_agreed_on_for_it(grows: list[int], step: int, seq: int) -> None:
    """A row counts before step k (is visible in k) if it was received before k and lies within k's cursor."""
    cursors = {k: [int(cursor)] for k, cursor in enumerate(np.cumsum(grows))}
    (counted,) = Agreement.of(cursors, 1).counted_in(np.array([step]), np.array([seq]), 0)
    for k, (cursor,) in cursors.items():
        assert (counted < k) == (step < k and seq <= cursor)


def test_of_an_erased_user_the_own_statistics_go() -> None:
    some = observations(("u", "i", 1, 0), ("u", "i", 3, 0), ("v", "i", 1, 0))
    left = some.after({hash64("u"): 2 * STEP_MS}, Grid(STEP_MS, (0,)))
    assert left.step_E.tolist() == [3, 1], "what they do afterwards is a new beginning"
