"""What a training leaves in a root: statistics, windows, an item table, a model. Here each gets its name and is made,
unless it is published already; a first training, a retraining and the studies are steps over these functions."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow.parquet as pq

from rayapp.contracts.auto import LogSize, fit, refit
from rayapp.contracts.config import DAY_MS, Domain, day_name, version_values
from rayapp.contracts.json_values import from_json, to_json
from rayapp.contracts.presets import AUTO, Preset
from rayapp.contracts.schema import fingerprint
from rayapp.loop.plan import Span, Split
from rayapp.model.item_table import ItemTable
from rayapp.pipeline.made_lists import chosen_actions, is_made_up
from rayapp.pipeline.statistics import count_for_models
from rayapp.pipeline.windows import Window, build, is_current, window_name
from rayapp.registry.aliases import read_aliases
from rayapp.registry.item_tables import load_table
from rayapp.registry.models import model_manifest
from rayapp.root.places import ITEM_TABLES, MODELS, WINDOWS
from rayapp.root.publish import PublishError, read_manifest
from rayapp.training.build_table import build_item_table
from rayapp.training.run import TrainingRun, train_and_publish

HISTORY_LENGTH: Final = 100
"""Actions of a user that a window holds for each request; more where a model reads more."""
WEEKDAY_DAYS: Final = 28
"""So many days of training a model needs to read the day of the week: each day of it, four times."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """The windows of one training in order of time: the last one tests, the one before validates, the others train."""

    domain: Domain
    spans: tuple[Span, ...]

    @property
    def windows(self) -> tuple[str, ...]:
        return tuple(window_name(*span) for span in self.spans)

    @property
    def train_windows(self) -> tuple[str, ...]:
        return self.windows[:-2]

    @property
    def validation_window(self) -> str:
        return self.windows[-2]

    @property
    def test_window(self) -> str:
        return self.windows[-1]

    @property
    def teaches_weekdays(self) -> bool:
        """Whether the training windows hold enough days for that."""
        return sum(until_ms - since_ms for since_ms, until_ms in self.spans[:-2]) >= WEEKDAY_DAYS * DAY_MS

    @property
    def validation_ms(self) -> int:
        """What the training knows ends here."""
        return self.spans[-2][0]

    @property
    def test_ms(self) -> int:
        return self.spans[-1][0]


def log_size(root: Path, prepared: Prepared) -> LogSize:
    """How much a training has to learn from: lists by the manifests of its windows, items by the files' footers."""
    windows = [root / WINDOWS / name for name in prepared.train_windows]
    files = [file for window in windows for file in (window / "requests").glob("*.parquet")]
    lists = sum(num_lists(root, name) for name in prepared.train_windows)
    return LogSize(lists, sum(map(_num_shown, files)), num_lists(root, prepared.validation_window))


def num_lists(root: Path, name: str) -> int:
    """Of a published window."""
    window = root / WINDOWS / name
    return sum(bucket["requests"] for bucket in read_manifest(window)["buckets"])


def _num_shown(file: Path) -> int:
    footer = pq.read_metadata(file)
    groups = [footer.row_group(n) for n in range(footer.num_row_groups)]
    columns = [group.column(n) for group in groups for n in range(group.num_columns)]
    return sum(column.num_values for column in columns if column.path_in_schema.startswith("item_ids."))


def fitted(root: Path, prepared: Prepared, preset: Preset, *, live: bool = False) -> Preset:
    """`auto` as it is worked out for a training's windows; any other preset as it is. `live`: the preset is that of a
    live model, whose sizes stay."""
    if preset.name != AUTO:
        return preset
    return (refit if live else fit)(preset, log_size(root, prepared))


def make_windows(root: Path, domain: Domain, spans: Iterable[Span], *, history_length: int = HISTORY_LENGTH) -> bool:
    """The statistics of the log as it is, and the window of each span; whether anything was built."""
    # A live model is measured on the days of its challengers, and may read other statistics.
    built = count_for_models(root, domain, read_aliases(root).values())
    for span in sorted(spans):
        if not is_current(root, window_name(*span), domain):
            build(root, window_name(*span), Window(*span, history_length), domain)
            built = True
    return built


