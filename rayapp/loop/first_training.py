"""The first training of a root: from its logs to a champion, and to the baseline without the sequence beside it."""

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import pyarrow.compute as pc

from rayapp.contracts.config import DAY_MS, Domain, day_start_ms
from rayapp.contracts.presets import COUNTS, NO_SEQUENCE, Preset, variant
from rayapp.loop.artifacts import Prepared, build_windows, fitted, item_table, train_model, training_run
from rayapp.loop.choose import Choice, choose, earned_over
from rayapp.loop.choose_by_recall import Recalls, earned_by_recall, keep_sequence
from rayapp.loop.plan import HELD_OUT_DAYS, Split, make_split
from rayapp.pipeline.made_lists import ENOUGH_LISTS, is_made_up, lacks_lists
from rayapp.registry.aliases import CHAMPION, promote, read_aliases
from rayapp.registry.models import training_in_words
from rayapp.root.logs import read_log
from rayapp.root.places import EVENTS, MODELS, REQUESTS
from rayapp.root.publish import PublishError, log_manifest, read_json
from rayapp.training.baselines import (
    BASELINES,
    COVISITATION,
    POPULARITY,
    WITHOUT_LISTS,
    covisitation,
    publish_covisitation,
    publish_popularity,
)
from rayapp.training.evaluate import Report
from rayapp.training.run import TrainingRun, train_and_publish, train_here

TITLES: Final = {NO_SEQUENCE: "the same ranker without the sequence", COUNTS: "a logistic regression over counts"}


class Done(Protocol):
    def __call__(self, worked: bool, /) -> None:
        """Says whether the step had anything to do."""


class Progress(Protocol):
    """Whoever shows the steps to people."""

    def step(self, title: str) -> AbstractContextManager[Done]: ...

    def training(self, run: TrainingRun) -> AbstractContextManager[None]:
        """Follows the log of a run while it trains."""


@dataclass(frozen=True, slots=True)
class FirstTraining:
    """What became of it."""

    test_window: str
    reports: dict[str, Report]
    """Metrics on the test window: of popularity, of counts, of the ranker without the sequence, and of the variant that
    was asked for."""
    trainings: dict[str, str]
    """In words, how each was trained."""
    choices: tuple[Choice, ...]
    """Of the ranker and of the champion."""
    recalls: Recalls | None = None
    """On the test window, where nobody saw its lists: what the choice went by."""


def split_of(root: Path, since_ms: int | None = None, test_ms: int | None = None, until_ms: int | None = None) -> Split:
    """The days of the request log, or of the event log where lists are to be made, cut as `make_split` does unless told
    otherwise.

    Raises:
        PublishError: there is nothing to train on, or not enough days for three windows.
    """
    first_ms, last_ms = _span(root)
    since_ms = day_start_ms(first_ms) if since_ms is None else since_ms
    until_ms = day_start_ms(last_ms) + DAY_MS if until_ms is None else until_ms
    return make_split(since_ms, until_ms, test_ms)


def _span(root: Path) -> tuple[int, int]:
    """The first and the last moment of the lists or, where they are to be made, of the actions. A graph's own lists
    take over once they are enough, and over enough days."""
    times = read_log(root, REQUESTS, ["timestamp_ms"])["timestamp_ms"]
    span = pc.min_max(times).as_py()
    if not lacks_lists(root):
        if not len(times):
            raise PublishError(f"{root} holds no actions and no shown lists yet; bring them with `rayapp import`")
        return span["min"], span["max"]
    if len(times) >= ENOUGH_LISTS and span["max"] // DAY_MS - span["min"] // DAY_MS >= HELD_OUT_DAYS:
        return span["min"], span["max"]
    files = log_manifest(root / EVENTS)[1]["files"]
    return min(file["min_ms"] for file in files), max(file["max_ms"] for file in files)


def nothing() -> None:
    """Nobody waits for the baselines."""


