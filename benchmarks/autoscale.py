"""Bench `autoscale`: how many replicas each deployment has over time while the load goes 1x, 4x and 1x again.

Replicas are counted as processes of this machine. The graph is sized by `deployments/serve.yaml` as it stands.
"""

import asyncio
import json
import os
import time
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import click

from benchmarks.host import graph
from benchmarks.http_load import FEED, HttpAnswer, closed_loop, feed_bodies, open_loop, quantile_ms, session
from benchmarks.processes import replica_pids, wait_until_ready
from benchmarks.served import USERS, fill_store, make_served_root
from rayapp.launch.graph import serve_config
from rayapp.launch.ports import free_port
from rayapp.picture import svg
from rayapp.record import say, write_result

CANDIDATES: Final = 100
SHARES: Final = (0.2, 0.6, 1.0)
"""Ends of the three steps, as shares of the whole time."""
LOW: Final = 0.2
"""The load 1x, as a share of what the graph answers with a ranker for each core; 4x then is four fifths of it."""
LOOK_EVERY_S: Final = 0.5
SCALED: Final = ("Ingress", "Ranker")


def run_autoscale(root: Path, preset: str, seconds: float, as_json: bool, write: Path | None) -> None:
    make_served_root(root, preset)
    fill_store(root)
    say("start the graph")
    with graph("throughput", serve_config(root, free_port())) as server:
        wait_until_ready(f"{server.url}/health/ready")
        answers, trace, low = asyncio.run(_steps(server.url, server.pid, seconds))
    counts = {kind: [row[kind] for row in trace] for kind in SCALED}
    times = [row["second"] for row in trace]
    first, second, _ = (share * seconds for share in SHARES)
    result: dict[str, Any] = {"low_per_s": round(low, 1), "high_per_s": round(4 * low, 1)}
    for kind, values in counts.items():
        highest = max(values)
        last_highest = max(t for t, n in zip(times, values, strict=True) if n == highest)
        result[kind.lower()] = {
            "before": values[0],
            "highest": highest,
            "after": values[-1],
            "changes": sum(a != b for a, b in pairwise(values)),
            "flaps": _flaps(values),
            "scaled_up_after_s": _first(times, values, lambda n, b=values[0]: n > b, first),
            "scaled_down_after_s": _first(times, values, lambda n, h=highest: n < h, second, last_highest),
        }
    result["steps"] = [
        _step(name, [a for second_, a in answers if since <= second_ < until])
        for name, since, until in (("1x", 0.0, first), ("4x", first, second), ("1x again", second, seconds + 1))
    ]
    text = _table(result, preset, seconds)
    click.echo(json.dumps({"bench": "autoscale", "preset": preset, **result, "trace": trace}) if as_json else text)
    if write is not None:
        title, picture = "Replicas under a step of load", write.with_suffix(".svg")
        write_result(
            write,
            title,
            f"{text}\n\n![{title}]({picture.name})",
            lambda: _draw(picture, title, times, counts, [0, first, second, seconds], low),
        )


async def _steps(
    url: str, host: int, seconds: float
) -> tuple[list[tuple[float, HttpAnswer]], list[dict[str, Any]], float]:
    """Answers and replica counts with the second of the run, and the low rate."""
    warm = 3.0
    for _ in range(2):  # with one client for each core, so that nothing scales yet; the first one warms up
        alone = await closed_loop(url, FEED, feed_bodies(USERS, CANDIDATES), 1, warm)
    low = LOW * (os.cpu_count() or 1) * len(alone) / warm
    first, second, _ = (share * seconds for share in SHARES)
    trace: list[dict[str, Any]] = []
    started = time.monotonic()

    async def look() -> None:
        while (now := time.monotonic() - started) < seconds:
            row = {kind: len(await asyncio.to_thread(replica_pids, host, kind)) for kind in SCALED}
            trace.append({"second": round(now, 1), **row})
            await asyncio.sleep(LOOK_EVERY_S)

    async with session(url) as client:
        load = open_loop(
            client,
            FEED,
            feed_bodies(USERS, CANDIDATES),
            lambda at: 4 * low if first <= at < second else low,
            seconds,
        )
        answers, _ = await asyncio.gather(load, look())
    return [(a.at_s - started, a) for a in answers], trace, low


def _first(times: list[float], values: list[int], is_so: Any, since: float, earliest: float = 0.0) -> float | None:
    """Seconds after `since` until a count is so, looked for from `earliest` on; None where it never is."""
    found = (t for t, n in zip(times, values, strict=True) if t >= max(since, earliest) and is_so(n))
    moment = next(found, None)
    return None if moment is None else round(moment - since, 1)


def _flaps(values: list[int]) -> int:
    """Turns of direction beyond the one that a step up and a step down make."""
    moves = [1 if b > a else -1 for a, b in pairwise(values) if a != b]
    return max(sum(a != b for a, b in pairwise(moves)) - 1, 0)


def _step(name: str, answers: list[HttpAnswer]) -> dict[str, Any]:
    return {
        "step": name,
        "sent": len(answers),
        "whole": sum(a.whole for a in answers),
        "degraded": sum(a.degraded for a in answers),
        "refused_429": sum(a.status == 429 for a in answers),
        "other": sum(a.status not in (200, 429) for a in answers),
        "p50_ms": round(quantile_ms(answers, 0.5), 1),
        "p99_ms": round(quantile_ms(answers, 0.99), 1),
    }


def _draw(
    path: Path, title: str, times: list[float], counts: dict[str, list[int]], ends: list[float], low: float
) -> None:
    with svg(path, 9, 3.6) as axes:
        for kind, values in counts.items():
            axes.step(times, values, where="post", label=f"{kind} replicas")
        for name, (since, until) in zip(("1×", "4×", "1×"), pairwise(ends), strict=True):
            axes.axvspan(since, until, alpha=0.12 if name == "4×" else 0.04, color="gray")
            rate = 4 * low if name == "4×" else low
            axes.annotate(f"{name}: {rate:.0f} feeds/s", ((since + until) / 2, 0.2), ha="center")
        axes.set_ylim(0, None)
        axes.set_xlabel("seconds")
        axes.set_title(title)


def _table(result: dict[str, Any], preset: str, seconds: float) -> str:
    lines = [
        "| deployment | before | highest | after | up after, s | down after, s | flaps |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for kind in SCALED:
        row = result[kind.lower()]
        told = ("before", "highest", "after", "scaled_up_after_s", "scaled_down_after_s", "flaps")
        lines.append(f"| {kind} | " + " | ".join("–" if row[c] is None else str(row[c]) for c in told) + " |")
    lines += [
        "",
        "| step | sent | whole | degraded | 429 | other | p50, ms | p99, ms |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    cells = ("step", "sent", "whole", "degraded", "refused_429", "other", "p50_ms", "p99_ms")
    lines += ["| " + " | ".join(str(step[c]) for c in cells) + " |" for step in result["steps"]]
    lines += [
        "",
        f"Preset `{preset}` with untrained weights, {CANDIDATES} candidates; {result['low_per_s']} feeds/s, then "
        f"{result['high_per_s']}, then {result['low_per_s']} again, {seconds:g} s in all. A flap is a turn of "
        "direction beyond the one up and the one down.",
    ]
    return "\n".join(lines)
