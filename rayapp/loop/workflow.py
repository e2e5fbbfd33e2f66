"""From a data set to a live champion: the stages in order, each skipped when its result is published already."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pyarrow.compute as pc

from rayapp.contracts.config import DAY_MS, Domain, day_name, version_values
from rayapp.contracts.json_values import to_json
from rayapp.contracts.presets import Preset
from rayapp.contracts.schema import EVENT_SCHEMA, Event, fingerprint
from rayapp.importing.domains.layout import DomainFile
from rayapp.importing.importer import Inputs, import_files
from rayapp.pipeline.export import exported
from rayapp.pipeline.rate_snapshots import build_rates
from rayapp.pipeline.tasks import Told, quiet, run_tasks
from rayapp.pipeline.windows import Window, build, window_name
from rayapp.root.erasure import hide, tombstones
from rayapp.root.facts import DEFAULT_NUM_BUCKETS, refuse_other_domain
from rayapp.root.logs import read_log
from rayapp.root.places import EVENTS, ITEM_TABLES, MODELS, REQUESTS, WINDOWS
from rayapp.root.publish import PublishError, log_manifest, read_manifest
from rayapp.sources import Files
from rayapp.sources.synthetic import World, write_world
from rayapp.store import Store
from rayapp.store.opening import open_store
from rayapp.training.build_table import build_item_table
from rayapp.training.run import TrainingRun, train_and_publish

HISTORY_LENGTH: Final = 100
TEST_SHARE: Final = 0.2
VALIDATION_SHARE: Final = 0.125
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True, slots=True)
class Split:
    """What is trained on, what stops and calibrates the training, and what is tested: `[since, validation)`,
    `[validation, test)`, `[test, until)`."""

    since_ms: int
    validation_ms: int
    test_ms: int
    until_ms: int


@dataclasses.dataclass(frozen=True, slots=True)
class Prepared:
    """Names of what the data stages published."""

    domain: Domain
    split: Split
    train_window: str
    validation_window: str
    test_window: str


def import_once(root: Path, domain_file: DomainFile, fetch: Callable[[], Files]) -> bool:
    """Brings a data set into an empty root; whether it had to.

    Raises:
        PublishError: the root is another domain's.
    """
    refuse_other_domain(root, domain_file.domain)
    if log_manifest(root / REQUESTS)[0]:
        return False
    files = fetch()
    inputs = Inputs([files.events], [files.requests], [files.items], [files.users] if files.users else [])
    now_ms = int(time.time() * 1000)
    import_files(root, domain_file, inputs, now_ms=now_ms, num_buckets=DEFAULT_NUM_BUCKETS)
    return True


def make_world(world: World, directory: Path, told: Told = quiet) -> Files:
    """Writes the synthetic world's files, its chunks of users in parallel."""
    return write_world(world, directory, lambda count, part: run_tasks(count, part, told))


