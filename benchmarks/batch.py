"""Bench `batch`: the batch job against plain processes that run the same scorer side by side, and its memory at
four times the rows."""

import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from benchmarks.memory import PeakMemory
from rayapp.batch.job import InputKind, Job, Workspace, workspace
from rayapp.batch.score import ScorerPool, job_of_files, parts_of, run_job, score_parts, stage_input
from rayapp.contracts.config import DAY_MS, Domain
from rayapp.contracts.presets import PRESETS
from rayapp.contracts.schema import attribute_fields
from rayapp.features.attributes import AttributeEncoder, Encoders
from rayapp.importing.domains import load_domain
from rayapp.launch.runtime import local_ray
from rayapp.loop.first_import import import_once
from rayapp.model.calibration import Calibration
from rayapp.model.inputs import items_as_table
from rayapp.model.item_table import ItemTable
from rayapp.model.ranker import Ranker
from rayapp.model.tower import NUM_TOKENS, LinearTower
from rayapp.pipeline.statistics import count_statistics
from rayapp.pipeline.tasks import quiet, run_tasks
from rayapp.record import Bars, say, tell
from rayapp.registry.item_tables import publish_table
from rayapp.registry.models import publish_model
from rayapp.root.catalogue import read_catalogue, read_users
from rayapp.root.logs import read_log
from rayapp.root.places import EVENTS
from rayapp.root.publish import read_json, write_json
from rayapp.sources.synthetic import World, write_world

WORLD: Final = World(num_users=400, num_items=400, num_days=8)
PRESET: Final = "study"
PROCESSES: Final = 2
ROWS: Final = 48_000
ROWS_PER_PART: Final = 1_500
GROWTH: Final = 4
REPEATS: Final = 3
LIMITS: Final = {
    "parallel_efficiency": ("rows/s of the job ÷ of two plain processes side by side", "≥ 0.75"),
    "memory_growth": (f"peak memory at {GROWTH} times the rows ÷ at once the rows", "≤ 1.3"),
}
PLAIN: Final = (
    "import sys, torch\n"
    "from pathlib import Path\n"
    "from rayapp.batch.job import Workspace\n"
    "from rayapp.batch.part import PartScorer\n"
    "torch.set_num_threads(1)\n"
    "scorer = PartScorer(Workspace.read(Path(sys.argv[1])), torch.device('cpu'))\n"
    "for part in sys.argv[2:]:\n"
    "    scorer.score(int(part))\n"
)


def run_batch(as_json: bool, write: Path | None) -> None:
    with tempfile.TemporaryDirectory(prefix="rayapp-bench-") as directory:
        place = Path(directory)
        root = place / "root"
        with local_ray(spare_cpus=0):
            say("make and import the synthetic world")
            domain = make_root_with_model(root, place)
            say("the job and plain processes, by turns")
            detail: dict[str, Any] = _speeds(root, place)
            if torch.cuda.is_available():
                detail |= _on_gpu(root, place)
        for times in (1, GROWTH):
            say(f"memory at {times} times the rows")
            with local_ray(spare_cpus=0):  # workers of an earlier job must not count as idle
                detail[f"memory_{times}x_mb"] = _peak_mb(root, place, times)
    assert domain.heads
    job_s, plain_s = (statistics.median(detail[name]) for name in ("job_s", "plain_s"))
    result = {
        "parallel_efficiency": plain_s / job_s,
        "memory_growth": detail[f"memory_{GROWTH}x_mb"] / detail["memory_1x_mb"],
    }
    detail["job_rows_per_s"], detail["plain_rows_per_s"] = detail["rows"] / job_s, detail["rows"] / plain_s
    line = {"bench": "batch", "preset": PRESET, **{k: round(v, 4) for k, v in result.items()}, "detail": detail}
    speeds = {name: [detail[f"{key}_rows_per_s"]] for name, key in (("job", "job"), ("two processes", "plain"))}
    bars = Bars("rows/s", ["2 cores"], speeds)
    tell(line, _table(result, detail), "Batch scoring", bars, as_json=as_json, write=write)


def make_root_with_model(root: Path, place: Path) -> Domain:
    """A synthetic world with statistics, and a model of the preset's size that was never trained: it costs the same."""
    domain_file = load_domain("synthetic")
    domain, preset = domain_file.domain, PRESETS[PRESET]()
    import_once(root, domain_file, lambda: write_world(WORLD, place / "raw", run_tasks))
    count_statistics(root, domain)
    rng, width = np.random.default_rng(0), preset.model.item_dim
    items = read_catalogue(root).to_pylist()
    tower = LinearTower(rng.normal(size=(NUM_TOKENS, width)).astype(np.float32), domain.attributes)
    table = ItemTable.make("bench", tower, items, np.zeros(len(items), np.int64), tower.embed(items), WORLD.start_ms)
    publish_table(root, table, {})
    no_context = pa.schema(attribute_fields(domain.context_attributes)).empty_table()
    encoders = Encoders(
        AttributeEncoder.fit(items_as_table(table), domain.attributes),
        AttributeEncoder.fit(read_users(root, domain), domain.user_attributes),
        AttributeEncoder.fit(no_context, domain.context_attributes),
    )
    torch.manual_seed(0)
    publish_model(
        root,
        "bench",
        ranker=Ranker(preset.model, encoders, domain),
        config=preset.model,
        domain=domain,
        encoders=encoders,
        calibration=Calibration.none(len(domain.heads)),
        item_table="bench",
        metrics={},
        lineage={"created_at_ms": 0},
    )
    return domain


