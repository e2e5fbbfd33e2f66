"""Bench `faults`: what clients see while parts of the graph are killed, hung, swapped and taken away.

Feeds and events come at half of what the graph can do, whatever comes back. Each phase breaks one thing near its
beginning; the graph has the rest of the phase to mend. The stages are deployments of their own, so that each can die
alone, and the store is Redis, which can die too.
"""

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import signal
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp

from benchmarks.host import graph
from benchmarks.http_load import (
    FEED,
    NO_ANSWER,
    HttpAnswer,
    ask,
    closed_loop,
    feed_bodies,
    open_loop,
    quantile_ms,
    session,
)
from benchmarks.live import RedisProcess
from benchmarks.processes import replica_pids, wait_until, wait_until_ready
from benchmarks.served import MODELS, USERS, WORLD, fill_store, make_served_root
from benchmarks.truth import RankAnswer, Truth
from rayapp.contracts.hashing import hash64
from rayapp.launch.graph import serve_config
from rayapp.launch.ports import free_port
from rayapp.record import Bars, say, tell
from rayapp.registry.aliases import CHAMPION, promote
from rayapp.root import places
from rayapp.store.address import IN_ROOT, in_use, take_into_use
from rayapp.store.opening import open_store

CANDIDATES: Final = 100
CLIENTS: Final = 8
EVENTS_PER_S: Final = 5.0
RANKS_PER_S: Final = 4.0
CORRUPT: Final = "bench-corrupt"
EVENT_USERS: Final = tuple(f"faults-{n}" for n in range(8))
"""Users who only act."""
RANKED_USERS: Final = USERS[:4]
"""Their sequences stay as they are, so that their scores can be computed again."""
INGRESS: Final = "ingress killed"
FOLLOW_S: Final = 20.0
SWAPS: Final = ("hot swap", "corrupt model", "swap storm")


@dataclass(slots=True)
class Phase:
    """What clients saw."""

    name: str
    feeds: list[HttpAnswer] = field(default_factory=list)
    events: list[HttpAnswer] = field(default_factory=list)
    ranked: list[RankAnswer] = field(default_factory=list)
    """Answers whose scores are compared, in the end, with those of the model they name."""

    @property
    def failed(self) -> int:
        return sum(a.status >= 500 or a.status == NO_ANSWER for a in self.feeds)

    def row(self) -> dict[str, Any]:
        count = max(len(self.feeds), 1)
        return {
            "phase": self.name,
            "feeds": len(self.feeds),
            "http_5xx": self.failed,
            "refused_429": sum(a.status == 429 for a in self.feeds),
            "degraded_share": round(sum(a.degraded for a in self.feeds) / count, 4),
            "p50_ms": round(quantile_ms(self.feeds, 0.5), 1),
            "p99_ms": round(quantile_ms(self.feeds, 0.99), 1),
            "events": len(self.events),
            "events_not_taken": sum(a.status != 200 for a in self.events),
            "scores_checked": len(self.ranked),
        }


