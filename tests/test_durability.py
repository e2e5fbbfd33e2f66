"""Real processes are killed under load over real HTTP: every acknowledged event is kept exactly once, in order.

The same code as the bench `crash`, with fewer kills and less load.
"""

import shutil
from pathlib import Path

import pytest

from benchmarks.crash import Crashed, crash, crash_redis
from rayapp.loop.artifacts import Prepared
from tests.redis_server import MISSING

pytestmark = pytest.mark.cluster
ROUNDS = 2


def check(crashed: Crashed) -> None:
    verdict = crashed.verdict
    assert crashed.kills == len(crashed.recovery_s) == ROUNDS
    assert (verdict.lost, verdict.duplicated, verdict.wrong_sequences) == (0, 0, 0)
    assert verdict.acknowledged >= ROUNDS * 200


def test_killed_replicas_and_killed_graphs_lose_nothing(world: tuple[Path, Prepared]) -> None:
    found = crash(world[0], ["replica", "serve"], ROUNDS, print)
    assert set(found) == {"replica", "serve"}
    for crashed in found.values():
        check(crashed)
        assert crashed.retried > 0, "a kill was felt by a client"


def test_a_killed_redis_loses_nothing(world: tuple[Path, Prepared], tmp_path: Path) -> None:
    if shutil.which("redis-server") is None:
        pytest.skip(MISSING)
    check(crash_redis(world[0], tmp_path / "redis", ROUNDS, print)["redis"])