def split_of(root: Path, since_ms: int | None = None, test_ms: int | None = None, until_ms: int | None = None) -> Split:
    """Unless told otherwise the last fifth of the request log's days is the test, and an eighth of what is before it
    the validation.

    Raises:
        PublishError: there are no shown lists, or not enough days for three windows.
    """
    times = read_log(root, REQUESTS, ["timestamp_ms"])["timestamp_ms"]
    if not len(times):
        raise PublishError(
            f"{root} holds no shown lists, and a ranker learns from what was shown and not acted on; bring them with "
            f"`rayapp import --root {root} --requests FILES` and a [[requests]] layout in your domain file "
            "(docs/data.md)"
        )
    span = pc.min_max(times).as_py()
    since_ms = int(span["min"]) // DAY_MS * DAY_MS if since_ms is None else since_ms
    until_ms = int(span["max"]) // DAY_MS * DAY_MS + DAY_MS if until_ms is None else until_ms
    if test_ms is None:
        test_ms = int(since_ms + (1 - TEST_SHARE) * (until_ms - since_ms)) // DAY_MS * DAY_MS
    validation_ms = test_ms - max(int((test_ms - since_ms) * VALIDATION_SHARE) // DAY_MS * DAY_MS, DAY_MS)
    if not since_ms < validation_ms < test_ms < until_ms:
        raise PublishError(
            f"{day_name(since_ms)} to {day_name(until_ms)} is too short to train, validate and test on; it takes "
            "three days or more"
        )
    return Split(since_ms, validation_ms, test_ms, until_ms)


def build_windows(root: Path, domain: Domain, split: Split, told: Told = quiet) -> tuple[Prepared, bool]:
    """The windows of a split and the rates that their requests see; whether anything was built."""
    built = bool(build_rates(root, split.since_ms, split.until_ms, domain, told))
    moments = dataclasses.astuple(split)
    names = []
    for a, b in itertools.pairwise(moments):
        name = window_name(a, b)
        names.append(name)
        if not (root / WINDOWS / name).exists():
            build(root, name, Window(a, b, HISTORY_LENGTH), domain, told)
            built = True
    return Prepared(domain, split, *names), built


def item_table(root: Path, prepared: Prepared, preset: Preset) -> tuple[str, bool]:
    """The item table whose training data ends where the training window does."""
    width, until_ms = preset.model.item_dim, prepared.split.validation_ms
    name = f"{day_name(until_ms)}-{width}d"
    if (root / ITEM_TABLES / name).exists():
        return name, False
    build_item_table(root, name, prepared.domain, until_ms=until_ms, width=width, seed=0)
    return name, True


def training_run(
    root: Path, prepared: Prepared, preset: Preset, table: str, *, num_workers: int = 1, init_from: str | None = None
) -> TrainingRun:
    """The run for a preset, as wide as the table's vectors; its version is named by all that decides its result.

    `init_from`: the published model that a warm start takes its weights from; see `training.start`.
    """
    width = int(read_manifest(root / ITEM_TABLES / table)["width"])
    preset = preset.replace(item_dim=width)
    windows = (prepared.train_window, prepared.validation_window, prepared.test_window)
    warm = () if init_from is None else (init_from,)
    decides = (to_json(preset), version_values(prepared.domain), windows, table, num_workers, *warm)
    return TrainingRun(
        root=root,
        version=f"{preset.name}-{preset.variant}-{fingerprint(decides)[:8]}",
        preset=preset,
        train_windows=(prepared.train_window,),
        validation_window=prepared.validation_window,
        test_window=prepared.test_window,
        item_table=table,
        num_workers=num_workers,
        init_from=init_from,
    )


def train_model(run: TrainingRun, domain: Domain) -> bool:
    """Trains and publishes unless `models/<version>` is there."""
    if (run.root / MODELS / run.version).exists():
        read_manifest(run.root / MODELS / run.version)
        return False
    train_and_publish(run, domain)
    return True


def seed_store(root: Path, url: str | None = None) -> tuple[int, bool]:
    """Restores the store unless it holds all that the log holds; `(events written, whether it had to)`."""
    store = open_store(root, url)
    try:
        if store.restored_to() == log_manifest(root / EVENTS)[0]:
            return 0, False
        return _restore(root, store), True
    finally:
        store.close()


def restore_store(root: Path, url: str | None = None) -> int:
    """Puts what the event log holds into the sequence store, where it is missing; the number of events written."""
    store = open_store(root, url)
    try:
        return _restore(root, store)
    finally:
        store.close()


def _restore(root: Path, store: Store) -> int:
    number, manifest = log_manifest(root / EVENTS)
    written = store.rebuild(_logged_events(root))
    for bucket, commit_seq in exported(manifest).items():
        store.advance(bucket, commit_seq)  # what it numbers from now on is newer than all that is in the log
    store.set_restored_to(number)
    return written


def _logged_events(root: Path) -> Iterator[Event]:
    names = [f.name for f in dataclasses.fields(Event)]
    table = hide(read_log(root, EVENTS, [n for n in EVENT_SCHEMA.names if n in names]), tombstones(root))
    # By user: a user's whole history is then written once and not row by row.
    for batch in table.sort_by("user_id").to_batches(max_chunksize=10_000):
        for row in batch.to_pylist():
            yield Event(**row)


def check_writable(root: Path) -> None:
    """Makes the root and a file in it.

    Raises:
        PublishError: says why not.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        probe = root / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise PublishError(f"{root} can't be written ({error.strerror}); choose another --root") from None