def build_windows(root: Path, domain: Domain, split: Split) -> tuple[Prepared, bool]:
    """The windows of a split and the statistics that their requests see; whether anything was built.

    Raises:
        PublishError: a window holds no list, or can't be built.
    """
    prepared, built = Prepared(domain, split.spans), make_windows(root, domain, split.spans)
    for window in prepared.windows:
        if not num_lists(root, window):
            raise PublishError(
                f"no list can be made for {window}: in it nobody did {' or '.join(chosen_actions(domain))} on an item "
                "that the catalogue knows and that `seen` would have let the user see. Import more days, choose others "
                "with --since and --test-since, or say in the domain file which actions are positive and which count "
                "as seen (docs/data.md#logs-without-shown-lists)"
            )
    return prepared, built


def item_table(root: Path, prepared: Prepared, preset: Preset) -> tuple[str, bool]:
    """The name of an item table that knows what the training knows, and no more; whether it was built."""
    width, until_ms = preset.model.item_dim, prepared.validation_ms
    covisits = is_made_up(root, prepared.test_window)
    name = f"{day_name(until_ms)}-{width}d{'-covisits' if covisits else ''}"
    if (root / ITEM_TABLES / name).exists():
        if reads_all(load_table(root, name), prepared.domain):
            return name, False
        name += f"-{fingerprint(prepared.domain.attributes)[:8]}"
        if (root / ITEM_TABLES / name).exists():
            return name, False
    build_item_table(root, name, prepared.domain, until_ms=until_ms, width=width, seed=0, covisits=covisits)
    return name, True


def reads_all(table: ItemTable, domain: Domain) -> bool:
    """Whether a table knows every attribute that the domain's items have by now."""
    return {a.name for a in domain.attributes} <= {a.name for a in table.tower.attributes}


def training_run(
    root: Path,
    prepared: Prepared,
    preset: Preset,
    table: str,
    *,
    title: str | None = None,
    num_workers: int = 1,
    init_from: str | None = None,
) -> TrainingRun:
    """The run for a preset, as wide as the table's vectors; it reads the day of the week where the windows teach it,
    and rates where all lists of the windows were shown.

    `title`: of the version's name; the preset and its variant unless told.
    `init_from`: the published model that a warm start takes its weights from; see `training.start`.
    """
    width = int(read_manifest(root / ITEM_TABLES / table)["width"])
    if preset.train.scope == "full" or init_from is None:
        reads_weekday = prepared.teaches_weekdays
        reads_rates = not any(is_made_up(root, window) for window in prepared.train_windows)
    else:  # what the scope leaves as it is was trained with the parent's inputs
        parent = from_json(Preset, model_manifest(root, init_from)["preset"]).model
        reads_weekday, reads_rates = parent.reads_weekday, parent.reads_rates
    preset = preset.replace(item_dim=width, reads_weekday=reads_weekday, reads_rates=reads_rates)
    return TrainingRun(
        root=root,
        version=version_of(prepared, preset, table, title, num_workers, init_from),
        preset=preset,
        train_windows=prepared.train_windows,
        validation_window=prepared.validation_window,
        test_window=prepared.test_window,
        item_table=table,
        num_workers=num_workers,
        init_from=init_from,
    )


def version_of(
    prepared: Prepared, preset: Preset, table: str, title: str | None, num_workers: int, init_from: str | None
) -> str:
    """A model's name: its title, then a fingerprint of all that decides its result.

    Roots hold models by these names and a killed run finds its own again, so what is hashed never changes: a run with a
    title says also that it has no parent.
    """
    parent = () if title is None and init_from is None else (init_from,)
    decides = (to_json(preset), version_values(prepared.domain), prepared.windows, table, num_workers, *parent)
    return f"{title or f'{preset.name}-{preset.variant}'}-{fingerprint(decides)[:8]}"


def train_model(
    run: TrainingRun, domain: Domain, train: Callable[[TrainingRun, Domain], object] = train_and_publish
) -> bool:
    """Trains and publishes with `train`, unless `models/<version>` is there; whether it had to."""
    if (run.root / MODELS / run.version).exists():
        read_manifest(run.root / MODELS / run.version)
        return False
    train(run, domain)
    return True
