"""Bench `train`: request-centred training against a row per shown item, and Ray Train against a plain loop."""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks.expanded import read_expanded, write_expanded
from benchmarks.train_gpu import measure_gpu, told_of
from rayapp.contracts.config import Domain
from rayapp.contracts.presets import PRESETS, Preset, variant
from rayapp.importing.domains import load_domain
from rayapp.launch.runtime import local_ray
from rayapp.loop.artifacts import Prepared, build_windows, item_table, training_run
from rayapp.loop.first_import import import_once
from rayapp.loop.first_training import split_of
from rayapp.pipeline.tasks import run_tasks
from rayapp.pipeline.window_loader import RequestBatch, WindowReader
from rayapp.record import Bars, say, tell
from rayapp.sources.synthetic import World, write_world
from rayapp.training.loop import Loop
from rayapp.training.run import TrainingRun, make_loop, train_and_publish

WORLD: Final = World(num_users=400, num_days=12, list_size=20, sessions_per_day=1.0)
STEP_REQUESTS: Final = 32
"""Of a timed training step, 20 shown items each: at the published sizes a CPU holds no more in its caches."""
LOADER_REPEATS: Final = 5
SMALL: Final = "study"
"""Preset of the comparison with a plain loop: the smaller the step, the more an overhead would show."""
LIMITS: Final = {
    "loader_speedup": ("examples/s of the loader ÷ of rows with their sequence", "≥ 3"),
    "train_speedup_cross": ("examples/s of whole steps of `cross` ÷ the same on expanded rows", "≥ 4"),
    "train_speedup_concat": ("the same of V1.1, whose candidate is in every row", "–"),
    "ray_overhead": ("seconds with Ray Train, 1 worker ÷ the same loop without it", "≤ 1.15"),
}


def run_train(preset_name: str, steps: int, as_json: bool, write: Path | None) -> None:
    preset = PRESETS[preset_name]()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gpu: dict[str, Any] | None = None
    with tempfile.TemporaryDirectory(prefix="rayapp-bench-") as directory:
        root = Path(directory) / "root"
        domain_file = load_domain("synthetic")
        domain = domain_file.domain
        with local_ray():
            say("make and import the synthetic world")
            import_once(root, domain_file, lambda: write_world(WORLD, Path(directory) / "raw", run_tasks))
            prepared, _ = build_windows(root, domain, split_of(root))
            tables = {name: item_table(root, prepared, PRESETS[name]())[0] for name in {preset_name, SMALL}}
            say("Ray Train and a plain loop")
            small = training_run(root, prepared, PRESETS[SMALL](), tables[SMALL])
            detail: dict[str, Any] = _ray_overhead(small, domain, device)
            if device.type == "cuda":
                say(f"train {preset_name} on the GPU")
                gpu = measure_gpu(training_run(root, prepared, preset, tables[preset_name]), domain)
        detail |= _loader(root, prepared, domain, preset, tables[preset_name], Path(directory))
        for key, name in (("cross", "cross"), ("concat", "v1.1")):
            run = training_run(root, prepared, variant(preset, name), tables[preset_name])
            detail |= {f"{key}_{k}": v for k, v in _steps(run, domain, device, Path(directory), steps).items()}
    result = {
        "loader_speedup": detail["loader_centred_per_s"] / detail["loader_expanded_per_s"],
        "train_speedup_cross": detail["cross_centred_per_s"] / detail["cross_expanded_per_s"],
        "train_speedup_concat": detail["concat_centred_per_s"] / detail["concat_expanded_per_s"],
        "ray_overhead": detail["ray_s"] / detail["plain_s"],
    }
    rounded = {name: round(value, 4) for name, value in result.items()}
    line = {"bench": "train", "preset": preset_name, **rounded, "detail": detail, "gpu": gpu}
    text = _table(result, detail, preset_name)
    text += f"\n\n{told_of(gpu, preset_name) if gpu else 'On a GPU: not measured, there was none.'}"
    speedups = [name for name in result if name != "ray_overhead"]
    bars = Bars("times as fast", speedups, {"request-centred": [result[name] for name in speedups]})
    tell(line, text, "Training, request-centred", bars, as_json=as_json, write=write)


