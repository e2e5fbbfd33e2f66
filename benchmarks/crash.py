"""Bench `crash`: real processes are killed under load, and every acknowledged event is counted afterwards.

A SIGKILL leaves the operating system's cache whole, so this shows what survives the death of processes. That an event
is on the disk before it is acknowledged is shown by the order of system calls: `tests/test_sync.py`.
"""

import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.live import GraphProcess, RedisProcess, items_of, make_root
from benchmarks.load import Load, Verdict, export_now, verify
from rayapp.record import Bars, say, tell
from rayapp.root.publish import PublishError
from rayapp.store.address import take_into_use

TARGETS: Final = {
    "replica": "the replica that writes the store",
    "serve": "the whole Serve instance: Ray, controller, proxy, all replicas",
    "redis": "redis-server (`appendonly yes`, `appendfsync always`)",
}
CLIENTS, BATCH, USERS = 3, 20, 2_000
BATCHES_BEFORE: Final = 10
"""Acknowledged between a recovery and the next kill."""


@dataclass(frozen=True, slots=True)
class Crashed:
    """What came of the kills of one target."""

    kills: int
    verdict: Verdict
    recovery_s: list[float]
    """From each kill to the next acknowledged batch."""
    retried: int
    """Batches that a client had to send again."""


def run_crash(targets: tuple[str, ...], rounds: int, as_json: bool, write: Path | None) -> bool:
    """Whether nothing was lost, repeated or out of order."""
    results: dict[str, Crashed] = {}
    with tempfile.TemporaryDirectory(prefix="rayapp-crash-") as directory:
        say("training a small model")
        root = make_root(Path(directory) / "root")
        if lmdb := [t for t in targets if t != "redis"]:
            results |= crash(root, lmdb, rounds, say)
        if "redis" in targets:
            results |= crash_redis(root, Path(directory) / "redis", rounds, say)
    result = {"bench": "crash", "rounds": rounds, **{name: _row(crashed) for name, crashed in results.items()}}
    series = {
        "median": [statistics.median(c.recovery_s) for c in results.values()],
        "longest": [max(c.recovery_s) for c in results.values()],
    }
    bars = Bars("seconds from the kill to the next acknowledged batch", list(results), series)
    tell(result, _table(results), "Kills under load", bars, as_json=as_json, write=write)
    return all(crashed.verdict.clean for crashed in results.values())


def crash(root: Path, targets: list[str], rounds: int, say: Callable[[str], None]) -> dict[str, Crashed]:
    """Kills parts of a graph over LMDB, all of it in one instance after the other."""
    graph = GraphProcess(root)
    graph.start()

    def kill_replica() -> None:
        if not (graph.kill_replica("Sequences") or graph.kill_replica("Ingress")):  # inline, the ingress is the store's
            raise PublishError("no process of a replica that holds the store was found")

    def kill_serve() -> None:
        graph.kill()
        graph.start()

    kills = {"replica": kill_replica, "serve": kill_serve}
    try:
        return {target: _rounds(root, None, graph, kills[target], rounds, target, say) for target in targets}
    finally:
        graph.kill()


def crash_redis(root: Path, directory: Path, rounds: int, say: Callable[[str], None]) -> dict[str, Crashed]:
    """Kills the redis-server below a graph."""
    server = RedisProcess(directory)
    server.start()
    take_into_use(root, server.url)
    graph = GraphProcess(root, server.url)

    def kill() -> None:
        server.kill()
        server.start()

    try:
        graph.start()
        return {"redis": _rounds(root, server.url, graph, kill, rounds, "redis", say)}
    finally:
        graph.kill()
        server.kill()


def _rounds(
    root: Path,
    store_url: str | None,
    graph: GraphProcess,
    kill: Callable[[], None],
    rounds: int,
    target: str,
    say: Callable[[str], None],
) -> Crashed:
    rng, recovery_s = random.Random(0), list[float]()  # noqa: S311 - when to kill, no secret

    with Load(graph.port, CLIENTS, BATCH, USERS, items_of(root)) as load:
        for number in range(rounds):
            load.wait_for_more(BATCHES_BEFORE)
            export_now(root, store_url)  # under load too: its cursor must not skip what comes meanwhile
            time.sleep(rng.uniform(0, 0.1))  # the kill falls anywhere into a commit
            started = time.monotonic()
            kill()
            load.wait_for_more(1)
            recovery_s.append(time.monotonic() - started)
            say(f"{target}: kill {number + 1} of {rounds}, writing again after {recovery_s[-1]:.1f} s")
    verdict = verify(root, store_url, load)
    return Crashed(rounds, verdict, recovery_s, sum(batch.tries > 1 for batch in load.acknowledged))


def _row(crashed: Crashed) -> dict[str, Any]:
    return {
        "kills": crashed.kills,
        **asdict(crashed.verdict),
        "batches_sent_again": crashed.retried,
        "recovery_median_s": statistics.median(crashed.recovery_s),
        "recovery_max_s": max(crashed.recovery_s),
    }


def _table(results: dict[str, Crashed]) -> str:
    lines = [
        "| killed | times | events acknowledged | lost | twice in the log | users out of order | batches sent again | "
        "writing again after (median, longest) |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, c in results.items():
        v = c.verdict
        lines.append(
            f"| {TARGETS[name]} | {c.kills} | {v.acknowledged:,} | {v.lost} | {v.duplicated} | {v.wrong_sequences} of "
            f"{v.users:,} | {c.retried} | {statistics.median(c.recovery_s):.1f} s, {max(c.recovery_s):.1f} s |"
        )
    lines += [
        "",
        f"{CLIENTS} clients post batches of {BATCH} events over HTTP and send a batch again, with the same ids, until "
        "it is acknowledged. Before each kill the log is exported while they write. At the end every acknowledged "
        "event is looked for in the exported log, and every user's stored events are compared with the log's newest.",
    ]
    return "\n".join(lines)
