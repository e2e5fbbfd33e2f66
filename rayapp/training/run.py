"""One training run: Ray Train workers train, the driver calibrates and evaluates, and the model is published whole."""

import dataclasses
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import ray
import ray.train
import torch
from ray.exceptions import RayError
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer, get_device, prepare_model
from safetensors.torch import load_file

from rayapp import __version__
from rayapp.contracts.config import Domain
from rayapp.contracts.json_values import from_json, to_json
from rayapp.contracts.presets import Preset
from rayapp.contracts.schema import fingerprint
from rayapp.model.calibration import Calibration
from rayapp.model.scorer import Scorer
from rayapp.picture import draw_losses
from rayapp.pipeline.made_lists import is_made_up
from rayapp.pipeline.window_loader import WindowReader
from rayapp.registry.models import publish_model
from rayapp.revision import commit
from rayapp.root.facts import read_root
from rayapp.root.places import RUNS
from rayapp.root.publish import in_words
from rayapp.statistics.known import load_newest, newest_statistics, settings_of
from rayapp.training import TrainingError
from rayapp.training.evaluate import read_window, report, score_window
from rayapp.training.loop import POSITION, STATE, Loop
from rayapp.training.start import Start, start

TRAIN_LOG: Final = "train.jsonl"
FAILURE: Final = "failure.txt"
POSITION_TOLD: Final = ("examples", "seconds", "cpu_seconds", "loss", "best_loss", "stopped")
MAX_FAILURES: Final = 3
"""Workers that die are started again this often, from the last checkpoint."""
WORKER_ENVIRONMENT: Final = {"MALLOC_ARENA_MAX": "1"}
"""Ray Train runs the loop in a thread that is not the main one. There, glibc gives every large tensor back to the
kernel and faults its pages in again in the next step: 15 % of a step on CPUs (docs/log.md). With one arena it keeps
them."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TrainingRun:
    """What to train on what."""

    root: Path
    version: str
    preset: Preset
    train_windows: tuple[str, ...]
    validation_window: str
    """For the early stop and the calibration."""
    test_window: str
    item_table: str
    num_workers: int = 1
    init_from: str | None = None
    """A published model version: a warm start. Without it the weights are drawn."""

    def __post_init__(self) -> None:
        if self.preset.train.scope != "full" and self.init_from is None:
            raise TrainingError(
                f"scope {self.preset.train.scope!r} trains a part of a model that exists; name the one to start from"
            )

    @property
    def log(self) -> Path:
        """JSON lines of progress, readable while the run goes on."""
        return self.root / RUNS / self.version / TRAIN_LOG

    @property
    def settings(self) -> dict[str, Any]:
        """What a worker is told, as plain values; see `make_loop`."""
        warm = {} if self.init_from is None else {"init_from": self.init_from}
        return warm | {
            "root": str(self.root),
            "version": self.version,
            "preset": to_json(self.preset),
            "windows": self.train_windows,
            "validation_window": self.validation_window,
            "item_table": self.item_table,
        }


def train_and_publish(run: TrainingRun, domain: Domain) -> dict[str, Any]:
    """Trains with Ray Train (one process per worker, DDP from two on), evaluates, publishes `models/<version>`.

    Returns the metrics. Ray must be initialised; GPUs are used when the cluster has one per worker. A run that was
    killed goes on from its last checkpoint.

    Raises:
        TrainingError: training can't start, or can't go on; what is left of the run stays in `runs/<version>`.
    """
    begun = start(run.root, run.preset, run.item_table, domain, run.init_from)
    directory = run.log.parent
    directory.mkdir(parents=True, exist_ok=True)
    (directory / FAILURE).unlink(missing_ok=True)
    use_gpu = ray.cluster_resources().get("GPU", 0) >= run.num_workers
    cpus = max(1, (os.cpu_count() or 1) // run.num_workers)
    trainer = TorchTrainer(
        _worker,
        train_loop_config=run.settings,
        scaling_config=ScalingConfig(
            num_workers=run.num_workers, use_gpu=use_gpu, resources_per_worker={"CPU": cpus, "GPU": int(use_gpu)}
        ),
        run_config=RunConfig(
            name="ray",  # a fixed name in a directory of the run's own: Ray Train finds the last checkpoint there
            storage_path=str(directory),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            worker_runtime_env={"env_vars": WORKER_ENVIRONMENT},
        ),
    )
    try:
        result = trainer.fit()
    except TrainingFailedError as error:
        if (known := stopped_by(error)) is None:
            raise
        raise TrainingError(f"training {run.version} stopped: {known}. Its log is {run.log}") from None
    if (directory / FAILURE).exists():
        raise TrainingError(f"{(directory / FAILURE).read_text()}. The run's log is {run.log}")
    if result.checkpoint is None:
        raise TrainingError(f"training {run.version} ended without a checkpoint: {result.error}")
    with result.checkpoint.as_directory() as checkpoint:
        state = load_file(Path(checkpoint) / STATE)
        position = json.loads((Path(checkpoint) / POSITION).read_text())["position"]
    begun.ranker.load_state_dict({k.removeprefix("best/"): v for k, v in state.items() if k.startswith("best/")})
    metrics = evaluate_and_publish(run, begun, domain, position, "GPU" if use_gpu else "CPU")
    shutil.rmtree(directory, ignore_errors=True)
    return metrics


def train_here(run: TrainingRun, domain: Domain) -> dict[str, Any]:
    """`train_and_publish` in this process, on the CPU and without checkpoints: for a model so small that the start of
    workers takes longer than its training.

    Raises:
        TrainingError: training can't go on.
    """
    directory = run.log.parent
    shutil.rmtree(directory, ignore_errors=True)  # of a run that was killed
    directory.mkdir(parents=True)
    begun = start(run.root, run.preset, run.item_table, domain, run.init_from)
    position = _loop_of(begun, run.settings, domain, torch.device("cpu"), log=run.log).run()
    metrics = evaluate_and_publish(run, begun, domain, to_json(position), "CPU")
    shutil.rmtree(directory, ignore_errors=True)
    return metrics


def stopped_by(error: TrainingFailedError) -> TrainingError | None:
    """What stopped the workers, or Ray Train beside them, where somebody can do something about it; None for a bug."""
    for cause in [*getattr(error, "worker_failures", {}).values(), getattr(error, "controller_failure", None)]:
        if isinstance(cause, OSError):
            return TrainingError(in_words(cause))
        if isinstance(cause, RayError):
            return TrainingError(f"a worker died {MAX_FAILURES + 1} times: {str(cause).splitlines()[0]}")
    return None


def evaluate_and_publish(
    run: TrainingRun, begun: Start, domain: Domain, position: dict[str, Any], device: str
) -> dict[str, Any]:
    """Calibrates on the validation window, evaluates on the test window, writes the model directory."""
    ranker, inputs = begun.ranker, begun.inputs
    scorer = Scorer(ranker.eval(), inputs, Calibration.none(len(domain.heads)))
    validation = read_window(run.root, run.validation_window, domain)
    logit_NH = score_window(scorer, run.root, run.validation_window, domain)[validation.valid_RC]
    calibration = Calibration.fit(logit_NH, validation.label_RCH[validation.valid_RC])
    scorer = dataclasses.replace(scorer, calibration=calibration)
    test = read_window(run.root, run.test_window, domain)
    heads = report(test, score_window(scorer, run.root, run.test_window, domain), domain)
    metrics = {
        "test_window": run.test_window,
        "heads": {h: {k: None if np.isnan(v) else v for k, v in row.items()} for h, row in heads.items()},
        "train": {
            "steps": position["step"],
            **{k: position[k] for k in POSITION_TOLD},
            "examples_a_parameter": position["examples"] / begun.num_trained,
        },
    }
    windows = (*run.train_windows, run.validation_window, run.test_window)
    lineage = {
        "created_at_ms": time.time_ns() // 1_000_000,
        "rayapp": __version__,
        "commit": commit(),
        "preset": to_json(run.preset),
        "train_windows": list(run.train_windows),
        "validation_window": run.validation_window,
        "test_window": run.test_window,
        "parent": run.init_from,
        "scope": run.preset.train.scope,
        "drawn": list(begun.drawn),
        "made_up_lists": [name for name in windows if is_made_up(run.root, name)],
        "statistics": {"read": newest_statistics(run.root, domain), **settings_of(domain)},
        "device": device,
        "num_workers": run.num_workers,
    }

    def history(directory: Path) -> None:
        shutil.copy(run.log, directory / TRAIN_LOG)
        draw_losses(run.log, directory / "training.svg")

    publish_model(
        run.root,
        run.version,
        ranker=ranker,
        config=run.preset.model,
        domain=domain,
        encoders=inputs.encoders,
        calibration=calibration,
        item_table=run.item_table,
        metrics=metrics,
        lineage=lineage,
        more=history if run.log.exists() else None,
    )
    return metrics


def make_loop(settings: dict[str, Any], domain: Domain, device: torch.device, **workers: Any) -> Loop:
    """The loop of a run's `settings`: what a Ray Train worker runs, and what the bench `train` runs bare."""
    root, preset = Path(settings["root"]), from_json(Preset, settings["preset"])
    begun = start(root, preset, settings["item_table"], domain, settings.get("init_from"))
    return _loop_of(begun, settings, domain, device, **workers)


