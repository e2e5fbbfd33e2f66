"""The event log and the request log: Parquet by arrival day and user bucket, each with its manifest.

A bucket holds everything of its users, so histories are built bucket by bucket and nothing is ever shuffled again.
"""

import uuid
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data

from rayapp.publish import Manifest, PublishError, commit_log, log_manifest
from rayapp.root import read_root
from rayapp.schema import EVENT_SCHEMA, REQUEST_SCHEMA, fingerprint, hash64_column

SCHEMAS: Final = {"events": EVENT_SCHEMA, "requests": REQUEST_SCHEMA}


def append(root: Path, kind: str, table: pa.Table, *, partition: str, source: str) -> int:
    """Appends `table` to the log `kind` ("events" or "requests") as one partition; returns the rows written.

    A partition that the log already holds is not written again, so an import can be repeated. Ray Data writes the
    buckets in parallel; the manifest is committed once, at the end, and only then can readers see them.

    Raises:
        PublishError: the table's schema is another one, or someone else wrote the log meanwhile.
    """
    if table.schema != SCHEMAS[kind]:
        raise PublishError(f"{kind}: expected the schema\n{SCHEMAS[kind]}\nbut got\n{table.schema}")
    _, num_buckets = read_root(root)
    log = root / kind
    number, manifest = log_manifest(log)
    if any(file["partition"] == partition for file in manifest["files"]):
        return 0
    bucket = (hash64_column(table["user_id"]) % np.uint64(num_buckets)).astype(np.int32)
    run_id = uuid.uuid4().hex[:12]

    def write_bucket(part: pa.Table) -> pa.Table:
        rows = [_write(log, partition, run_id, part, int(b)) for b in np.unique(part["bucket"].to_numpy())]
        return pa.Table.from_pylist(rows, schema=_FILE_SCHEMA)

    # One block per bucket: the slices are cut here, where the whole table is at hand, and written in parallel.
    order = np.argsort(bucket, kind="stable")
    bounds = np.searchsorted(bucket[order], np.arange(num_buckets + 1))
    table = table.append_column("bucket", pa.array(bucket)).take(pa.array(order))
    parts = [table.slice(a, b - a) for a, b in pairwise(bounds) if b > a]
    if not parts:
        return 0
    files = ray.data.from_arrow(parts).map_batches(write_bucket, batch_format="pyarrow", batch_size=None).take_all()
    entry = {"partition": partition, "source": source}
    manifest["files"] += [{**entry, **file} for file in sorted(files, key=lambda f: f["path"])]
    manifest["schema"] = fingerprint(SCHEMAS[kind])
    commit_log(log, number, manifest)
    return len(order)


_FILE_SCHEMA = pa.schema([("path", pa.string()), ("bucket", pa.int32()), ("rows", pa.int64())])


def _write(log: Path, partition: str, run_id: str, part: pa.Table, bucket: int) -> dict[str, Any]:
    part = part.filter(pa.array(part["bucket"].to_numpy() == bucket)).drop_columns(["bucket"])
    path = Path(f"dt={partition}") / f"bucket={bucket:04d}" / f"{run_id}.parquet"
    (log / path).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(part, log / path, compression="zstd")
    return {"path": str(path), "bucket": bucket, "rows": part.num_rows}


def read_bucket(root: Path, kind: str, bucket: int, manifest: Manifest) -> pa.Table:
    """All rows of one bucket that `manifest` lists."""
    log = root / kind
    tables = [
        pq.read_table(log / file["path"], schema=SCHEMAS[kind], partitioning=None)
        for file in manifest["files"]
        if file["bucket"] == bucket
    ]
    return pa.concat_tables(tables) if tables else SCHEMAS[kind].empty_table()


def read_log(root: Path, kind: str, columns: Sequence[str]) -> pa.Table:
    """Some columns of the whole log, for work that fits one machine."""
    _, manifest = log_manifest(root / kind)
    tables = [
        pq.read_table(root / kind / file["path"], columns=list(columns), partitioning=None)
        for file in manifest["files"]
    ]
    schema = pa.schema([SCHEMAS[kind].field(c) for c in columns])
    return pa.concat_tables(tables) if tables else schema.empty_table()
