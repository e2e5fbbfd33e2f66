"""`rayapp bench serve`: the graph under real HTTP against the same graph without its profile, and against a
hand-written application with the same scorer, index and store.

All of them run at the same time and are asked by turns, so that whatever else the machine does meets all of them. With
one client an answer's time is compared, with many clients the answers a second.
"""

import asyncio
import json
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import click

from rayapp.bench.host import empty_config, graph, handwritten, side_by_side, sized, wait_until_ready
from rayapp.bench.http_load import (
    FEED,
    Answer,
    closed_loop,
    feed_bodies,
    good,
    median,
    open_loop,
    quantile_ms,
    session,
)
from rayapp.bench.record import Bars, record
from rayapp.bench.served import ACTIONS, USERS, fill_store, make_served_root
from rayapp.graph import Profile, free_port, serve_config

CANDIDATES: Final = 100
CLIENTS: Final = 8
"""Enough to keep two cores at work, and few enough that no queue is full."""
WITHIN_S: Final = 2.0
"""The deadline of a request: an answer later than this is no goodput."""
INLINE: Final = ["sequences", "candidates"]
GRAPH, APART, EMPTY = "throughput, inline", "throughput, apart", "empty graph, inline"
PLAIN, PLAIN_INLINE, HANDWRITTEN = "plain, apart", "plain, inline", "two uvicorn workers"
LIMITS: Final = {
    "throughput_vs_default_flags": ("answers/s ÷ those of the graph on Ray's default flags", "≥ 1.3"),
    "throughput_vs_default_flags_only": ("the same where both have their stages inline", "–"),
    "throughput_vs_two_workers": ("answers/s ÷ those of a hand-written FastAPI application, two workers", "≥ 0.65"),
    "overhead_ratio": ("(p50 − p50 of the hand-written) ÷ p50 of an empty graph, one client", "≤ 1.3"),
    "goodput_at_double_load": ("whole answers/s at twice the peak ÷ the peak", "≥ 0.8"),
}


@dataclass(slots=True)
class Measured:
    """Of one opponent: a number a round."""

    per_s: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    alone_ms: list[float] = field(default_factory=list)
    """p50 with one client."""


def run_serve(root: Path, preset: str, seconds: float, rounds: int, as_json: bool, write: Path | None) -> None:
    make_served_root(root, preset)
    fill_store(root)
    cores = os.cpu_count() or 1
    with ExitStack() as servers:
        urls = _start(servers, root, cores)
        _say("warm up")
        for url in urls.values():
            asyncio.run(closed_loop(url, FEED, feed_bodies(USERS, CANDIDATES), CLIENTS, 2.0))
        measured, client_cpu = _rounds(urls, seconds, rounds)
        peak = median(measured[GRAPH].per_s)
        _say(f"twice the peak of {peak:.0f}/s")
        overload = asyncio.run(_overload(urls[GRAPH], peak, seconds))
    result = _ratios(measured) | {"goodput_at_double_load": good(overload, WITHIN_S) / seconds / peak}
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
        "opponents": {
            name: {"per_s": m.per_s, "p99_ms": m.p99_ms, "alone_p50_ms": m.alone_ms} for name, m in measured.items()
        },
    }
    text = _table(result, detail, preset, seconds, rounds)
    click.echo(json.dumps({"bench": "serve", "preset": preset, **result, "detail": detail}) if as_json else text)
    if write is not None:
        bars = Bars("answers a second", [n for n in measured if n != EMPTY], {"median": _speeds(measured)})
        record(write, "The serving graph under load", f"rayapp bench serve --preset {preset}", text, bars)


def _start(servers: ExitStack, root: Path, cores: int) -> dict[str, str]:
    def host(profile: Profile, configs: dict[str, dict[str, Any]]) -> str:
        _say(f"start {profile}: {', '.join(configs)}")
        settings = sized(side_by_side(configs), {"Ranker": cores})
        return servers.enter_context(graph(profile, settings)).url

    port = free_port()
    inline, apart = (serve_config(root, port, inline=stages) for stages in (INLINE, []))
    fast = host("throughput", {"inline": inline, "apart": apart, "empty": empty_config(INLINE)})
    port = free_port()
    inline, apart = (serve_config(root, port, inline=stages) for stages in (INLINE, []))
    plain = host("plain", {"inline": inline, "apart": apart})
    urls = {
        GRAPH: f"{fast}/inline",
        APART: f"{fast}/apart",
        PLAIN: f"{plain}/apart",
        PLAIN_INLINE: f"{plain}/inline",
        EMPTY: f"{fast}/empty",
    }
    for name in (GRAPH, APART, PLAIN, PLAIN_INLINE):
        wait_until_ready(f"{urls[name]}/health/ready")
    return urls | {HANDWRITTEN: servers.enter_context(handwritten(root, cores))}