def _loop_of(begun: Start, settings: dict[str, Any], domain: Domain, device: torch.device, **workers: Any) -> Loop:
    root, preset = Path(settings["root"]), from_json(Preset, settings["preset"])
    length, rate = preset.model.history_length, preset.train.negative_rate
    statistics = load_newest(root, domain)
    return Loop(
        begun.ranker,
        begun.inputs.to(device),
        domain,
        preset.train,
        WindowReader(
            root,
            settings["windows"],
            domain,
            length,
            statistics=statistics,
            negative_rate=rate,
            time_mask_ms=preset.train.time_mask_ms,
        ),
        WindowReader(root, [settings["validation_window"]], domain, length, statistics=statistics),
        run=fingerprint(settings),
        warm=settings.get("init_from") is not None,
        **workers,
    )


def _worker(settings: dict[str, Any]) -> None:
    """What every Ray Train worker runs."""
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    root = Path(settings["root"])
    domain, _ = read_root(root)
    log = root / RUNS / settings["version"] / TRAIN_LOG
    loop = make_loop(settings, domain, get_device(), rank=rank, world=world, prepare=prepare_model, log=log)

    def checkpoint() -> None:
        with tempfile.TemporaryDirectory() as directory:
            saved = None
            if rank == 0:
                loop.save(Path(directory))
                saved = Checkpoint.from_directory(directory)
            ray.train.report({"step": loop.position.step}, checkpoint=saved)

    try:
        if (last := ray.train.get_checkpoint()) is not None:
            with last.as_directory() as directory:
                loop.restore(Path(directory))
        loop.run(checkpoint)
    except TrainingError as error:  # the same again on every try, so none is made; the driver reads it
        if rank == 0:
            (log.parent / FAILURE).write_text(str(error))
