"""Bench `sequences`: building histories against Polars and `map_groups`, in time, memory and bytes on disk."""

import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.memory import PeakMemory
from benchmarks.peers import LENGTH, checksum, expanded_bytes, map_groups_histories
from benchmarks.processes import environment
from rayapp.contracts.config import DAY_MS
from rayapp.importing.domains.parse import parse_domain
from rayapp.importing.importer import Inputs, import_files
from rayapp.launch.runtime import local_ray
from rayapp.pipeline.histories import EVENT_COLUMNS, as_lists, in_sequence, latest, write_histories
from rayapp.pipeline.log_view import LogView
from rayapp.pipeline.tasks import run_tasks
from rayapp.pipeline.windows import Window, build
from rayapp.record import Bars, say, tell
from rayapp.root.facts import read_root
from rayapp.root.places import EVENTS, WINDOWS
from rayapp.root.publish import log_manifest

START_MS: Final = 1_735_689_600_000
DAYS: Final = 30
NOW_MS: Final = START_MS + 60 * DAY_MS
EVENTS_PER_BUCKET: Final = 312_500  # 20 million in 64 buckets, 5 million in 16
FILE_ROWS: Final = 1_000_000
EVENTS_PER_USER: Final = 50
NUM_ITEMS: Final = 200_000
COPIES: Final = 0.01
ACTIONS: Final = ("click", "save", "hide", "impression")
MAP_GROUPS_EVENTS: Final = 1_000_000
WINDOW_USERS: Final = 2_000
REQUESTS_PER_USER: Final = 10
ITEMS_PER_REQUEST: Final = 20
FIELDS: Final = {
    "ratio_vs_polars": 0.6,
    "end_to_end_vs_polars": 2.0,
    "ratio_vs_map_groups": 0.17,
    "memory_growth": 1.6,
    "bytes_vs_expanded": 0.1,
}
"""What is measured, and what we hold ourselves to: at most this."""

DOMAIN: Final = """
name = "bench"
positive_head = "save"
actions = [
    { name = "click", kind = "neutral" },
    { name = "save", kind = "positive", priority = 2 },
    { name = "hide", kind = "negative", priority = 3 },
    { name = "impression", kind = "neutral", in_sequence = false },
]
heads = [{ name = "save" }, { name = "hide", utility = -1 }]
items = { title = "title", text = ["title"] }

[[events]]
event_id = "event_id"
user_id = "user_id"
item_id = "item_id"
action = "action"
timestamp = "timestamp_ms"

[[requests]]
request_id = "request_id"
user_id = "user_id"
item_ids = "item_ids"
timestamp = "timestamp_ms"
"""


