"""The facts of every node of a running cluster, each from a process on that node."""

import contextlib
import os
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rayapp.preflight.files import Room
from rayapp.preflight.node import PROBE, NodeFacts, clock_s, look

ANSWER_TIMEOUT_S: Final = 60
CLOCK_ROUNDS: Final = 3


@dataclass(frozen=True, slots=True)
class Cluster:
    """A running cluster as its nodes describe it."""

    nodes: list[NodeFacts]
    clocks: list[tuple[str, float, float]]
    """Of each node, how far its clock is ahead of ours and how far that may be off, in seconds."""
    rooms: list[Room]
    """Every node that is there now."""
    head_state: str
    """The Redis that keeps the cluster's state; empty where none does."""
    silent: list[str]
    """Nodes that did not answer in time."""


class _Looker:
    """Runs on the node that is asked about."""

    def look(self, *arguments: Any) -> tuple[NodeFacts, str]:
        return look(*arguments), os.environ.get("RAY_REDIS_ADDRESS", "")

    def clock_s(self) -> float:
        return clock_s()


def look_at_cluster(root: str | None, store_url: str | None, ports: Sequence[int]) -> Cluster:
    """Asks every node, this one among them. Ray must be initialised."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    alive = [row for row in ray.nodes() if row["Alive"]]
    probe = _write_probe(root)
    kind = ray.remote(num_cpus=0)(_Looker)
    try:
        actors, asked = {}, {}
        for row in alive:
            node, address = row["NodeID"], row["NodeManagerAddress"]
            where = NodeAffinitySchedulingStrategy(node, soft=False)
            actors[node] = kind.options(scheduling_strategy=where).remote()
            asked[node] = actors[node].look.remote(address, root, probe, store_url, tuple(ports))
        done, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=ANSWER_TIMEOUT_S)
        found = {node: ray.get(ref) for node, ref in asked.items() if ref in done}
    finally:
        if probe is not None and root is not None:
            Path(root, PROBE).unlink(missing_ok=True)
    rooms = [Room(1, row["Resources"].get("CPU", 0.0), dict(row.get("Labels") or {})) for row in alive]
    return Cluster(
        nodes=[facts for facts, _ in found.values()],
        clocks=[(facts.node, *_ahead_s(actors[node])) for node, (facts, _) in found.items()],
        rooms=rooms,
        head_state=next((redis for _, redis in found.values() if redis), ""),
        silent=sorted(row["NodeManagerAddress"] for row in alive if row["NodeID"] not in found),
    )


def graph_runs() -> bool:
    """Whether Serve runs already, so that its ports are taken by right."""
    import ray

    with contextlib.suppress(ValueError):
        ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
        return True
    return False


def _ahead_s(actor: Any) -> tuple[float, float]:
    """Of several rounds the quickest tells most: the other clock was read somewhere between our two readings."""
    import ray

    rounds = []
    for _ in range(CLOCK_ROUNDS):
        before = time.time()
        there = ray.get(actor.clock_s.remote())
        after = time.time()
        rounds.append(((after - before) / 2, there - (before + after) / 2))
    error_s, ahead_s = min(rounds)
    return ahead_s, error_s


def _write_probe(root: str | None) -> str | None:
    if root is None or not Path(root).is_dir():
        return None
    probe = uuid.uuid4().hex
    with contextlib.suppress(OSError):
        Path(root, PROBE).write_text(probe)
        return probe
    return None
