"""Bench `decay`: how a model ages from day to day, and what which retraining buys at which cost.

All policies start from one model, trained on the first days of the log (window 0), and score each following day with
the newest model they have. A model that scores day D has seen requests up to the last one whose attribution time was
over when D began. Statistics are as fresh for everyone, retrained or not, as in serving; the item table
is that of window 0 throughout, so that weights alone age.

The trainings run in this process, one after another: Ray Train's start takes longer than a day's worth of training
here, and CPU seconds are then those of the training alone.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import click
import numpy as np
import torch

from benchmarks.decay_report import Ages, Cost, Day, Measure, costs_told, tell
from rayapp.contracts.config import DAY_MS, Domain, Scope
from rayapp.contracts.presets import PRESETS, Preset, variant
from rayapp.importing.domains import load_domain
from rayapp.launch.runtime import local_ray
from rayapp.loop.artifacts import Prepared, item_table, make_windows, train_model, training_run
from rayapp.loop.first_import import import_once
from rayapp.loop.first_training import split_of
from rayapp.loop.plan import day_span, day_window
from rayapp.pipeline.tasks import run_tasks
from rayapp.root.facts import read_root
from rayapp.root.places import MODELS, REQUESTS
from rayapp.root.publish import PublishError, exclusive, log_manifest, read_json
from rayapp.sources.synthetic import World, drifting, write_world
from rayapp.training.comparison import Logits
from rayapp.training.evaluate import EvaluationSet, read_window, score_version
from rayapp.training.run import TrainingRun, train_here


@dataclass(frozen=True, slots=True)
class Policy:
    """When a model is trained again, and how."""

    per_week: int
    warm: bool = False
    """From the weights of the model it replaces, on the day that has come since, instead of on a whole window."""
    scope: Scope = "full"

    def due(self, day: int) -> bool:
        """Whether the model for this day, counted from the first scored one, is a new one."""
        return day * self.per_week // 7 > (day - 1) * self.per_week // 7


NUM_EPOCHS: Final = 4
"""At the most: days are little data, and the early stop decides."""
POLICIES: Final = {
    "none": Policy(0),
    "twice-weekly": Policy(2),
    "daily": Policy(7),
    "daily-warm": Policy(7, warm=True),
    "daily-sequence": Policy(7, warm=True, scope="sequence"),
    "daily-heads": Policy(7, warm=True, scope="heads"),
}


@dataclass(frozen=True, slots=True)
class Study:
    """A root cut into days: day n begins at `days[n]` (ms)."""

    root: Path
    domain: Domain
    days: tuple[int, ...]
    window_days: int
    """Of a training from scratch, the last of them for validation."""
    lag_days: int
    """Days whose labels are not complete when a model is trained."""

    @property
    def scored(self) -> range:
        return range(self.window_days + self.lag_days, len(self.days))

    def window(self, day: int) -> str:
        return day_window(self.days[day])

    def seen(self, day: int, *, warm: bool) -> range:
        """Days that the training of the model that first scores `day` sees, the last of them for validation. A warm
        start trains on the one day that its parent only validated on."""
        until = day - self.lag_days
        return range(until - (2 if warm else self.window_days), until)

    def prepared(self, day: int, *, warm: bool) -> Prepared:
        """What the training of the model that first scores `day` reads; that day tests it."""
        used = (*self.seen(day, warm=warm), day)
        return Prepared(self.domain, tuple(day_span(self.days[n]) for n in used))

    def run(self, preset: Preset, day: int, parent: str | None) -> TrainingRun:
        """The training of the model that first scores `day`; the item table is that of window 0."""
        table, _ = item_table(self.root, self.prepared(self.scored[0], warm=False), preset)
        prepared = self.prepared(day, warm=parent is not None)
        return training_run(self.root, prepared, preset, table, title=f"decay-{preset.variant}", init_from=parent)


def run_decay(
    root: Path,
    preset_name: str,
    variants: Sequence[str],
    policies: Sequence[str],
    seeds: int,
    window_days: int,
    moments: tuple[int | None, int | None],
    world: World | None,
    as_json: bool,
    write: Path | None,
) -> None:
    """`world`: is made, with its drift, and imported first, unless the root holds a log already.

    Raises:
        PublishError: there is no such policy, or there are too few days.
    """
    if unknown := set(policies) - set(POLICIES):
        raise PublishError(f"there is no policy {sorted(unknown)[0]!r}; known: {', '.join(POLICIES)}")
    if window_days < 3:
        raise PublishError("a window of 3 days or more is needed: the last one validates")
    if world is not None and not log_manifest(root / REQUESTS)[0]:
        with local_ray():
            import_once(root, load_domain("synthetic"), lambda: write_world(drifting(world), root / "raw", run_tasks))
    with exclusive(root, "a study"):
        torch.set_num_threads(1)
        study = prepare(root, PRESETS[preset_name](), window_days, moments)
        windows = {day: read_window(root, study.window(day), study.domain) for day in study.scored}
        measure, days, text = Measure(windows, study.domain, root / "bench" / "decay"), list[Day](), ""
        for seed in range(seeds):
            for name in variants:
                preset = variant(sized(PRESETS[preset_name](), windows).seeded(seed), name)
                for policy in policies:
                    if POLICIES[policy].scope == "sequence" and preset.model.encoder == "none":
                        continue
                    days += (followed := follow(study, preset, policy, measure))
                    click.echo(f"  seed {seed} {name} {policy}: {costs_told(followed)}", err=True)
            title = f"Ageing on {study.domain.name}"
            # After each seed: whoever stops a long study has a result of fewer.
            notes = [f"Preset `{preset_name}`, seeds: {seed + 1}.", _scored(study, windows)]
            text = tell(Ages(days), study.domain, title, notes, as_json, write)
    click.echo(text)


def sized(preset: Preset, windows: Mapping[int, EvaluationSet]) -> Preset:
    """A step of the presets is sized for lists of one item. Where lists are longer it takes fewer requests, or a few
    days would make no more than a few dozen steps."""
    items = sum(int(w.valid_RC.sum()) for w in windows.values()) / sum(len(w.user_hash_R) for w in windows.values())
    batch_requests = max(round(preset.train.batch_requests / items), 8)
    train = dataclasses.replace(preset.train, batch_requests=batch_requests, num_epochs=NUM_EPOCHS)
    return dataclasses.replace(preset, train=train)


def _scored(study: Study, windows: Mapping[int, EvaluationSet]) -> str:
    first, scored = (study.window(day).split("_")[0] for day in (0, study.scored[0]))
    users = len(np.unique(np.concatenate([w.user_hash_R for w in windows.values()])))
    requests, items = (
        sum(int(n) for n in each)
        for each in zip(*((len(w.user_hash_R), w.valid_RC.sum()) for w in windows.values()), strict=True)
    )
    return (
        f"Window 0: {study.window_days} days from {first}. {len(windows)} days are scored, from {scored} on: "
        f"{requests:,} requests of {users:,} users, {items:,} shown items."
    )


def prepare(root: Path, preset: Preset, window_days: int, moments: tuple[int | None, int | None]) -> Study:
    """The statistics, a window for each day, and the item table of window 0; what is there already is kept.

    Raises:
        PublishError: there are not enough days.
    """
    domain, _ = read_root(root)
    split = split_of(root, since_ms=moments[0], until_ms=moments[1])
    starts = list(range(split.since_ms, split.until_ms, DAY_MS))
    lag_days = -(-domain.attribution_ms // DAY_MS)
    if len(starts) < window_days + lag_days + 2:
        raise PublishError(
            f"{len(starts)} days are too few: window 0 takes {window_days}, its labels {lag_days} more, and two are "
            "needed to see any ageing"
        )
    study = Study(root, domain, tuple(starts), window_days, lag_days)
    click.echo(f"  windows of {len(starts)} days, item table", err=True)
    with local_ray():
        make_windows(root, domain, [day_span(start) for start in starts])
        item_table(root, study.prepared(study.scored[0], warm=False), preset)
    return study


def follow(study: Study, preset: Preset, name: str, measure: Measure) -> list[Day]:
    """Every day under a policy; trains what it asks for unless it is published."""
    policy, version, days = POLICIES[name], "", list[Day]()
    for number, day in enumerate(study.scored):
        replaced, cost = None, None
        if not version or policy.due(number):
            parent = version if policy.warm and version else None
            scope: Scope = policy.scope if parent else "full"
            scoped = dataclasses.replace(preset, train=dataclasses.replace(preset.train, scope=scope))
            run = study.run(scoped, day, parent)
            train_model(run, study.domain, train_here)
            if version:  # the first model is everyone's
                replaced = measure(version, day, partial(_score, study, version, day))
                told = read_json(study.root / MODELS / run.version / "metrics.json")["train"]
                cost = Cost(told["cpu_seconds"], told["examples"])
            version = run.version
        values = measure(version, day, partial(_score, study, version, day))
        days.append(Day(preset.variant, name, preset.train.seed, day, values, replaced, cost))
    return days


def _score(study: Study, version: str, day: int) -> Logits:
    return score_version(study.root, version, study.window(day), study.domain)