def train_first(
    root: Path,
    domain: Domain,
    preset: Preset,
    split: Split,
    progress: Progress,
    num_workers: int = 1,
    baselines_ready: Callable[[], None] = nothing,
) -> FirstTraining:
    """All steps; those whose result is published already take no time. Ray must be initialised.

    The baselines come first, and a root without a champion serves `counts` until the rankers are judged:
    `baselines_ready` is called then.
    """
    with progress.step("windows with Ray Data: statistics, histories, requests") as done:
        prepared, worked = build_windows(root, domain, split)
        done(worked)
    preset = fitted(root, prepared, preset)
    with progress.step("item table: content tower and vectors") as done:
        table, worked = item_table(root, prepared, preset)
        done(worked)
    runs = {
        name: training_run(
            root, prepared, variant(preset, name), table, num_workers=1 if name == COUNTS else num_workers
        )
        for name in dict.fromkeys((COUNTS, NO_SEQUENCE, preset.variant))
    }
    with progress.step(f"train {TITLES[COUNTS]}") as done, progress.training(runs[COUNTS]):
        done(train_model(runs[COUNTS], domain, train_here))
    linear = dataclasses.replace(variant(preset, COUNTS), variant=POPULARITY)
    simple = training_run(root, prepared, linear, table, title=POPULARITY)
    counted, baselines = {POPULARITY: simple}, list[str](BASELINES)
    made_up = is_made_up(root, prepared.test_window)
    if made_up:
        beside = covisitation(variant(preset, COUNTS))
        counted[COVISITATION] = training_run(root, prepared, beside, table, title=COVISITATION)
        baselines = list(WITHOUT_LISTS)
    with progress.step(f"count {' and '.join(counted)}") as done:
        worked = train_model(simple, domain, publish_popularity)
        if made_up:
            worked |= train_model(counted[COVISITATION], domain, publish_covisitation)
        done(worked)
    if CHAMPION not in read_aliases(root):
        promote(root, CHAMPION, runs[COUNTS].version)
    baselines_ready()
    for name, run in runs.items():
        if name != COUNTS:
            title = TITLES.get(name, f"TransAct ({name})")
            with progress.step(f"train {title} with Ray Train") as done, progress.training(run):
                done(train_model(run, domain, train_and_publish))
    runs = {**counted, **runs}
    versions = {name: run.version for name, run in runs.items()}
    with progress.step("evaluate and promote the champion") as done:
        rankers = {name: versions[name] for name in dict.fromkeys((NO_SEQUENCE, preset.variant))}
        recalls: Recalls | None = None
        if made_up:
            sequence, merit, recalls = _by_recall(root, domain, prepared, versions, rankers)
        else:
            sequence = choose(root, domain, prepared.validation_window, rankers)
            merit = Choice(COUNTS)
            if sequence.variant != COUNTS:
                merit = earned_over(root, domain, prepared.test_window, versions, sequence.variant, BASELINES)
        aliases = {CHAMPION: versions[merit.variant], **{name: versions[name] for name in (*baselines, NO_SEQUENCE)}}
        moved = {alias: version for alias, version in aliases.items() if read_aliases(root).get(alias) != version}
        for alias, version in moved.items():
            promote(root, alias, version)
        done(bool(moved))
    metrics = {name: read_json(root / MODELS / version / "metrics.json") for name, version in versions.items()}
    reports = {name: of_model["heads"] for name, of_model in metrics.items()}
    trainings = {name: training_in_words(of_model) for name, of_model in metrics.items() if name not in counted}
    return FirstTraining(prepared.test_window, reports, trainings, (sequence, merit), recalls)


def _by_recall(
    root: Path, domain: Domain, prepared: Prepared, versions: dict[str, str], rankers: dict[str, str]
) -> tuple[Choice, Choice, Recalls]:
    """The ranker with the sequence or without it, what goes live, and the recalls on the test window."""
    name, window = list(rankers)[-1], prepared.validation_window
    sequence = Choice(name)
    if name not in (NO_SEQUENCE, COUNTS):
        sequence = keep_sequence(Recalls.of(root, domain, window, rankers), name)
    recalls = Recalls.of(root, domain, prepared.test_window, versions)
    if sequence.variant == COUNTS:
        best = recalls.best_of(WITHOUT_LISTS)
        why = f"{best} goes live: of {', '.join(WITHOUT_LISTS)} it has the best recall"
        return sequence, Choice(best, why), recalls
    return sequence, earned_by_recall(recalls, sequence.variant, WITHOUT_LISTS), recalls
