"""Training data of item vectors: who engaged with what, in order, as rows of the catalogue.

Shapes: P positive actions.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from numpy.typing import NDArray

from rayapp.contracts.config import Domain
from rayapp.contracts.hashing import hash64_column, places_of
from rayapp.contracts.schema import ActionKind
from rayapp.pipeline.histories import EVENT_COLUMNS
from rayapp.pipeline.log_view import LogView
from rayapp.pipeline.tasks import Told, quiet, run_tasks
from rayapp.root.facts import read_root
from rayapp.root.places import ENGAGEMENTS_STAGING

PER_USER: Final = 500
"""A user's newest actions that count: without a limit a few heavy users would decide every vector."""


@dataclass(frozen=True, slots=True)
class Engagements:
    """Positive actions on items of the catalogue, or all but the negative ones, by user and time."""

    user_P: NDArray[np.int64]
    item_P: NDArray[np.int64]
    """Row of the catalogue."""
    timestamp_ms_P: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.user_P)

    def before(self, until_ms: int) -> "Engagements":
        keep = self.timestamp_ms_P < until_ms
        return Engagements(self.user_P[keep], self.item_P[keep], self.timestamp_ms_P[keep])

    def contexts(self, length: int) -> NDArray[np.int64]:
        """`[P, length]`: the items this user engaged with before each, newest first; -1 where there were fewer."""
        at_PL = np.arange(len(self))[:, None] - 1 - np.arange(length)
        same_PL = (at_PL >= 0) & (self.user_P[at_PL.clip(min=0)] == self.user_P[:, None])
        return np.where(same_PL, self.item_P[at_PL.clip(min=0)], -1)


def read_engagements(
    root: Path, catalogue: pa.Table, domain: Domain, told: Told = quiet, *, all_but_negative: bool = False
) -> Engagements:
    """All positive actions of the log, bucket by bucket, or all that are not negative; `catalogue` gives the rows."""
    _, num_buckets = read_root(root)
    view = LogView.of(root)
    hashes = hash64_column(catalogue["item_id"])
    order = np.argsort(hashes)
    lookup = ray.put((hashes[order], order))
    counted = domain.vocabulary.flags(kind=ActionKind.POSITIVE)
    if all_but_negative:
        counted = domain.vocabulary.flags(in_sequence=True) & ~domain.vocabulary.flags(kind=ActionKind.NEGATIVE)
    staging = root / ENGAGEMENTS_STAGING
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)

    def task(number: int) -> dict[str, Any]:
        bucket = view.events(number, EVENT_COLUMNS)
        bucket = bucket.filter(counted[domain.vocabulary.ids_of(bucket.events["action"])])
        if not bucket.events.num_rows:
            return {"rows": 0}
        known_hashes, rows = ray.get(lookup)
        item = hash64_column(bucket.events["item_id"])
        place, known = places_of(known_hashes, item)
        from_end = np.flatnonzero(np.r_[np.diff(bucket.user_E) != 0, True])[bucket.user_E] - np.arange(len(item))
        keep = known & (from_end < PER_USER)
        table = pa.table(
            {
                "user": bucket.user_E[keep],
                "item": rows[place[keep]],
                "timestamp_ms": bucket.events["timestamp_ms"].to_numpy()[keep],
            }
        )
        pq.write_table(table, staging / f"bucket={number:04d}.parquet")
        return {"rows": table.num_rows}

    try:
        done = run_tasks(num_buckets, task, told)
        users, items, times = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        first = 0
        for number, result in enumerate(done):
            if result["rows"]:
                part = pq.read_table(staging / f"bucket={number:04d}.parquet", partitioning=None)
                users.append(part["user"].to_numpy() + first)
                items.append(part["item"].to_numpy())
                times.append(part["timestamp_ms"].to_numpy())
                first = int(users[-1][-1]) + 1
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Engagements(np.concatenate(users), np.concatenate(items), np.concatenate(times))
