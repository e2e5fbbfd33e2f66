"""Bench `serve`: the graph under real HTTP against the same graph without its profile, and against a
hand-written application with the same scorer, index and store.

They are asked by turns, so that whatever else the machine does meets all of them. With one client an answer's time is
compared, with many clients the answers a second.
"""

import asyncio
import os
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.host import empty_config, graph, handwritten, side_by_side, sized
from benchmarks.http_load import (
    FEED,
    HttpAnswer,
    alternating,
    closed_loop,
    feed_bodies,
    good,
    median,
    open_loop,
    quantile_ms,
    session,
)
from benchmarks.processes import wait_until_ready
from benchmarks.served import ACTIONS, USERS, fill_store, make_served_root
from rayapp.launch.graph import serve_config
from rayapp.launch.ports import free_port
from rayapp.launch.runtime import Profile
from rayapp.record import Bars, say, tell

CANDIDATES: Final = 100
CLIENTS: Final = 8
"""Enough to keep two cores at work, and few enough that no queue is full."""
WITHIN_S: Final = 2.0
"""The deadline of a request: an answer later than this is no goodput."""
INLINE: Final = ["sequences", "candidates"]
GRAPH, APART = "throughput, inline", "throughput, apart"
PLAIN, PLAIN_INLINE, HANDWRITTEN = "plain, apart", "plain, inline", "two uvicorn workers"
ALONE, EMPTY = "throughput, inline, one ranker", "empty graph"
LIMITS: Final = {
    "throughput_vs_default_flags": ("answers/s ÷ those of the graph on Ray's default flags", "≥ 1.3"),
    "throughput_vs_default_flags_only": ("the same where both have their stages inline", "–"),
    "throughput_vs_two_workers": ("answers/s ÷ those of a hand-written FastAPI application, two workers", "≥ 0.65"),
    "overhead_ratio": ("(p50 − p50 of the hand-written) ÷ p50 of an empty graph, one client", "≤ 1.3"),
    "goodput_at_double_load": ("whole answers/s at twice the peak ÷ the peak", "≥ 0.8"),
}


@dataclass(slots=True)
class Loaded:
    """An opponent under many clients, a number a round."""

    per_s: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)


def run_serve(root: Path, preset: str, seconds: float, rounds: int, as_json: bool, write: Path | None) -> None:
    make_served_root(root, preset)
    fill_store(root)
    cores = os.cpu_count() or 1
    with ExitStack() as servers:
        hand = servers.enter_context(handwritten(root, cores))
        ours = _start(servers, root, cores)
        alone = _alone({ALONE: ours[ALONE], EMPTY: ours[EMPTY], HANDWRITTEN: hand}, 5 * seconds, rounds)
        urls = {GRAPH: ours[GRAPH], **_start_others(servers, root, cores), HANDWRITTEN: hand}
        loaded, client_cpu = _loaded(urls, seconds, rounds)
        goodput, overload = _doubled(urls[GRAPH], seconds, rounds)
    by_round = _ratios(loaded, alone) | {"goodput_at_double_load": goodput}
    result = {name: median(ratios) for name, ratios in by_round.items()}
    detail: dict[str, Any] = {
        "candidates": CANDIDATES,
        "actions": ACTIONS,
        "clients": CLIENTS,
        "client_cpu": client_cpu,
        "overload": {
            "sent": len(overload),
            "whole": good(overload, WITHIN_S),
            "refused_429": sum(a.status == 429 for a in overload),
            "refused_without_retry_after": sum(a.status == 429 and not a.retry_after for a in overload),
            "degraded": sum(a.degraded for a in overload),
            "other": sum(a.status not in (200, 429) for a in overload),
            "p99_ms": quantile_ms(overload, 0.99),
        },
        "by_round": by_round,
        "loaded": {name: {"per_s": m.per_s, "p99_ms": m.p99_ms} for name, m in loaded.items()},
        "alone_p50_ms": alone,
    }
    text = _table(result, detail, preset, seconds, rounds)
    line = {"bench": "serve", "preset": preset, **result, "detail": detail}
    bars = Bars("answers a second", list(loaded), {"median": [median(m.per_s) for m in loaded.values()]})
    tell(line, text, "The serving graph under load", bars, as_json=as_json, write=write)


def _start(servers: ExitStack, root: Path, cores: int) -> dict[str, str]:
    """The graph as `rayapp serve` starts it, with the rankers that its autoscaler gives it for many clients and for
    one, and the empty one on the same Ray."""
    port = free_port()
    many, one = (sized(serve_config(root, port, inline=INLINE), {"Ranker": rankers}) for rankers in (cores, 1))
    url = _host(servers, "throughput", {"inline": many, "one": one, "empty": sized(empty_config(INLINE), {})})
    return {GRAPH: f"{url}/inline", ALONE: f"{url}/one", EMPTY: f"{url}/empty"}


def _start_others(servers: ExitStack, root: Path, cores: int) -> dict[str, str]:
    """The graphs that only throughput is measured of; before they start, nothing of them takes time from one client."""
    rankers = {"Ranker": cores}
    fast = _host(servers, "throughput", {"apart": sized(serve_config(root, free_port(), inline=[]), rankers)})
    port = free_port()
    inline, apart = (sized(serve_config(root, port, inline=stages), rankers) for stages in (INLINE, []))
    plain = _host(servers, "plain", {"inline": inline, "apart": apart})
    return {APART: f"{fast}/apart", PLAIN: f"{plain}/apart", PLAIN_INLINE: f"{plain}/inline"}