def _rounds(urls: dict[str, str], seconds: float, rounds: int) -> tuple[dict[str, Measured], float]:
    """Every opponent by turns; and the share of a core that the client itself took at the most."""
    measured = {name: Measured() for name in urls}
    client_cpu = 0.0
    for number in range(rounds):
        _say(f"round {number + 1} of {rounds}")
        # Every second round the other way round: what drifts over a round then helps nobody.
        for name in list(urls)[:: 1 if number % 2 == 0 else -1]:
            alone = _closed(urls[name], 1, seconds / 4)
            measured[name].alone_ms.append(quantile_ms(alone, 0.5))
            if name == EMPTY:
                continue
            cpu = time.process_time()
            answers = _closed(urls[name], CLIENTS, seconds)
            client_cpu = max(client_cpu, (time.process_time() - cpu) / seconds)
            measured[name].per_s.append(sum(a.status == 200 and not a.degraded for a in answers) / seconds)
            measured[name].p99_ms.append(quantile_ms(answers, 0.99))
    return measured, client_cpu


def _closed(url: str, clients: int, seconds: float) -> list[Answer]:
    return asyncio.run(closed_loop(url, FEED, feed_bodies(USERS, CANDIDATES), clients, seconds))


async def _overload(url: str, peak: float, seconds: float) -> list[Answer]:
    async with session(url) as client:
        return await open_loop(client, FEED, feed_bodies(USERS, CANDIDATES), lambda _: 2 * peak, seconds)


def _ratios(measured: dict[str, Measured]) -> dict[str, float]:
    """Medians over rounds of the ratio within a round."""

    def of(pick: Callable[[Measured], list[float]], below: str) -> float:
        pairs = zip(pick(measured[GRAPH]), pick(measured[below]), strict=True)
        return median([a / b for a, b in pairs])

    graph_ms, hand_ms, empty_ms = (measured[name].alone_ms for name in (GRAPH, HANDWRITTEN, EMPTY))
    return {
        "throughput_vs_default_flags": of(lambda m: m.per_s, PLAIN),
        "throughput_vs_default_flags_only": of(lambda m: m.per_s, PLAIN_INLINE),
        "throughput_vs_two_workers": of(lambda m: m.per_s, HANDWRITTEN),
        "overhead_ratio": median([(g - h) / e for g, h, e in zip(graph_ms, hand_ms, empty_ms, strict=True)]),
    }


def _speeds(measured: dict[str, Measured]) -> list[float]:
    return [median(m.per_s) for name, m in measured.items() if name != EMPTY]


def _say(text: str) -> None:
    click.echo(f"  {text}", err=True)


def _table(result: dict[str, float], detail: dict[str, Any], preset: str, seconds: float, rounds: int) -> str:
    lines = ["| measure | what | result | wanted |", "|---|---|---:|---:|"]
    lines += [f"| `{name}` | {what} | {result[name]:.2f} | {limit} |" for name, (what, limit) in LIMITS.items()]
    lines += ["", "| opponent | answers/s | p99, ms | one client, p50, ms |", "|---|---:|---:|---:|"]
    for name, row in detail["opponents"].items():
        per_s, p99 = (f"{median(row[key]):.1f}" if row[key] else "–" for key in ("per_s", "p99_ms"))
        lines.append(f"| {name} | {per_s} | {p99} | {median(row['alone_p50_ms']):.1f} |")
    over = detail["overload"]
    lines += [
        "",
        f"Preset `{preset}` with untrained weights, {detail['candidates']} candidates, {detail['actions']} actions a "
        f"user; {detail['clients']} clients, {rounds} rounds of {seconds:g} s an opponent, medians. The client took "
        f"{detail['client_cpu']:.0%} of a core at the most.",
        "",
        f"At twice the peak, {over['sent']} requests: {over['whole']} whole answers within {WITHIN_S:g} s, "
        f"{over['degraded']} degraded, {over['refused_429']} refused with 429 "
        f"({over['refused_without_retry_after']} of them without `Retry-After`), {over['other']} anything else; "
        f"p99 of the answers {over['p99_ms']:.0f} ms.",
    ]
    return "\n".join(lines)