@dataclass(slots=True)
class Bench:
    """The running graph and what breaks it."""

    root: Path
    url: str
    host: int
    redis: RedisProcess
    truth: Truth
    acknowledged: list[tuple[str, str]] = field(default_factory=list)
    """User and event id of every event that was said to be durable."""
    swap_failures: int = 0

    async def load(self, phase: Phase, rate: float, seconds: float, break_it: Callable[[], Awaitable[None]]) -> None:
        """One phase."""
        async with session(self.url) as client:
            feeds = open_loop(client, FEED, feed_bodies(USERS, CANDIDATES), lambda _: rate, seconds)
            phase.feeds, *_ = await asyncio.gather(
                feeds, self._events(client, phase, seconds), self._ranks(client, phase, seconds), break_it()
            )

    async def _events(self, client: aiohttp.ClientSession, phase: Phase, seconds: float) -> None:
        users = itertools.cycle(EVENT_USERS)

        async def one(user_id: str) -> None:
            event_id = str(uuid.uuid4())
            event = {
                "event_id": event_id,
                "user_id": user_id,
                "item_id": f"i{uuid.uuid4().int % WORLD.num_items}",
                "action": "click",
                "timestamp_ms": time.time_ns() // 1_000_000,
            }
            answer, text = await ask(client, "/v1/events", event)
            phase.events.append(answer)
            if answer.status == 200 and json.loads(text)["accepted"] == 1:
                self.acknowledged.append((user_id, event_id))

        await _at_rate(lambda: one(next(users)), EVENTS_PER_S, seconds)

    async def _ranks(self, client: aiohttp.ClientSession, phase: Phase, seconds: float) -> None:
        users = itertools.cycle(RANKED_USERS)

        async def one(user_id: str) -> None:
            sent_ms = time.time_ns() // 1_000_000
            answer, text = await ask(client, "/v1/rank", {"user_id": user_id, "item_ids": self.truth.item_ids})
            if answer.whole:
                made_ms = (sent_ms + time.time_ns() // 1_000_000) // 2
                phase.ranked.append(RankAnswer(user_id, made_ms, json.loads(text)))

        await _at_rate(lambda: one(next(users)), RANKS_PER_S, seconds)

    # ---- what breaks -----------------------------------------------------------------------------------------------

    async def kill(self, kind: str) -> None:
        """SIGKILL to one replica."""
        os.kill(await self._replica(kind), signal.SIGKILL)

    async def hang(self, kind: str, seconds: float) -> None:
        """One replica stands still for a while."""
        pid = await self._replica(kind)
        os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            with contextlib.suppress(ProcessLookupError):  # Ray may have replaced it by now
                os.kill(pid, signal.SIGCONT)

    async def _replica(self, kind: str) -> int:
        """The oldest replica; one may still be on its way back from what broke before."""

        def found() -> bool:
            return bool(replica_pids(self.host, kind))

        await asyncio.to_thread(wait_until, found, f"a process of {kind}")
        return replica_pids(self.host, kind)[0]

    async def swap(self, version: str) -> None:
        await asyncio.to_thread(promote, self.root, CHAMPION, version)

    async def lose_store(self, seconds: float) -> None:
        """Redis is killed, and started again over its files."""
        await asyncio.to_thread(self.redis.kill)
        await asyncio.sleep(seconds)
        await asyncio.to_thread(self.redis.start)

    async def storm(self, seconds: float) -> None:
        """Another champion every second, for most of the phase."""
        until = time.monotonic() + 0.7 * seconds
        for version in itertools.cycle(MODELS):
            if time.monotonic() > until:
                break
            await self.swap(version)
            await asyncio.sleep(1.0)
        await self.swap(MODELS[0])

    async def follows(self, version: str) -> bool:
        """Whether answers name the version, at the latest FOLLOW_S after the phase."""
        deadline = time.monotonic() + FOLLOW_S
        async with session(self.url) as client:
            while time.monotonic() < deadline:
                _, text = await ask(client, "/v1/rank", {"user_id": USERS[0], "item_ids": self.truth.item_ids})
                if json.loads(text or b"{}").get("model_version") == version:
                    return True
                await asyncio.sleep(0.2)
        return False

    def lost(self) -> int:
        """Acknowledged events that the store does not hold."""
        store = open_store(self.root, self.redis.url)
        try:
            held = {user: set(store.lookup(user).history.event_hash_E.tolist()) for user in EVENT_USERS}
        finally:
            store.close()
        return sum(hash64(event_id) not in held[user] for user, event_id in self.acknowledged)


async def _at_rate(start: Callable[[], Awaitable[None]], per_s: float, seconds: float) -> None:
    until, tasks = time.monotonic() + seconds, []
    while time.monotonic() < until:
        tasks.append(asyncio.ensure_future(start()))
        await asyncio.sleep(1 / per_s)
    await asyncio.gather(*tasks)


def run_faults(root: Path, preset: str, seconds: float, as_json: bool, write: Path | None) -> None:
    make_served_root(root, preset)
    _make_corrupt(root)
    with tempfile.TemporaryDirectory(prefix="rayapp-faults-") as place, contextlib.ExitStack() as servers:
        redis = RedisProcess(Path(place))
        servers.callback(redis.kill)
        redis.start()
        before = in_use(root)
        take_into_use(root, redis.url)
        servers.callback(take_into_use, root, before or IN_ROOT)
        fill_store(root, redis.url)
        config = serve_config(root, free_port(), redis.url, inline=[])
        ranker = next(d for d in config["applications"][0]["deployments"] if d["name"] == "Ranker")
        ranker["autoscaling_config"] |= {"min_replicas": 2, "max_replicas": 2}
        say("start the graph")
        with graph("throughput", config) as server:
            wait_until_ready(f"{server.url}/health/ready")
            bench = Bench(root, server.url, server.pid, redis, Truth(root, redis.url, MODELS))
            capacity, phases = asyncio.run(_phases(bench, seconds))
            wait_until_ready(f"{server.url}/health/ready")
        lost = bench.lost()
        wrong = bench.truth.wrong(answer for phase in phases for answer in phase.ranked)
    result = {
        "http_5xx_feed": sum(p.failed for p in phases if p.name != INGRESS),
        "http_5xx_feed_ingress_killed": sum(p.failed for p in phases if p.name == INGRESS),
        "lost_events": lost,
        "swap_failures": bench.swap_failures + sum(p.failed for p in phases if p.name in SWAPS),
        "mixed_answers": len(wrong),
        "scores_checked": sum(len(p.ranked) for p in phases),
        "events_acknowledged": len(bench.acknowledged),
        "capacity_per_s": round(capacity, 1),
    }
    rows = [p.row() for p in phases]
    text = _table(result, rows, preset, seconds)
    line = {"bench": "faults", "preset": preset, **result, "phases": rows}
    bars = Bars("p99, ms", [r["phase"] for r in rows], {"feeds": [r["p99_ms"] for r in rows]})
    tell(line, text, "What clients see when things break", bars, as_json=as_json, write=write)


async def _phases(bench: Bench, seconds: float) -> tuple[float, list[Phase]]:
    warm = 4.0
    for _ in range(2):  # the first one warms up
        answers = await closed_loop(bench.url, FEED, feed_bodies(USERS, CANDIDATES), CLIENTS, warm)
    capacity = sum(a.whole for a in answers) / warm
    steps: list[tuple[str, Callable[[float], Awaitable[None]]]] = [
        ("calm", lambda _: asyncio.sleep(0)),
        ("ranker killed", lambda _: bench.kill("Ranker")),
        ("ranker hung", lambda each: bench.hang("Ranker", each / 3)),
        ("candidates killed", lambda _: bench.kill("Candidates")),
        ("sequences killed", lambda _: bench.kill("Sequences")),
        (INGRESS, lambda _: bench.kill("Ingress")),
        ("hot swap", lambda _: bench.swap(MODELS[1])),
        ("corrupt model", lambda _: bench.swap(CORRUPT)),
        ("store gone", lambda each: bench.lose_store(each / 3)),
        ("swap storm", bench.storm),
    ]
    each, phases = seconds / len(steps), []
    for name, break_it in steps:
        say(name)
        phase = Phase(name)
        await bench.load(phase, capacity / 2, each, lambda b=break_it: _after(each / 8, b, each))  # type: ignore[misc]
        phases.append(phase)
        wanted = {"hot swap": MODELS[1], "corrupt model": MODELS[1], "swap storm": MODELS[0]}.get(name)
        bench.swap_failures += wanted is not None and not await bench.follows(wanted)
        if name == "corrupt model":
            await bench.swap(MODELS[0])
        if name == INGRESS:
            await asyncio.to_thread(wait_until_ready, f"{bench.url}/health/ready")
    return capacity, phases


async def _after(seconds: float, break_it: Callable[[float], Awaitable[None]], each: float) -> None:
    await asyncio.sleep(seconds)
    await break_it(each)


def _make_corrupt(root: Path) -> None:
    """A published model whose weights are cut off."""
    directory = root / places.MODELS / CORRUPT
    if not directory.exists():
        shutil.copytree(root / places.MODELS / MODELS[1], directory)
        weights = directory / "weights.safetensors"
        weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])


def _table(result: dict[str, Any], rows: list[dict[str, Any]], preset: str, seconds: float) -> str:
    lines = [
        "| phase | feeds | 5xx or no answer | 429 | degraded | p50, ms | p99, ms | events | not taken |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {r['phase']} | {r['feeds']} | {r['http_5xx']} | {r['refused_429']} | {r['degraded_share']:.1%} | "
        f"{r['p50_ms']} | {r['p99_ms']} | {r['events']} | {r['events_not_taken']} |"
        for r in rows
    ]
    lines += [
        "",
        f"Preset `{preset}` with untrained weights, {CANDIDATES} candidates, {seconds:g} s at half of "
        f"{result['capacity_per_s']} feeds/s, two rankers and one of everything else, store: Redis.",
        "",
        f"- `http_5xx_feed` {result['http_5xx_feed']} (and {result['http_5xx_feed_ingress_killed']} while the only "
        "ingress was killed)",
        f"- `lost_events` {result['lost_events']} of {result['events_acknowledged']} acknowledged",
        f"- `swap_failures` {result['swap_failures']}",
        f"- answers that mix two models: {result['mixed_answers']} of {result['scores_checked']} whose scores were "
        "compared with those of the model they name",
    ]
    return "\n".join(lines)
