"""`rayapp bench serve`: the graph under real HTTP against the same graph without its profile, and against a
hand-written application with the same scorer, index and store.

They are asked by turns, so that whatever else the machine does meets all of them. With one client an answer's time is
compared, with many clients the answers a second.
"""

import asyncio
import json
import os
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import click

from rayapp.bench.host import empty_config, graph, handwritten, side_by_side, sized, wait_until_ready
from rayapp.bench.http_load import (
    FEED,
    Answer,
    alternating,
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
GRAPH, APART = "throughput, inline", "throughput, apart"
PLAIN, PLAIN_INLINE, HANDWRITTEN = "plain, apart", "plain, inline", "two uvicorn workers"
EMPTY, BUSY = "empty graph", "empty graph, busy ranker"
LIMITS: Final = {
    "throughput_vs_default_flags": ("answers/s ÷ those of the graph on Ray's default flags", "≥ 1.3"),
    "throughput_vs_default_flags_only": ("the same where both have their stages inline", "–"),
    "throughput_vs_two_workers": ("answers/s ÷ those of a hand-written FastAPI application, two workers", "≥ 0.65"),
    "overhead_ratio": ("(p50 − p50 of the hand-written) ÷ p50 of an empty graph, one client", "≤ 1.3"),
    "overhead_ratio_busy": ("the same ÷ what an empty graph adds to a ranker that computes as long", "–"),
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
        busy_ms = quantile_ms(_closed(hand, 1, 4.0), 0.5)
        urls = _start(servers, root, cores, {EMPTY: empty_config(INLINE), BUSY: empty_config(INLINE, busy_ms)})
        alone = _alone(urls | {HANDWRITTEN: hand}, 4 * seconds, rounds)
        urls = {GRAPH: urls[GRAPH], **_start_others(servers, root, cores), HANDWRITTEN: hand}
        loaded, client_cpu = _loaded(urls, seconds, rounds)
        goodput, overload = _doubled(urls[GRAPH], seconds, rounds)
    result = _ratios(loaded, alone, busy_ms) | {"goodput_at_double_load": median(goodput)}
    detail: dict[str, Any] = {
        "candidates": CANDIDATES,
        "actions": ACTIONS,
        "clients": CLIENTS,
        "client_cpu": client_cpu,
        "busy_ms": busy_ms,
        "overload": {
            "sent": len(overload),
            "whole": good(overload, WITHIN_S),
            "refused_429": sum(a.status == 429 for a in overload),
            "refused_without_retry_after": sum(a.status == 429 and not a.retry_after for a in overload),
            "degraded": sum(a.degraded for a in overload),
            "other": sum(a.status not in (200, 429) for a in overload),
            "p99_ms": quantile_ms(overload, 0.99),
            "goodput": goodput,
        },
        "loaded": {name: {"per_s": m.per_s, "p99_ms": m.p99_ms} for name, m in loaded.items()},
        "alone_p50_ms": alone,
    }
    text = _table(result, detail, preset, seconds, rounds)
    click.echo(json.dumps({"bench": "serve", "preset": preset, **result, "detail": detail}) if as_json else text)
    if write is not None:
        bars = Bars("answers a second", list(loaded), {"median": [median(m.per_s) for m in loaded.values()]})
        record(write, "The serving graph under load", text, bars)


def _start(servers: ExitStack, root: Path, cores: int, empty: dict[str, dict[str, Any]]) -> dict[str, str]:
    """The graph as `rayapp serve` starts it, and the empty ones on the same Ray."""
    configs = {"inline": serve_config(root, free_port(), inline=INLINE), "empty": empty[EMPTY], "busy": empty[BUSY]}
    url = _host(servers, "throughput", configs, cores)
    return {GRAPH: f"{url}/inline", EMPTY: f"{url}/empty", BUSY: f"{url}/busy"}


def _start_others(servers: ExitStack, root: Path, cores: int) -> dict[str, str]:
    """The graphs that only throughput is measured of; before they start, nothing of them takes time from one client."""
    port = free_port()
    fast = _host(servers, "throughput", {"apart": serve_config(root, port, inline=[])}, cores)
    port = free_port()
    inline, apart = (serve_config(root, port, inline=stages) for stages in (INLINE, []))
    plain = _host(servers, "plain", {"inline": inline, "apart": apart}, cores)
    return {APART: f"{fast}/apart", PLAIN: f"{plain}/apart", PLAIN_INLINE: f"{plain}/inline"}


def _host(servers: ExitStack, profile: Profile, configs: dict[str, dict[str, Any]], cores: int) -> str:
    _say(f"start {profile}: {', '.join(configs)}")
    settings = sized(side_by_side(configs), {"Ranker": cores})
    url = servers.enter_context(graph(profile, settings)).url
    for name, config in configs.items():
        if config["applications"][0]["import_path"] == "deployments.app:build":
            wait_until_ready(f"{url}/{name}/health/ready")
    return url


def _alone(urls: dict[str, str], seconds: float, rounds: int) -> dict[str, list[float]]:
    """p50 with one client. The turns are single requests: a core's speed can change by half within seconds, with what
    the machine's other guests do, and a turn of seconds would take that for a difference."""
    found: dict[str, list[float]] = {name: [] for name in urls}
    for number in range(rounds + 1):  # the first one warms up
        _say(f"one client, round {number} of {rounds}")
        answers = asyncio.run(alternating(urls, FEED, feed_bodies(USERS, CANDIDATES), seconds))
        for name in urls:
            found[name] += [quantile_ms(answers[name], 0.5)] if number else []
    return found


def _loaded(urls: dict[str, str], seconds: float, rounds: int) -> tuple[dict[str, Loaded], float]:
    """Every opponent by turns; and the share of a core that the client itself took at the most."""
    found = {name: Loaded() for name in urls}
    client_cpu = 0.0
    _say("warm up")
    for url in urls.values():
        _closed(url, CLIENTS, 2.0)
    for number in range(rounds):
        _say(f"{CLIENTS} clients, round {number + 1} of {rounds}")
        for name in _turn(urls, number):
            cpu = time.process_time()
            answers = _closed(urls[name], CLIENTS, seconds)
            client_cpu = max(client_cpu, (time.process_time() - cpu) / seconds)
            found[name].per_s.append(sum(a.status == 200 and not a.degraded for a in answers) / seconds)
            found[name].p99_ms.append(quantile_ms(answers, 0.99))
    return found, client_cpu


def _turn(urls: dict[str, str], number: int) -> list[str]:
    """Every second round the other way round: what drifts over a round then helps nobody."""
    return list(urls)[:: 1 if number % 2 == 0 else -1]


def _closed(url: str, clients: int, seconds: float) -> list[Answer]:
    return asyncio.run(closed_loop(url, FEED, feed_bodies(USERS, CANDIDATES), clients, seconds))


def _doubled(url: str, seconds: float, rounds: int) -> tuple[list[float], list[Answer]]:
    """Goodput at twice the peak ÷ the peak, a round, each against the peak just before it; and all those answers."""
    goodput, answers = [], []
    for number in range(1, rounds + 1):
        peak = good(_closed(url, CLIENTS, seconds), WITHIN_S) / seconds
        _say(f"twice the peak of {peak:.0f}/s, round {number} of {rounds}")
        started = time.monotonic()
        overload = asyncio.run(_open(url, 2 * peak, seconds))
        # Until the last answer: what still queued when the load ended took time as well.
        goodput.append(good(overload, WITHIN_S) / (time.monotonic() - started) / peak)
        answers += overload
    return goodput, answers


async def _open(url: str, per_s: float, seconds: float) -> list[Answer]:
    async with session(url) as client:
        return await open_loop(client, FEED, feed_bodies(USERS, CANDIDATES), lambda _: per_s, seconds)


def _ratios(loaded: dict[str, Loaded], alone: dict[str, list[float]], busy_ms: float) -> dict[str, float]:
    """Medians over rounds of the ratio within a round."""

    def faster_than(name: str) -> float:
        return median([a / b for a, b in zip(loaded[GRAPH].per_s, loaded[name].per_s, strict=True)])

    turns = list(zip(alone[GRAPH], alone[HANDWRITTEN], alone[EMPTY], alone[BUSY], strict=True))
    return {
        "throughput_vs_default_flags": faster_than(PLAIN),
        "throughput_vs_default_flags_only": faster_than(PLAIN_INLINE),
        "throughput_vs_two_workers": faster_than(HANDWRITTEN),
        "overhead_ratio": median([(ours - hand) / empty for ours, hand, empty, _ in turns]),
        "overhead_ratio_busy": median([(ours - hand) / (busy - busy_ms) for ours, hand, _, busy in turns]),
    }


def _say(text: str) -> None:
    click.echo(f"  {text}", err=True)


def _table(result: dict[str, float], detail: dict[str, Any], preset: str, seconds: float, rounds: int) -> str:
    lines = ["| measure | what | result | wanted |", "|---|---|---:|---:|"]
    lines += [f"| `{name}` | {what} | {result[name]:.2f} | {limit} |" for name, (what, limit) in LIMITS.items()]
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
        f"{detail['client_cpu']:.0%} of a core at the most. The busy ranker computes {detail['busy_ms']:.0f} ms, what "
        "the hand-written application takes for a whole answer. One client was measured before the others started.",
        "",
        f"At twice the peak, {over['sent']} requests: {over['whole']} whole answers within {WITHIN_S:g} s, "
        f"{over['degraded']} degraded, {over['refused_429']} refused with 429 "
        f"({over['refused_without_retry_after']} of them without `Retry-After`), {over['other']} anything else; "
        f"p99 of the answers {over['p99_ms']:.0f} ms.",
    ]
    return "\n".join(lines)