def run_sequences(num_events: int, num_users: int | None, repeats: int, as_json: bool, write: Path | None) -> None:
    num_users = num_users or max(num_events // EVENTS_PER_USER, 1)
    with tempfile.TemporaryDirectory(prefix="rayapp-bench-") as temporary:
        place = Path(temporary)
        say(f"write {num_events:,} raw events")
        raw = write_raw(place / "big" / "raw", num_events, num_users)
        with _warm_ray(place):
            detail = _against_polars(place, raw, num_events, repeats)
            detail |= _against_map_groups(place / "map-groups", repeats)
            detail |= _against_expanded(place / "expanded")
        detail |= _memory(place, raw, num_events, repeats)
    result = {name: round(detail.pop(name), 4) for name in FIELDS}
    line = {"bench": "sequences", "events": num_events, "users": num_users, **result, "detail": detail}
    shares = {"measured ÷ allowed": [result[name] / FIELDS[name] for name in FIELDS]}
    bars = Bars("measured ÷ allowed (lower is better)", list(FIELDS), shares)
    tell(line, _table(result, detail), "Sequences from a log", bars, as_json=as_json, write=write)


def write_raw(directory: Path, num_events: int, num_users: int, seed: int = 0) -> list[Path]:
    """A log as a team might have it: files by arrival, users of very different activity, one row in a hundred twice."""
    rng = np.random.default_rng(seed)
    directory.mkdir(parents=True)
    share = rng.permutation(1.0 / np.arange(10, num_users + 10) ** 0.6)
    up_to = np.cumsum(share) / share.sum()
    users = pa.array([f"user-{u:07d}" for u in range(num_users)])
    items = pa.array([f"item-{i:06d}" for i in range(NUM_ITEMS)])
    files = []
    for first in range(0, num_events, FILE_ROWS):
        n = min(FILE_ROWS, num_events - first)
        fresh = int(n * (1 - COPIES))
        row = np.r_[np.arange(fresh), rng.integers(fresh, size=n - fresh)]
        user = np.searchsorted(up_to, rng.random(fresh)).clip(max=num_users - 1)
        since = START_MS + first * (DAYS * DAY_MS // num_events)
        time_ms = np.sort(since + rng.integers(n * (DAYS * DAY_MS // num_events) + 1, size=fresh))
        table = pa.table(
            {
                "event_id": pa.array((rng.permutation(fresh) + first).astype(str).tolist()),
                "user_id": users.take(pa.array(user)),
                "item_id": items.take(pa.array(rng.zipf(1.3, fresh) % NUM_ITEMS)),
                "action": pa.array(ACTIONS).take(pa.array(rng.choice(4, fresh, p=[0.6, 0.2, 0.05, 0.15]))),
                "timestamp_ms": time_ms,
            }
        )
        files.append(directory / f"part-{first // FILE_ROWS:04d}.parquet")
        pq.write_table(table.take(pa.array(row)), files[-1], compression="zstd")
    pq.write_table(pa.table({"item_id": items, "title": items}), directory.parent / "items.parquet")
    return files


def _import(root: Path, raw: list[Path], num_events: int, requests: list[Path] | None = None) -> float:
    started = time.perf_counter()
    inputs = Inputs(events=raw, items=[raw[0].parent.parent / "items.parquet"], requests=requests or [])
    buckets = max(num_events // EVENTS_PER_BUCKET, 1)
    import_files(root, parse_domain(DOMAIN), inputs, now_ms=NOW_MS, num_buckets=buckets)
    return time.perf_counter() - started


def _histories(root: Path, out: Path) -> float:
    shutil.rmtree(out, ignore_errors=True)
    domain, num_buckets = read_root(root)
    started = time.perf_counter()
    view = LogView.of(root)

    def task(number: int) -> dict[str, Any]:
        bucket = view.events(number, EVENT_COLUMNS)
        bucket = bucket.filter(bucket.events["timestamp_ms"].to_numpy() < NOW_MS)
        write_histories(out / f"bucket={number:04d}.parquet", as_lists(latest(in_sequence(bucket, domain), LENGTH)))
        return {}

    run_tasks(num_buckets, task)
    return time.perf_counter() - started


def _polars(what: str, files: list[Path], place: Path) -> dict[str, Any]:
    names = place / "files.txt"
    names.write_text("\n".join(map(str, files)))
    command = [sys.executable, "-m", "benchmarks.peers", what, str(names)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
    if done.returncode:
        raise click.ClickException(f"Polars failed: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@contextlib.contextmanager
def _warm_ray(place: Path) -> Iterator[None]:
    """A Ray of its own whose workers have done everything once."""
    with local_ray(spare_cpus=0):
        _small(place / "warm", 200_000)
        shutil.rmtree(place / "warm")
        yield


def _against_polars(place: Path, raw: list[Path], num_events: int, repeats: int) -> dict[str, Any]:
    ours: dict[str, list[float]] = {"import": [], "histories": []}
    polars: dict[str, list[float]] = {"histories": [], "end-to-end": []}
    for n in range(repeats):
        root, out = place / "big" / "root", place / "big" / "histories"
        shutil.rmtree(root, ignore_errors=True)
        ours["import"].append(_import(root, raw, num_events))
        ours["histories"].append(_histories(root, out))
        stored = [root / EVENTS / f["path"] for f in log_manifest(root / EVENTS)[1]["files"]]
        answer = _polars("histories", stored, place)
        polars["histories"].append(answer["seconds"])
        polars["end-to-end"].append(_polars("end-to-end", raw, place)["seconds"])
        made = pa.concat_tables(
            [pq.read_table(p, columns=["timestamp_ms"], partitioning=None) for p in sorted(out.iterdir())]
        )
        if checksum(made) != answer["sum"] or made.num_rows != answer["users"]:
            raise click.ClickException("our histories and those of Polars differ: one of the two is wrong")
        del made
        say(f"repeat {n + 1}: ours {_last(ours)}, Polars {_last(polars)}")
    total = [a + b for a, b in zip(ours["import"], ours["histories"], strict=True)]
    return {
        "ratio_vs_polars": statistics.median(ours["histories"]) / statistics.median(polars["histories"]),
        "end_to_end_vs_polars": statistics.median(total) / statistics.median(polars["end-to-end"]),
        "import_s": ours["import"],
        "histories_s": ours["histories"],
        "polars_histories_s": polars["histories"],
        "polars_end_to_end_s": polars["end-to-end"],
    }


def _last(seconds: dict[str, list[float]]) -> str:
    return ", ".join(f"{name} {values[-1]:.1f} s" for name, values in seconds.items())


def _memory(place: Path, raw: list[Path], num_events: int, repeats: int) -> dict[str, Any]:
    """Peak of import and histories, against that of a quarter of the events in a quarter of the buckets.

    Each run has a Ray of its own: workers keep memory that they used once, and would hide the next run's peak.
    """
    quarter = num_events // 4
    few = write_raw(place / "quarter" / "raw", quarter, max(quarter // EVENTS_PER_USER, 1), seed=1)
    peaks: dict[str, list[float]] = {"whole": [], "quarter": []}
    for n in range(repeats):
        for name, files, size in (("whole", raw, num_events), ("quarter", few, quarter)):
            with _warm_ray(place), PeakMemory() as memory:
                _import(place / name / "root", files, size)
                _histories(place / name / "root", place / name / "histories")
            shutil.rmtree(place / name / "root")
            peaks[name].append(round(memory.peak_bytes / 1e6))
        say(f"memory {n + 1}: {peaks['whole'][-1]:.0f} MB, a quarter {peaks['quarter'][-1]:.0f} MB")
    return {
        "memory_growth": statistics.median(peaks["whole"]) / statistics.median(peaks["quarter"]),
        "peak_mb": peaks["whole"],
        "peak_mb_of_a_quarter": peaks["quarter"],
    }


def _small(place: Path, num_events: int) -> Path:
    raw = write_raw(place / "raw", num_events, max(num_events // EVENTS_PER_USER, 1), seed=2)
    _import(place / "root", raw, num_events)
    _histories(place / "root", place / "histories")
    return place / "root"


def _against_map_groups(place: Path, repeats: int) -> dict[str, Any]:
    say(f"map_groups at {MAP_GROUPS_EVENTS:,} events")
    root = _small(place, MAP_GROUPS_EVENTS)
    stored = [str(root / EVENTS / f["path"]) for f in log_manifest(root / EVENTS)[1]["files"]]
    ours = [_histories(root, place / "histories") for _ in range(repeats)]
    theirs = [map_groups_histories(stored) for _ in range(repeats)]
    ratio = statistics.median(ours) / statistics.median(theirs)
    return {"ratio_vs_map_groups": ratio, "small_histories_s": ours, "map_groups_s": theirs}


def _against_expanded(place: Path) -> dict[str, Any]:
    """Bytes of a window pair against the same examples expanded: 10 requests of 20 items a user."""
    say("bytes against expanded rows")
    num_events = WINDOW_USERS * 120
    raw = write_raw(place / "raw", num_events, WINDOW_USERS, seed=3)
    rng = np.random.default_rng(4)
    n = WINDOW_USERS * REQUESTS_PER_USER
    day = START_MS + (DAYS - 1) * DAY_MS
    shown = rng.zipf(1.3, (n, ITEMS_PER_REQUEST)) % NUM_ITEMS
    requests = pa.table(
        {
            "request_id": [f"request-{r}" for r in range(n)],
            "user_id": [f"user-{r % WINDOW_USERS:07d}" for r in range(n)],
            "timestamp_ms": day + rng.integers(DAY_MS, size=n),
            "item_ids": pa.array([[f"item-{i:06d}" for i in row] for row in shown]),
        }
    )
    path = place / "requests.parquet"
    pq.write_table(requests, path)
    root = place / "root"
    _import(root, raw, num_events, [path])
    build(root, "w", Window(day, day + DAY_MS, LENGTH), read_root(root)[0])
    pair = sum(p.stat().st_size for p in (root / WINDOWS / "w").rglob("*.parquet"))
    expanded = expanded_bytes(root, "w", place / "rows")
    return {"bytes_vs_expanded": pair / expanded, "window_bytes": pair, "expanded_bytes": expanded}


def _table(result: dict[str, float], detail: dict[str, Any]) -> str:
    said = {
        "ratio_vs_polars": "histories from the stored log ÷ Polars in memory",
        "end_to_end_vs_polars": "raw files → checked, bucketed log → histories ÷ Polars scan, dedupe, histories",
        "ratio_vs_map_groups": "histories of 1,000,000 events ÷ `groupby().map_groups`",
        "memory_growth": "peak memory ÷ that of a quarter of the events in a quarter of the buckets",
        "bytes_vs_expanded": "bytes of a window ÷ a row per shown item with its sequence",
    }
    lines = ["| measure | what | result | at most |", "|---|---|---:|---:|"]
    lines += [f"| `{name}` | {said[name]} | {result[name]:.3f} | {FIELDS[name]} |" for name in FIELDS]
    lines += ["", "Seconds of each repeat: " + "; ".join(
        f"{name.removesuffix('_s')} {', '.join(f'{s:.1f}' for s in values)}"
        for name, values in detail.items() if name.endswith("_s")
    ) + "."]  # fmt: skip
    peak, quarter = (", ".join(map(str, detail[key])) for key in ("peak_mb", "peak_mb_of_a_quarter"))
    lines += [f"Peak memory in MB: {peak}; of a quarter {quarter}."]
    return "\n".join(lines)
