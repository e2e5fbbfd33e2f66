"""Counts the rate snapshots that `rayapp.root.rates` reads: each user's and item's labels, known at the start of a day.

The snapshot of day D counts shown items whose attribution time was over at D,
and labels whose actions had arrived by then; so a row of day D learns nothing from D or later, nor from late events.

Shapes: M shown items of a bucket, H heads.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rayapp.contracts.config import DAY_MS, Domain, day_name
from rayapp.contracts.hashing import hash64_column
from rayapp.contracts.schema import request_schema
from rayapp.pipeline.labels import LabelledRequests
from rayapp.pipeline.log_view import LogView
from rayapp.pipeline.tasks import Told, quiet, run_tasks
from rayapp.root.facts import read_root
from rayapp.root.places import RATES, RATES_STAGING
from rayapp.root.publish import Manifest, publish_directory
from rayapp.root.rates import snapshot_start, users_file, write_users


def days_of(since_ms: int, until_ms: int, domain: Domain) -> list[int]:
    """Starts of the snapshots' periods that `[since_ms, until_ms)` touches."""
    return list(range(int(snapshot_start(since_ms, domain)), until_ms, domain.rates_every_days * DAY_MS))


def build_rates(root: Path, since_ms: int, until_ms: int, domain: Domain, told: Told = quiet) -> list[str]:
    """Publishes the snapshot of each day of the span that has none yet; their names.

    All missing days are counted in one pass over the logs.
    """
    days = [d for d in days_of(since_ms, until_ms, domain) if not (root / RATES / day_name(d)).exists()]
    if not days:
        return []
    _, num_buckets = read_root(root)
    view = LogView.of(root)
    staging = root / RATES_STAGING
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)

    def task(bucket: int) -> dict[str, Any]:
        schema = request_schema(domain.context_attributes)
        counted = count_bucket(view.labelled(bucket, schema, domain), days, domain)
        for name, table in zip(("users", "items"), counted, strict=True):
            pq.write_table(table, staging / f"{name}-{bucket:04d}.parquet", compression="zstd")
        return {}

    try:
        run_tasks(num_buckets, task, told)
        parts = [pq.read_table(staging / f"items-{b:04d}.parquet", partitioning=None) for b in range(num_buckets)]
        items = pa.concat_tables(parts).to_pandas()
        for day in days:
            publish_directory(root / RATES / day_name(day), _writer(staging, items, day, num_buckets, domain))
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return [day_name(day) for day in days]


def _writer(staging: Path, items: pd.DataFrame, day: int, num_buckets: int, domain: Domain) -> Any:
    counts = ["impressions", *domain.head_names]

    def write(directory: Path) -> Manifest:
        (directory / "users").mkdir()
        for bucket in range(num_buckets):
            users = pq.read_table(staging / f"users-{bucket:04d}.parquet", partitioning=None)
            rows = _up_to(users.to_pandas(), "user_id", day, counts)
            hashed = rows.rename_columns(["user_hash", *counts]).set_column(
                0, "user_hash", pa.array(hash64_column(rows["user_id"]))
            )
            write_users(directory / users_file(bucket), hashed)
        of_items = _up_to(items, "item_id", day, counts)
        pq.write_table(of_items, directory / "items.parquet", compression="zstd")
        total = {name: int(pc.sum(of_items[name]).as_py() or 0) for name in counts}
        return {"day_ms": day, "impressions": total.pop("impressions"), "positives": total}

    return write


def _up_to(counted: pd.DataFrame, key: str, day: int, counts: Sequence[str]) -> pa.Table:
    """Sums of everything that was known at the start of `day`."""
    known = counted[counted["known_day_ms"] <= day].groupby(key, sort=True)[list(counts)].sum()
    columns = {key: pa.array(known.index.to_numpy(dtype=object), pa.string())}
    return pa.table(columns | {name: known[name].to_numpy(np.int64) for name in counts})


def count_bucket(labelled: LabelledRequests, days: Sequence[int], domain: Domain) -> tuple[pa.Table, pa.Table]:
    """Counts of a bucket's users and of the items shown to them, by the first of `days` that knew of them.

    Pure. What no day of `days` knew of is left out.
    """
    requests, request_M = labelled.requests, labelled.request_of_item()
    mature_M = requests["timestamp_ms"].to_numpy()[request_M] + domain.attribution_ms
    users = requests["user_id"].take(pa.array(request_M))
    items = pc.list_flatten(requests["item_ids"])
    starts = np.sort(np.array(days, np.int64))

    def first_day(known_ms: NDArray[np.int64]) -> NDArray[np.int64]:
        place = np.searchsorted(starts, known_ms, side="left")
        return np.where(place < len(starts), starts[np.minimum(place, len(starts) - 1)], -1)

    frames = []
    known_at = {"impressions": mature_M}
    for h, head in enumerate(domain.head_names):
        known_at[head] = np.maximum(mature_M, labelled.known_ms_MH[:, h])  # NEVER stays NEVER
    for name, known_ms_M in known_at.items():
        day_M = first_day(known_ms_M)
        rows = np.flatnonzero(day_M >= 0)
        frame = pd.DataFrame({"known_day_ms": day_M[rows], "counted": name})
        frame["user_id"] = users.take(pa.array(rows)).to_numpy(zero_copy_only=False)
        frame["item_id"] = items.take(pa.array(rows)).to_numpy(zero_copy_only=False)
        frames.append(frame)
    every = pd.concat(frames, ignore_index=True)
    return _pivot(every, "user_id", domain), _pivot(every, "item_id", domain)


def _pivot(every: pd.DataFrame, key: str, domain: Domain) -> pa.Table:
    counts = every.groupby([key, "known_day_ms", "counted"], sort=True).size().unstack("counted", fill_value=0)
    counts = counts.reindex(columns=["impressions", *domain.head_names], fill_value=0).reset_index()
    schema = [pa.field(key, pa.string()), pa.field("known_day_ms", pa.int64())]
    schema += [pa.field(name, pa.int64()) for name in ("impressions", *domain.head_names)]
    return pa.Table.from_pandas(counts, schema=pa.schema(schema), preserve_index=False)
