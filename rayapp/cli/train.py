"""`rayapp train`: the steps from an imported log to a champion, told one by one."""

import contextlib
import json
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from rayapp.contracts.config import Domain
from rayapp.contracts.presets import COUNTS, NO_SEQUENCE, PRESETS, Preset, variant
from rayapp.launch.runtime import local_ray
from rayapp.loop.choose_by_recall import recall_table
from rayapp.loop.first_training import Done, nothing, split_of, train_first
from rayapp.loop.plan import Split
from rayapp.pipeline.made_lists import told_lists
from rayapp.pipeline.restore import seed_store
from rayapp.root.facts import read_root
from rayapp.root.publish import exclusive
from rayapp.training.evaluate import Report
from rayapp.training.run import TrainingRun


class Steps:
    """Numbers the steps of a first training and says how long each took."""

    def __init__(self, count: int) -> None:
        self._count, self._number = count, 0

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[Done]:
        self._number += 1
        click.echo(f"[{self._number}/{self._count}] {title} … ", nl=False)
        started, worked = time.monotonic(), True

        def done(did_work: bool, /) -> None:
            nonlocal worked
            worked = did_work

        yield done
        click.echo(f"{time.monotonic() - started:.1f} s" if worked else "done before")

    @contextlib.contextmanager
    def training(self, run: TrainingRun) -> Iterator[None]:
        """Shows steps, loss and the time left while another process trains: its log is followed."""
        ended = threading.Event()
        thread = threading.Thread(target=_follow, args=(run.log, ended), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _follow(log: Path, ended: threading.Event) -> None:
    shown = 0.0
    while not ended.wait(1.0):
        try:
            lines = [json.loads(line) for line in log.read_text().splitlines() if '"num_steps"' in line]
            line = lines[-1]
        except (OSError, IndexError, ValueError):
            continue  # not written yet
        share = line["step"] / max(line["num_steps"], 1)
        if share - shown >= 0.2 or (sys.stdout.isatty() and share > shown):
            shown = share
            left_s = line["seconds"] * (1 - share) / max(share, 1e-6)
            text = f"{share:4.0%}  loss {line['loss']:.4f}  {left_s:3.0f} s left "
            click.echo(f"\r      {text}" if sys.stdout.isatty() else f"{share:.0%} ({left_s:.0f} s left) … ", nl=False)
            sys.stdout.flush()


def run_train(
    root: Path,
    preset_name: str,
    num_epochs: int | None,
    variant_name: str,
    seed: int,
    num_workers: int,
    moments: tuple[int | None, ...],
) -> None:
    domain, _ = read_root(root)
    preset = variant(PRESETS[preset_name]().with_epochs(num_epochs), variant_name).seeded(seed)
    steps = Steps(9 if variant_name not in (NO_SEQUENCE, COUNTS) else 8)
    with exclusive(root, "training"):
        split = split_of(root, *moments)
        with steps.step("start Ray"):
            ray_session = contextlib.ExitStack()
            ray_session.enter_context(local_ray())
        with ray_session:
            train_and_tell(root, domain, preset, split, steps, num_workers)
            with steps.step("seed the sequence store from the log") as done:
                done(seed_store(root)[1])
    click.echo(f"`rayapp serve --root {root}` serves it")


def train_and_tell(
    root: Path,
    domain: Domain,
    preset: Preset,
    split: Split,
    steps: Steps,
    num_workers: int = 1,
    baselines_ready: Callable[[], None] = nothing,
) -> None:
    """The first training, and the table of its metrics."""
    trained = train_first(root, domain, preset, split, steps, num_workers, baselines_ready)
    click.echo()
    if trained.recalls is None:
        click.echo(metric_table(trained.reports, domain, trained.test_window))
    else:
        click.echo(recall_table(trained.recalls, told_lists(root, trained.test_window)))
    for name, told in trained.trainings.items():
        click.echo(f"{name}: {told}")
    for choice in trained.choices:
        if choice.why:
            click.echo(choice.why)


def metric_table(rows: dict[str, Report], domain: Domain, window: str) -> str:
    """The comparison on the test window: AUC and HIT@3 per head (HIT@3 of a negative head: lower is better)."""
    head = "".join(f"{name + ' AUC':>15}{'HIT@3':>8}" for name in domain.head_names)
    width = max(map(len, rows), default=0) + 1
    lines = [f"test window {window}", f"{'':{width}}{head}"]
    for name, metrics in rows.items():
        cells = "".join(f"{_text(metrics[h]['auc']):>15}{_text(metrics[h]['hit3']):>8}" for h in domain.head_names)
        lines.append(f"{name:{width}}{cells}")
    return "\n".join(lines)


def _text(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.4f}"
