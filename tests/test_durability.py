"""Real processes are killed under load over real HTTP: every acknowledged event is kept exactly once, in order.

The same code as the bench `crash`, with fewer kills: a whole graph once in `make test`; in `make test-all` a replica
and a graph three times each, what came back from a kill among them, and Redis (`tests/test_redis.py`, which is in both,
kills it too).
"""

import shutil
from pathlib import Path

import pytest

from benchmarks.crash import Crashed, crash, crash_redis
from rayapp.loop.artifacts import Prepared
from tests.redis_server import MISSING

pytestmark = pytest.mark.cluster


def check(crashed: Crashed, rounds: int) -> None:
    verdict = crashed.verdict
    assert crashed.kills == len(crashed.recovery_s) == rounds
    assert (verdict.lost, verdict.duplicated, verdict.wrong_sequences) == (0, 0, 0)
    assert verdict.acknowledged >= rounds * 200


@pytest.mark.parametrize(
    ("killed", "rounds"), [(["serve"], 1), pytest.param(["replica", "serve"], 3, marks=pytest.mark.extended)]
)
def test_killed_replicas_and_killed_graphs_lose_nothing(
    world: tuple[Path, Prepared], killed: list[str], rounds: int
) -> None:
    found = crash(world[0], killed, rounds, print)
    assert set(found) == set(killed)
    for crashed in found.values():
        check(crashed, rounds)
        assert crashed.retried > 0, "a kill was felt by a client"


@pytest.mark.extended
@pytest.mark.parametrize("rounds", [1, 3])
def test_a_killed_redis_loses_nothing(world: tuple[Path, Prepared], tmp_path: Path, rounds: int) -> None:
    if shutil.which("redis-server") is None:
        pytest.skip(MISSING)
    check(crash_redis(world[0], tmp_path / "redis", rounds, print)["redis"], rounds)
