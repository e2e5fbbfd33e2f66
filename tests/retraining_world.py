"""Days that arrive one after another behind the made-up world of conftest, for the tests of retraining."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rayapp.contracts.config import DAY_MS
from rayapp.contracts.presets import nano
from rayapp.importing.domains import load_domain
from rayapp.importing.importer import Inputs, import_files
from rayapp.loop.steps import RetrainOptions
from tests.conftest import WORLD

DOMAIN_FILE = load_domain("synthetic")
DOMAIN = DOMAIN_FILE.domain
OPTIONS = RetrainOptions(first=nano(), train_window_days=3)
LIMITS = """
min_requests = 40
min_auc = 0.5
max_latency_ratio = 5.0
max_score_psi = 2.0
max_score_shift = 2.0
max_prediction_ratio = 3.0
min_calibration = 0.5
max_calibration = 2.0
item_table_days = 30
"""
"""A nano model on days of a hundred requests scatters, and this machine may be busy."""
NEXT = WORLD.num_days
"""The first day that the world does not have."""
WEEK = 7


def day_ms(number: int) -> int:
    """The start of a day; day 0 is the world's first."""
    return WORLD.start_ms + number * DAY_MS


def import_day(root: Path, day: int, *, without: str | None = None) -> None:
    """Imports a day as an operator's nightly import would: what people did a week before, once more. `without`: an
    action whose events got lost on the way."""
    files = {}
    for kind in ("events", "requests"):
        table = pq.read_table(root / "raw" / kind, partitioning=None)
        time, since_ms = table["timestamp_ms"], day_ms(day - WEEK)
        table = table.filter(pc.and_(pc.greater_equal(time, since_ms), pc.less(time, since_ms + DAY_MS)))
        if kind == "events" and without is not None:
            table = table.filter(pc.not_equal(table["action"], without))
        for name in table.column_names:
            column, at = table[name], table.column_names.index(name)
            if name in ("timestamp_ms", "received_at_ms"):
                table = table.set_column(at, name, pc.add(column, WEEK * DAY_MS))
            elif name in ("request_id", "event_id"):
                table = table.set_column(at, name, pc.binary_join_element_wise(column, pa.scalar(f"d{day}"), "-"))
        files[kind] = root / "raw" / f"{kind}-{day}.parquet"
        pq.write_table(table, files[kind])
    inputs = Inputs([files["events"]], [files["requests"]])
    import_files(root, DOMAIN_FILE, inputs, now_ms=day_ms(day + 2), num_buckets=16)
