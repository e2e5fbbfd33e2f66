"""Replicas that are killed at any moment: nothing is counted twice, nothing is lost, and all that is left agree."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rayapp.contracts.config import Domain
from rayapp.contracts.hashing import hash64
from rayapp.pipeline import statistics as counting
from rayapp.pipeline.export import export_all
from rayapp.serving.closed_steps import GRACE_MS
from rayapp.serving.fresh_statistics import FreshStatistics
from rayapp.statistics.known import load_newest
from rayapp.store import Store
from rayapp.store.opening import open_store
from tests.conftest import T0, make_event, until
from tests.redis_server import free_port, start, stop

STEP_MS = 600_000
START = T0 // STEP_MS * STEP_MS
HASHES = np.array([hash64(f"i{n}") for n in range(5)], np.uint64)
REPLICA = """
import sys
from pathlib import Path
from rayapp.root.facts import read_root
from rayapp.serving.fresh_statistics import FreshStatistics
from rayapp.store.opening import open_store

root, clock, url = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] or None
replica = FreshStatistics(root, read_root(root)[0], open_store(root, url), lambda: int(clock.read_text()) * 1_000_000)
while True:
    replica.refresh()
"""


@pytest.fixture(params=["lmdb", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Of the store; empty for the one in the root."""
    if request.param == "lmdb":
        yield ""
        return
    port = free_port()
    server = start(tmp_path / "redis", port)
    yield f"redis://127.0.0.1:{port}/0"
    stop(server)


def set_clock(clock: Path, now_ms: int) -> None:
    """Whoever reads meanwhile reads the time before or this one."""
    new = clock.with_suffix(".new")
    new.write_text(str(now_ms))
    new.replace(clock)


@pytest.mark.slow
def test_a_replica_that_is_killed_leaves_no_trace(
    root: Path, domain: Domain, tmp_path: Path, url: str, rng: np.random.Generator, without_ray: None
) -> None:
    store: Store = open_store(root, url or None)
    clock, now_ms, number = tmp_path / "clock", START, 0
    store.put_item({"item_id": "i0", "created_at_ms": START, "title": "i0", "genres": ["war"]})
    export_all(root, store, START)
    for _ in range(3):
        set_clock(clock, now_ms)
        command = [sys.executable, "-c", REPLICA, str(root), str(clock), url]
        victims = [subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}) for _ in range(2)]
        try:
            for _ in range(4):
                for _ in range(int(rng.integers(20, 60))):
                    number += 1
                    item, user = f"i{rng.integers(5)}", f"u{rng.integers(20)}"
                    store.append([make_event(number, user=user, item=item, action="save", at=now_ms)])
                now_ms += STEP_MS
                set_clock(clock, now_ms + GRACE_MS)
            last = now_ms // STEP_MS
            until(lambda last=last: last in store.agreed(last - 1), 30)  # type: ignore[misc]
        finally:
            for victim in victims:
                victim.send_signal(signal.SIGKILL)
                victim.wait()
        if rng.random() < 0.5:
            export_all(root, store, now_ms)
    now_ms += STEP_MS
    survivors = [FreshStatistics(root, domain, store, lambda: (now_ms + GRACE_MS) * 1_000_000) for _ in range(2)]
    export_all(root, store, now_ms)
    counting.count_statistics(root, domain)
    step_N = np.full(len(HASHES), now_ms // STEP_MS)
    logged = load_newest(root, domain).items(HASHES, step_N)
    for survivor in survivors:
        assert survivor.read("u1", HASHES).item_CK == pytest.approx(logged, abs=1e-4)
    positives_N = np.expm1(logged[:, -1] * 5)
    assert positives_N.min() > 10
    store.close()