def _host(servers: ExitStack, profile: Profile, configs: dict[str, dict[str, Any]]) -> str:
    say(f"start {profile}: {', '.join(configs)}")
    url = servers.enter_context(graph(profile, side_by_side(configs))).url
    for name, config in configs.items():
        if config["applications"][0]["import_path"] == "deployments.app:build":
            wait_until_ready(f"{url}/{name}/health/ready")
    return url


def _alone(urls: dict[str, str], seconds: float, rounds: int) -> dict[str, list[float]]:
    """p50 with one client. The turns are single requests: a core's speed can change by half within seconds, with what
    the machine's other guests do, and a turn of seconds would take that for a difference."""
    found: dict[str, list[float]] = {name: [] for name in urls}
    for number in range(rounds + 1):  # the first one warms up
        say(f"one client, round {number} of {rounds}")
        answers = asyncio.run(alternating(urls, FEED, feed_bodies(USERS, CANDIDATES), seconds))
        for name in urls:
            found[name] += [quantile_ms(answers[name], 0.5)] if number else []
    return found


def _loaded(urls: dict[str, str], seconds: float, rounds: int) -> tuple[dict[str, Loaded], float]:
    """Every opponent by turns; and the share of a core that the client itself took at the most."""
    found = {name: Loaded() for name in urls}
    client_cpu = 0.0
    say("warm up")
    for url in urls.values():
        _closed(url, CLIENTS, 2.0)
    for number in range(rounds):
        say(f"{CLIENTS} clients, round {number + 1} of {rounds}")
        for name in _turn(urls, number):
            cpu = time.process_time()
            answers = _closed(urls[name], CLIENTS, seconds)
            client_cpu = max(client_cpu, (time.process_time() - cpu) / seconds)
            found[name].per_s.append(sum(a.whole for a in answers) / seconds)
            found[name].p99_ms.append(quantile_ms(answers, 0.99))
    return found, client_cpu


def _turn(urls: dict[str, str], number: int) -> list[str]:
    """Every second round the other way round: what drifts over a round then helps nobody."""
    return list(urls)[:: 1 if number % 2 == 0 else -1]


def _closed(url: str, clients: int, seconds: float) -> list[HttpAnswer]:
    return asyncio.run(closed_loop(url, FEED, feed_bodies(USERS, CANDIDATES), clients, seconds))


def _doubled(url: str, seconds: float, rounds: int) -> tuple[list[float], list[HttpAnswer]]:
    """Goodput at twice the peak ÷ the peak, a round, each against the peak just before it; and all those answers."""
    goodput, answers = [], []
    for number in range(1, rounds + 1):
        peak = good(_closed(url, CLIENTS, seconds), WITHIN_S) / seconds
        say(f"twice the peak of {peak:.0f}/s, round {number} of {rounds}")
        started = time.monotonic()
        overload = asyncio.run(_open(url, 2 * peak, seconds))
        # Until the last answer: what still queued when the load ended took time as well.
        goodput.append(good(overload, WITHIN_S) / (time.monotonic() - started) / peak)
        answers += overload
    return goodput, answers


async def _open(url: str, per_s: float, seconds: float) -> list[HttpAnswer]:
    async with session(url) as client:
        return await open_loop(client, FEED, feed_bodies(USERS, CANDIDATES), lambda _: per_s, seconds)


def _ratios(loaded: dict[str, Loaded], alone: dict[str, list[float]]) -> dict[str, list[float]]:
    """The ratios within each round."""

    def faster_than(name: str) -> list[float]:
        return [a / b for a, b in zip(loaded[GRAPH].per_s, loaded[name].per_s, strict=True)]

    turns = zip(alone[ALONE], alone[HANDWRITTEN], alone[EMPTY], strict=True)
    return {
        "throughput_vs_default_flags": faster_than(PLAIN),
        "throughput_vs_default_flags_only": faster_than(PLAIN_INLINE),
        "throughput_vs_two_workers": faster_than(HANDWRITTEN),
        "overhead_ratio": [(ours - hand) / empty for ours, hand, empty in turns],
    }


def _table(result: dict[str, float], detail: dict[str, Any], preset: str, seconds: float, rounds: int) -> str:
    lines = ["| measure | what | result | rounds | wanted |", "|---|---|---:|---:|---:|"]
    for name, (what, limit) in LIMITS.items():
        of_rounds = ", ".join(f"{ratio:.2f}" for ratio in detail["by_round"][name])
        lines.append(f"| `{name}` | {what} | {result[name]:.2f} | {of_rounds} | {limit} |")
    lines += ["", "| opponent | answers/s | p99, ms | one client, p50, ms |", "|---|---:|---:|---:|"]
    loaded, alone = detail["loaded"], detail["alone_p50_ms"]
    for name in dict.fromkeys((*loaded, *alone)):
        per_s, p99 = (f"{median(loaded[name][key]):.1f}" if name in loaded else "–" for key in ("per_s", "p99_ms"))
        lines.append(f"| {name} | {per_s} | {p99} | {f'{median(alone[name]):.1f}' if name in alone else '–'} |")
    over = detail["overload"]
    lines += [
        "",
        f"Preset `{preset}` with untrained weights, {detail['candidates']} candidates, {detail['actions']} actions a "
        f"user; {detail['clients']} clients, {rounds} rounds of {seconds:g} s an opponent, medians. The client took "
        f"{detail['client_cpu']:.0%} of a core at the most. One client was measured before the others started, "
        "by turns of single requests.",
        "",
        f"At twice the peak, {over['sent']} requests: {over['whole']} whole answers within {WITHIN_S:g} s, "
        f"{over['degraded']} degraded, {over['refused_429']} refused with 429 "
        f"({over['refused_without_retry_after']} of them without `Retry-After`), {over['other']} anything else; "
        f"p99 of the answers {over['p99_ms']:.0f} ms.",
    ]
    return "\n".join(lines)
