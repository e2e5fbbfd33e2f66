"""`rayapp train`: the stages from an imported log to a champion, told one by one."""

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
from rayapp.contracts.presets import NO_SEQUENCE, PRESETS, Preset, variant
from rayapp.launch.runtime import local_ray
from rayapp.loop.workflow import Split, build_windows, item_table, seed_store, split_of, train_model, training_run
from rayapp.registry.aliases import BASELINE, CHAMPION, promote, read_aliases
from rayapp.registry.item_tables import load_table
from rayapp.root.facts import read_root
from rayapp.root.places import MODELS
from rayapp.root.publish import exclusive, read_json
from rayapp.training.evaluate import Report, read_window, report, score_popularity
from rayapp.training.run import TrainingRun


class Stages:
    """Numbers the stages and says how long each took."""

    def __init__(self, count: int) -> None:
        self._count, self._number = count, 0

    @contextlib.contextmanager
    def stage(self, title: str) -> Iterator[Callable[[bool], None]]:
        """Yields a function that is told whether the stage had anything to do."""
        self._number += 1
        click.echo(f"[{self._number}/{self._count}] {title} … ", nl=False)
        started, worked = time.monotonic(), True

        def tell(did_work: bool) -> None:
            nonlocal worked
            worked = did_work

        yield tell
        click.echo(f"{time.monotonic() - started:.1f} s" if worked else "done before")


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
    stages = Stages(7 if variant_name != NO_SEQUENCE else 6)
    with exclusive(root, "training"):
        split = split_of(root, *moments)
        with stages.stage("start Ray"):
            ray_session = contextlib.ExitStack()
            ray_session.enter_context(local_ray())
        with ray_session:
            train_stages(root, domain, preset, split, stages, num_workers)
            with stages.stage("seed the sequence store from the log") as tell:
                tell(seed_store(root)[1])
    click.echo(f"`rayapp serve --root {root}` serves it")


def train_stages(
    root: Path, domain: Domain, preset: Preset, split: Split, stages: Stages, num_workers: int = 1
) -> None:
    """All stages from the logs to the champion; prints the metric table."""
    with stages.stage("windows with Ray Data: histories, requests, past rates") as tell:
        prepared, worked = build_windows(root, domain, split)
        tell(worked)
    with stages.stage("item table: content tower and vectors") as tell:
        table, worked = item_table(root, prepared, preset)
        tell(worked)
    runs = {
        name: training_run(root, prepared, variant(preset, name), table, num_workers=num_workers)
        for name in dict.fromkeys((NO_SEQUENCE, preset.variant))
    }
    for name, run in reversed(runs.items()):
        title = "the same ranker without the sequence" if name == NO_SEQUENCE else f"TransAct ({name})"
        with stages.stage(f"train {title} with Ray Train") as tell, training_progress(run):
            tell(train_model(run, domain))
    with stages.stage("evaluate and promote the champion") as tell:
        window = read_window(root, prepared.test_window, domain)
        popular = score_popularity(load_table(root, table), root, prepared.test_window, domain)
        rows = {"popularity": report(window, popular, domain)}
        aliases = {CHAMPION: runs[preset.variant].version, BASELINE: runs[NO_SEQUENCE].version}
        moved = {alias: version for alias, version in aliases.items() if read_aliases(root).get(alias) != version}
        for alias, version in moved.items():
            promote(root, alias, version)
        tell(bool(moved))
    for name, run in runs.items():
        rows[name] = read_json(root / MODELS / run.version / "metrics.json")["heads"]
    click.echo()
    click.echo(metric_table(rows, domain, prepared.test_window))
    if words := not_above(rows, preset.variant, domain.positive_head):
        click.echo(f"warning: {words}; `rayapp evaluate --root {root} champion popularity` gives intervals", err=True)


def not_above(rows: dict[str, Report], variant_name: str, head: str) -> str | None:
    """That the model which was just promoted orders lists no better than popularity does; None where it does."""
    auc = {name: rows[name][head]["auc"] for name in (variant_name, "popularity")}
    if None not in auc.values() and auc[variant_name] > auc["popularity"]:
        return None
    of = {name: _text(value) for name, value in auc.items()}
    return (
        f"{variant_name} is not above popularity (AUC of {head!r} {of[variant_name]} against {of['popularity']}), and "
        "is the champion all the same: it learnt too little from too few lists"
    )


@contextlib.contextmanager
def training_progress(run: TrainingRun) -> Iterator[None]:
    """Shows steps, loss and the time left while another process trains: its log is followed."""
    done = threading.Event()

    def follow() -> None:
        shown = 0.0
        while not done.wait(1.0):
            try:
                lines = [json.loads(line) for line in run.log.read_text().splitlines() if '"num_steps"' in line]
                line = lines[-1]
            except (OSError, IndexError, ValueError):
                continue  # not written yet
            share = line["step"] / max(line["num_steps"], 1)
            if share - shown >= 0.2 or (sys.stdout.isatty() and share > shown):
                shown = share
                left_s = line["seconds"] * (1 - share) / max(share, 1e-6)
                text = f"{share:4.0%}  loss {line['loss']:.4f}  {left_s:3.0f} s left "
                click.echo(
                    f"\r      {text}" if sys.stdout.isatty() else f"{share:.0%} ({left_s:.0f} s left) … ", nl=False
                )
                sys.stdout.flush()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def metric_table(rows: dict[str, Report], domain: Domain, window: str) -> str:
    """The comparison on the test window: AUC and HIT@3 per head (HIT@3 of a negative head: lower is better)."""
    head = "".join(f"{name + ' AUC':>15}{'HIT@3':>8}" for name in domain.head_names)
    lines = [f"test window {window}", f"{'':14}{head}"]
    for name, metrics in rows.items():
        cells = "".join(f"{_text(metrics[h]['auc']):>15}{_text(metrics[h]['hit3']):>8}" for h in domain.head_names)
        lines.append(f"{name:14}{cells}")
    return "\n".join(lines)


def _text(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.4f}"