def _ray_overhead(run: TrainingRun, domain: Domain, device: torch.device) -> dict[str, float]:
    """Seconds from the first step to the last one, the workers' start left out, which takes seconds and is told too."""
    plain = make_loop(run.settings, domain, device, prepare=lambda module: module.to(device))
    plain_s = plain.run().seconds
    started = time.monotonic()
    ray_s = float(train_and_publish(run, domain)["train"]["seconds"])
    return {"plain_s": plain_s, "ray_s": ray_s, "ray_whole_s": time.monotonic() - started}


def _loader(
    root: Path, prepared: Prepared, domain: Domain, preset: Preset, table: str, place: Path
) -> dict[str, float]:
    say("loading, request-centred and expanded")
    reader = WindowReader(root, list(prepared.train_windows), domain, preset.model.history_length)
    write_expanded(reader, _file(place))
    loop = make_loop(training_run(root, prepared, preset, table).settings, domain, torch.device("cpu"))

    def rate(batches: Callable[[], Iterator[RequestBatch]]) -> float:
        times, examples = [], 0
        for _ in range(LOADER_REPEATS):
            started, examples = time.perf_counter(), 0
            for batch in batches():
                loop.inputs.batch(batch.requests)
                examples += len(batch.label_NH)
            times.append(time.perf_counter() - started)
        return examples / statistics.median(times)

    rows = preset.train.batch_requests * WORLD.list_size
    return {
        "loader_centred_per_s": rate(lambda: reader.batches(preset.train.batch_requests, seed=0, epoch=0)),
        "loader_expanded_per_s": rate(lambda: read_expanded(_file(place), rows, _context(domain))),
    }


def _steps(run: TrainingRun, domain: Domain, device: torch.device, place: Path, steps: int) -> dict[str, float]:
    """Examples a second of whole training steps, each from its own loader; the first step warms up."""
    say(f"training steps of {run.preset.variant}")

    def rate(loop: Loop, batches: Iterator[RequestBatch]) -> float:
        times, examples = [], []
        for _ in range(steps + 1):
            started = time.perf_counter()
            batch = next(batches)
            loop.step(batch)
            times.append(time.perf_counter() - started)
            examples.append(len(batch.label_NH))
        return sum(examples[1:]) / sum(times[1:])

    centred, expanded = (
        make_loop(run.settings, domain, device, prepare=lambda module: module.to(device)) for _ in range(2)
    )
    rows = STEP_REQUESTS * WORLD.list_size
    return {
        "centred_per_s": rate(centred, centred.train.batches(STEP_REQUESTS, seed=0, epoch=0)),
        "expanded_per_s": rate(expanded, read_expanded(_file(place), rows, _context(domain))),
    }


def _file(place: Path) -> Path:
    return place / "expanded.parquet"


def _context(domain: Domain) -> list[str]:
    return ["timestamp_ms", *(a.name for a in domain.context_attributes)]


def _table(result: dict[str, float], detail: dict[str, Any], preset: str) -> str:
    lines = ["| measure | what | result | wanted |", "|---|---|---:|---:|"]
    lines += [f"| `{name}` | {what} | {result[name]:.2f} | {limit} |" for name, (what, limit) in LIMITS.items()]
    per_s = {name.removesuffix("_per_s"): f"{v:,.0f}" for name, v in detail.items() if name.endswith("_per_s")}
    lines += [
        "",
        f"Preset `{preset}`, requests of {WORLD.list_size} items, {STEP_REQUESTS} requests a step. Examples a second: "
        + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in per_s.items())
        + f". Ray Train {detail['ray_s']:.1f} s of steps, {detail['ray_whole_s']:.1f} s with its start, evaluation and "
        f"publication; the plain loop {detail['plain_s']:.1f} s.",
    ]
    return "\n".join(lines)