def _pairs(root: Path, path: Path, num_rows: int) -> Path:
    """Every user with as many items as it takes; more rows are more users of the same histories' length."""
    if path.exists():
        return path
    events = read_log(root, EVENTS, ["user_id", "item_id"])
    users, items = (pc.unique(events[name]) for name in ("user_id", "item_id"))
    n = np.arange(num_rows)
    rows = {
        "user_id": users.take(pa.array(n % len(users))),
        "item_id": items.take(pa.array(n // len(users) % len(items))),
    }
    pq.write_table(pa.table(rows), path)
    return path


def _job(root: Path, file: Path) -> tuple[Job, list[Path]]:
    files, stamps = job_of_files([file])
    as_of_ms = WORLD.start_ms + WORLD.num_days * DAY_MS
    made = Job(
        root=str(root),
        kind=InputKind.PAIRS,
        inputs=stamps,
        model_version="bench",
        as_of_ms=as_of_ms,
        rows_per_part=ROWS_PER_PART,
    )
    return made, files


def _speeds(root: Path, place: Path) -> dict[str, Any]:
    """Seconds of both ways for the same parts, from their start, imports and loading included, to the last part."""
    job, files = _job(root, _pairs(root, place / "pairs.parquet", ROWS))
    seconds: dict[str, list[float]] = {"job_s": [], "plain_s": []}
    with workspace(place / "speed", job, overwrite=False) as work:
        staged = stage_input(work, files, time.time_ns() // 1_000_000, lambda _title: quiet)
        write_json(work.directory / "staged.json", staged)
        parts = parts_of(work, staged)
        for _ in range(REPEATS):
            seconds["plain_s"].append(_timed(lambda: _plain(work.directory, parts)))
            seconds["job_s"].append(_timed(lambda: score_parts(parts, work, ScorerPool(PROCESSES))))
        rows = _scored(work)
    return {**seconds, "rows": rows, "parts": len(parts)}


def _scored(work: Workspace) -> int:
    return sum(int(read_json(work.record_path(part))["scored"]) for part in work.finished())


def _timed(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _plain(directory: Path, parts: list[int]) -> None:
    running = [
        subprocess.Popen([sys.executable, "-c", PLAIN, str(directory), *map(str, parts[n::PROCESSES])])
        for n in range(PROCESSES)
    ]
    codes = [process.wait() for process in running]
    assert codes == [0] * PROCESSES, codes


def _peak_mb(root: Path, place: Path, times: int) -> float:
    job, files = _job(root, _pairs(root, place / f"pairs-{times}.parquet", times * ROWS // 2))
    with PeakMemory() as memory:
        run_job(job, files, place / f"out-{times}", ScorerPool(PROCESSES), now_ms=time.time_ns() // 1_000_000)
    shutil.rmtree(place / f"out-{times}")
    return memory.peak_bytes / 1e6


def _on_gpu(root: Path, place: Path) -> dict[str, Any]:
    """Rows a second of one actor with a GPU, and the share of the time the GPU was busy."""
    job, files = _job(root, _pairs(root, place / "pairs-gpu.parquet", ROWS * GROWTH))
    busy: list[float] = []
    ended = threading.Event()

    def watch() -> None:
        ask = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        while not ended.wait(0.2):
            done = subprocess.run(ask, capture_output=True, text=True, check=False)
            busy.extend(float(line) for line in done.stdout.split()[:1])

    watcher = threading.Thread(target=watch, daemon=True)
    with workspace(place / "gpu", job, overwrite=False) as work:
        staged = stage_input(work, files, time.time_ns() // 1_000_000, lambda _title: quiet)
        write_json(work.directory / "staged.json", staged)
        watcher.start()
        seconds = _timed(lambda: score_parts(parts_of(work, staged), work, ScorerPool(1, gpus_each=1.0)))
        ended.set()
        rows = _scored(work)
    return {"gpu_rows_per_s": rows / seconds, "gpu_busy_share": statistics.mean(busy) / 100 if busy else None}


def _table(result: dict[str, float], detail: dict[str, Any]) -> str:
    lines = ["| measure | what | result | wanted |", "|---|---|---:|---:|"]
    lines += [f"| `{name}` | {what} | {result[name]:.2f} | {limit} |" for name, (what, limit) in LIMITS.items()]
    spread = ", ".join(
        f"{said} {', '.join(f'{s:.1f}' for s in detail[key])} s"
        for said, key in (("job", "job_s"), ("plain", "plain_s"))
    )
    gpu = (
        f" On one GPU: {detail['gpu_rows_per_s']:,.0f} rows/s, busy {detail['gpu_busy_share']:.0%} of the time."
        if detail.get("gpu_busy_share") is not None
        else ""
    )
    lines += [
        "",
        f"Preset `{PRESET}`, untrained; {detail['rows']:,} pairs of {WORLD.num_users} users, {detail['parts']} parts. "
        f"Rows/s: job {detail['job_rows_per_s']:,.0f}, two processes {detail['plain_rows_per_s']:,.0f} ({spread}; both "
        f"from their start, model loading included, Ray itself running). Peak memory above idle Ray: "
        f"{detail['memory_1x_mb']:,.0f} MB for {ROWS // 2:,} rows, {detail[f'memory_{GROWTH}x_mb']:,.0f} MB for "
        f"{GROWTH * ROWS // 2:,}.{gpu}",
    ]
    return "\n".join(lines)
