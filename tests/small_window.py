"""A published window of two buckets, and tables as its tasks read them, for the tests of what reads windows."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rayapp.contracts.config import Domain
from rayapp.contracts.hashing import hash64
from rayapp.contracts.schema import EVENT_SCHEMA, REQUEST_SCHEMA
from rayapp.pipeline.histories import LABEL_COLUMNS, Bucket, merge
from rayapp.pipeline.window_loader import WindowReader
from rayapp.pipeline.windows import Window, build_bucket
from rayapp.root.publish import (
    write_json,
)
from tests.conftest import T0


def event_table(events: list[dict[str, object]]) -> pa.Table:
    rows = [
        {"commit_seq": 0, "event_hash": hash64(str(e["event_id"])), "received_at_ms": e["timestamp_ms"], **e}
        for e in events
    ]
    return pa.Table.from_pylist(rows, schema=EVENT_SCHEMA)


def bucket_of_events(events: pa.Table) -> Bucket:
    """What a task reads of one stored file."""
    return merge([events.select(LABEL_COLUMNS.names)], LABEL_COLUMNS)


def request_table(rows: list[dict[str, object]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=REQUEST_SCHEMA)


def publish_window(root: Path, domain: Domain, num_requests: int = 60) -> WindowReader:
    """A window of two buckets with users of different histories, read with length 8."""
    stats = []
    for bucket in range(2):
        users = [f"b{bucket}u{n}" for n in range(5)]
        events = event_table(
            [
                {"event_id": f"{u}-{n}", "user_id": u, "item_id": f"i{n % 7}", "action": "save", "timestamp_ms": T0 + n}
                for u in users
                for n in range(20)
            ]
        )
        requests = request_table(
            [
                {
                    "request_id": f"{bucket}-{r}",
                    "user_id": users[r % 5],
                    "timestamp_ms": T0 + r,
                    "item_ids": [f"i{r % 5}", "i6", "i1"][: 1 + r % 3],
                }
                for r in range(num_requests // 2)
            ]
        )
        histories, cut = build_bucket(
            bucket_of_events(events),
            requests,
            Window(T0, T0 + 1000, history_length=8),
            domain,
        )
        for kind, table in (("histories", histories), ("requests", cut)):
            path = root / "windows" / "w" / kind / f"bucket={bucket:04d}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, path)
        stats.append({"bucket": bucket, "requests": cut.num_rows})
    write_json(
        root / "windows" / "w" / "manifest.json",
        {"history_length": 8, "heads": list(domain.head_names), "buckets": stats},
    )
    return WindowReader(root, ["w"], domain, 8)
