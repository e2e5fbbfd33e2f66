"""One training run: Ray Train workers train, the driver evaluates, and the model is published whole."""

import dataclasses
import json
import os
import shutil
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train import Checkpoint, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device, prepare_model
from safetensors.torch import load_file, save_file

from rayapp import __version__
from rayapp.config import Domain, Preset, TrainConfig, model_config_from_json, to_json
from rayapp.features.items import ItemEncoder
from rayapp.model.scorer import ItemArrays
from rayapp.pipeline.reader import WindowReader
from rayapp.registry.item_tables import load_table
from rayapp.registry.models import build_ranker, publish_model
from rayapp.root import read_root
from rayapp.training.evaluate import report, score_popularity, score_window
from rayapp.training.loop import train

TRAIN_LOG = "train.jsonl"
WEIGHTS = "weights.safetensors"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TrainingRun:
    """What to train on what."""

    root: Path
    version: str
    preset: Preset
    train_windows: tuple[str, ...]
    test_window: str
    item_table: str
    num_workers: int = 1

    @property
    def log(self) -> Path:
        """JSON lines of progress, readable while the run goes on."""
        return self.root / "runs" / self.version / TRAIN_LOG


def train_and_publish(run: TrainingRun, domain: Domain) -> dict[str, Any]:
    """Trains with Ray Train (one process per worker, DDP from two on), evaluates, publishes `models/<version>`.

    Returns the metrics. Ray must be initialised; GPUs are used when the cluster has one per worker.
    """
    directory = run.log.parent
    shutil.rmtree(directory, ignore_errors=True)  # of a run that was killed
    directory.mkdir(parents=True)
    use_gpu = ray.cluster_resources().get("GPU", 0) >= run.num_workers
    cpus = max(1, (os.cpu_count() or 1) // run.num_workers)
    trainer = TorchTrainer(
        _worker,
        train_loop_config={
            "root": str(run.root),
            "windows": run.train_windows,
            "item_table": run.item_table,
            "preset": to_json(run.preset),
            "log": str(run.log),
        },
        scaling_config=ScalingConfig(
            num_workers=run.num_workers, use_gpu=use_gpu, resources_per_worker={"CPU": cpus, "GPU": int(use_gpu)}
        ),
        run_config=RunConfig(name=f"{run.version}-{uuid.uuid4().hex[:8]}", storage_path=str(directory / "ray")),
    )
    result = trainer.fit()
    if result.checkpoint is None:
        raise RuntimeError(f"training {run.version} ended without a checkpoint: {result.error}")
    table = load_table(run.root, run.item_table)
    encoder = ItemEncoder.fit(table.items, domain.attributes)
    ranker = build_ranker(run.preset.model, domain.vocabulary, len(domain.heads), encoder)
    with result.checkpoint.as_directory() as checkpoint:
        ranker.load_state_dict(load_file(Path(checkpoint) / WEIGHTS))
    reader = WindowReader(run.root, [run.test_window], domain, run.preset.model.history_length)
    metrics = {
        "test_window": run.test_window,
        "heads": report(score_window(ranker, reader, table, ItemArrays.of(table, encoder), domain), domain),
        "train": json.loads(run.log.read_text().splitlines()[-1]),
    }
    publish_model(
        run.root,
        run.version,
        ranker=ranker,
        config=run.preset.model,
        domain=domain,
        encoder=encoder,
        item_table=run.item_table,
        metrics=metrics,
        lineage={
            "created_at_ms": time.time_ns() // 1_000_000,
            "rayapp": __version__,
            "preset": to_json(run.preset),
            "train_windows": list(run.train_windows),
            "test_window": run.test_window,
            "parent": None,
            "rate_snapshot": None,
            "device": "GPU" if use_gpu else "CPU",
            "num_workers": run.num_workers,
        },
    )
    shutil.rmtree(directory, ignore_errors=True)
    return metrics


def popularity_metrics(root: Path, domain: Domain, test_window: str, item_table: str) -> dict[str, dict[str, float]]:
    """The comparison without a model, on the same requests."""
    reader = WindowReader(root, [test_window], domain, history_length=1)
    scored = score_popularity(reader, load_table(root, item_table), domain)
    return report(scored, domain, score_RC=scored.probability_RCH[:, :, 0])


def _worker(settings: dict[str, Any]) -> None:
    """What every Ray Train worker runs."""
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    root = Path(settings["root"])
    domain, _ = read_root(root)
    values = settings["preset"]
    preset = Preset(
        name=values["name"], model=model_config_from_json(values["model"]), train=TrainConfig(**values["train"])
    )
    table = load_table(root, settings["item_table"])
    encoder = ItemEncoder.fit(table.items, domain.attributes)
    rate = preset.train.negative_rate
    reader = WindowReader(root, settings["windows"], domain, preset.model.history_length, negative_rate=rate)
    torch.manual_seed(preset.train.seed)
    ranker = build_ranker(preset.model, domain.vocabulary, len(domain.heads), encoder)
    last = train(
        ranker,
        reader,
        table,
        ItemArrays.of(table, encoder).to(get_device()),
        domain,
        preset,
        rank=rank,
        world=world,
        prepare=prepare_model,
        log=Path(settings["log"]),
    )
    with tempfile.TemporaryDirectory() as directory:
        checkpoint = None
        if rank == 0:
            weights = {k: v.cpu().contiguous() for k, v in ranker.state_dict().items()}
            save_file(weights, Path(directory) / WEIGHTS)
            checkpoint = Checkpoint.from_directory(directory)
        ray.train.report(last.to_json(), checkpoint=checkpoint)
