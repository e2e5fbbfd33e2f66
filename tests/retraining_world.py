"""A small made-up world whose days arrive one after another, as files, for the tests of retraining."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rayapp.config import DAY_MS
from rayapp.domains import load_domain
from rayapp.pipeline.importing import Inputs, import_files
from rayapp.presets import nano
from rayapp.retraining.stages import Options
from rayapp.sources.synthetic import World
from rayapp.workflow import make_world

WORLD = World(num_users=120, num_items=150, num_days=11, sessions_per_day=0.8, cold_users=0.1)
DOMAIN_FILE = load_domain("synthetic")
DOMAIN = DOMAIN_FILE.domain
OPTIONS = Options(first=nano(), train_window_days=5)
LIMITS = "min_requests = 100\nmax_latency_ratio = 5.0\nmax_score_psi = 2.0\nmax_score_shift = 2.0\n"
"""A nano model on a day of 400 requests scatters; and this machine may be busy."""


def day_ms(number: int) -> int:
    """The start of a day of the world."""
    return WORLD.start_ms + number * DAY_MS


def make_raw(directory: Path) -> Path:
    """The files of all days; needs Ray."""
    make_world(WORLD, directory)
    return directory


def import_days(root: Path, raw: Path, first: int, last: int, *, without: str | None = None) -> None:
    """Imports days `first` to `last`, both included, as an operator's nightly import would; `without`: an action whose
    events got lost on the way."""
    parts = {}
    for kind in ("events", "requests"):
        table = pq.read_table(raw / kind, partitioning=None)
        time = table["timestamp_ms"]
        table = table.filter(pc.and_(pc.greater_equal(time, day_ms(first)), pc.less(time, day_ms(last + 1))))
        if kind == "events" and without is not None:
            table = table.filter(pc.not_equal(table["action"], without))
        parts[kind] = raw / f"{kind}-{first}-{last}-{without}.parquet"
        pq.write_table(pa.table(table), parts[kind])
    new = not (root / "root.json").exists()
    inputs = Inputs(
        [parts["events"]], [parts["requests"]], [raw / "items.parquet"] if new else [], [raw / "users"] if new else []
    )
    import_files(root, DOMAIN_FILE, inputs, now_ms=day_ms(WORLD.num_days + 1), num_buckets=4)
