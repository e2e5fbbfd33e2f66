"""From a data set to a live champion: the stages in order, each skipped when its result is published already."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pyarrow.compute as pc

from rayapp.config import DAY_MS, Domain, Preset, to_json
from rayapp.domains.layout import DomainFile
from rayapp.pipeline.importing import Inputs, import_files
from rayapp.pipeline.logs import REQUESTS, read_log
from rayapp.pipeline.tasks import Told, quiet, run_tasks
from rayapp.pipeline.windows import Window, build, day_name, window_name
from rayapp.publish import PublishError, log_manifest, read_json, read_manifest, write_json
from rayapp.root import DEFAULT_NUM_BUCKETS, read_root
from rayapp.schema import EVENT_SCHEMA, Event, fingerprint
from rayapp.sources import Files
from rayapp.sources.synthetic import World, files_in, write_chunk, write_items
from rayapp.store.lmdb import LmdbStore
from rayapp.training.items import build_item_table
from rayapp.training.run import TrainingRun, train_and_publish

HISTORY_LENGTH: Final = 100
TEST_SHARE: Final = 0.2
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True, slots=True)
class Prepared:
    """Names of what the data stages published."""

    domain: Domain
    train_window: str
    test_window: str
    split_ms: int


def import_once(root: Path, domain_file: DomainFile, fetch: Callable[[], Files]) -> bool:
    """Brings a data set into an empty root; whether it had to."""
    if log_manifest(root / REQUESTS)[0]:
        return False
    files = fetch()
    inputs = Inputs([files.events], [files.requests], [files.items], [files.users] if files.users else [])
    now_ms = int(time.time() * 1000)
    import_files(root, domain_file, inputs, now_ms=now_ms, num_buckets=DEFAULT_NUM_BUCKETS)
    return True


def make_world(world: World, directory: Path, told: Told = quiet) -> Files:
    """Writes the synthetic world's files, its chunks of users in parallel."""
    write_items(world, directory)
    run_tasks(world.num_chunks, lambda chunk: write_chunk(world, directory, chunk), told)
    return files_in(directory)


def split_time(root: Path) -> tuple[int, int, int]:
    """`(first day, day from which requests are the test set, day after the last)`, in ms: the last fifth is tested."""
    times = read_log(root, REQUESTS, ["timestamp_ms"])["timestamp_ms"]
    span = pc.min_max(times).as_py()
    first, last = int(span["min"]), int(span["max"])
    split_ms = int(first + (1 - TEST_SHARE) * (last - first)) // DAY_MS * DAY_MS
    return first // DAY_MS * DAY_MS, split_ms, last // DAY_MS * DAY_MS + DAY_MS


def build_windows(root: Path, domain: Domain) -> tuple[Prepared, bool]:
    """The training window (all before the split) and the test window (all after); whether one was built."""
    since_ms, split_ms, until_ms = split_time(root)
    names, built = [], False
    for a, b in ((since_ms, split_ms), (split_ms, until_ms)):
        name = window_name(a, b)
        names.append(name)
        if not (root / "windows" / name).exists():
            build(root, name, Window(a, b, HISTORY_LENGTH), domain)
            built = True
    return Prepared(domain, names[0], names[1], split_ms), built


def item_table(root: Path, prepared: Prepared, preset: Preset) -> tuple[str, bool]:
    """The item table whose training data ends before the test window."""
    width = preset.model.item_dim
    name = f"{day_name(prepared.split_ms)}-{width}d"
    if (root / "item_tables" / name).exists():
        return name, False
    build_item_table(root, name, prepared.domain, until_ms=prepared.split_ms, width=width, seed=0)
    return name, True


def training_run(root: Path, prepared: Prepared, preset: Preset, table: str) -> TrainingRun:
    """The run for a preset, as wide as the table's vectors; its version is named by all that decides its result."""
    width = int(read_manifest(root / "item_tables" / table)["width"])
    preset = dataclasses.replace(preset, model=dataclasses.replace(preset.model, item_dim=width))
    kind = "sequence" if preset.model.use_sequence else "no-sequence"
    decides = (to_json(preset), prepared.domain.to_json(), prepared.train_window, prepared.test_window, table)
    return TrainingRun(
        root=root,
        version=f"{preset.name}-{kind}-{fingerprint(decides)[:8]}",
        preset=preset,
        train_windows=(prepared.train_window,),
        test_window=prepared.test_window,
        item_table=table,
    )


def without_sequence(preset: Preset) -> Preset:
    """The same ranker without the user's actions."""
    return dataclasses.replace(preset, model=dataclasses.replace(preset.model, use_sequence=False))


def train_model(run: TrainingRun, domain: Domain) -> bool:
    """Trains and publishes unless `models/<version>` is there."""
    if (run.root / "models" / run.version).exists():
        read_manifest(run.root / "models" / run.version)
        return False
    train_and_publish(run, domain)
    return True


def seed_store(root: Path) -> tuple[int, bool]:
    """Puts the imported log into the sequence store; `(events written, whether it had to)`."""
    domain, num_buckets = read_root(root)
    number, _ = log_manifest(root / "events")
    done = root / "store" / "seeded.json"
    if done.exists() and read_json(done)["events_manifest"] == number:
        return 0, False
    store = LmdbStore(root / "store", domain.vocabulary, num_buckets)
    try:
        written = store.rebuild(_logged_events(root))
    finally:
        store.close()
    write_json(done, {"events_manifest": number})
    return written, True


def _logged_events(root: Path) -> Iterator[Event]:
    names = [f.name for f in dataclasses.fields(Event)]
    table = read_log(root, "events", [n for n in EVENT_SCHEMA.names if n in names])
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
