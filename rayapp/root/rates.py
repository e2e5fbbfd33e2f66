"""Rate snapshots as the ranker reads them: how often a user or an item had each label, known at the start of a day.

`rates/<day>/` holds `items.parquet` (item_id, impressions, a count per head), `users/bucket=NNNN.arrow` (the same by
`user_hash`, in its order) and the totals in its manifest; `pipeline.rates` writes them. Training reads a file for each
bucket and day, so these are Arrow files, which open several times as fast as Parquet.

Shapes: N ids of a snapshot, Q ids asked for, H heads, R = H + 1 features.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rayapp.contracts.config import DAY_MS, Domain
from rayapp.contracts.hashing import hash64_column, places_of
from rayapp.root.places import RATES
from rayapp.root.publish import PublishError, read_manifest

PRIOR_STRENGTH: Final = 20.0
"""A rate counts as many impressions of the average besides its own."""
LOWEST_RATE: Final = 1e-6


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One day's counts, of users or of items, sorted by the hash of the id."""

    hash_N: NDArray[np.uint64]
    impressions_N: NDArray[np.int64]
    positives_NH: NDArray[np.int64]
    average_H: NDArray[np.float64]
    """Rates over all impressions that the snapshot knows."""

    def features(self, hash_Q: NDArray[np.uint64]) -> NDArray[np.float32]:
        """`[Q, R]` for `hash64` of ids in any shape: log-odds of each rate above the average's, and the logarithm of
        the impressions; zeros for an id that the snapshot does not know.

        A rate is drawn towards the average of all by PRIOR_STRENGTH impressions.
        """
        feature_QR = np.zeros((*hash_Q.shape, len(self.average_H) + 1), np.float32)
        place_Q, known_Q = places_of(self.hash_N, hash_Q)
        place_K = place_Q[known_Q]
        impressions_K = self.impressions_N[place_K]
        smoothed_KH = self.positives_NH[place_K] + PRIOR_STRENGTH * self.average_H
        smoothed_KH /= (impressions_K + PRIOR_STRENGTH)[:, None]
        above_KH = log_odds(smoothed_KH) - log_odds(self.average_H)
        feature_QR[known_Q] = np.column_stack([above_KH, np.log1p(impressions_K) / 5])
        return feature_QR


def log_odds(rate: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of rates in any shape; those of 0 and 1 are kept finite."""
    rate = rate.clip(LOWEST_RATE, 1 - LOWEST_RATE)
    return np.asarray(np.log(rate / (1 - rate)))


def snapshot_start(timestamp_ms: NDArray[np.int64] | int, domain: Domain) -> NDArray[np.int64]:
    """Start of the period whose snapshot a request of this time sees: a UTC day, or several (`rates_every`)."""
    period_ms = domain.rates_every_days * DAY_MS
    return np.asarray(timestamp_ms, np.int64) // period_ms * period_ms


def load_items(root: Path, day: str, domain: Domain) -> Snapshot:
    """The items' snapshot of a day.

    Raises:
        PublishError: there is none, it is damaged, or it counts other heads. So do all that read one.
    """
    with _reading(root, day, "items.parquet") as path:
        table = pq.read_table(path, partitioning=None)
        hash_N = hash64_column(table["item_id"])
        order = np.argsort(hash_N)
        return _snapshot(table.take(pa.array(order)), hash_N[order], root / RATES / day, domain)


def load_users(root: Path, day: str, bucket: int, domain: Domain) -> Snapshot:
    """The snapshot of one bucket's users."""
    with _reading(root, day, users_file(bucket)) as path:
        table = read_users(path)
        return _snapshot(table, table["user_hash"].to_numpy(), root / RATES / day, domain)


def users_file(bucket: int) -> str:
    """Where a snapshot keeps a bucket's users."""
    return f"users/bucket={bucket:04d}.arrow"


def read_users(path: Path) -> pa.Table:
    """A bucket's users as `write_users` wrote them."""
    with pa.OSFile(str(path)) as source:  # copied: what a closed memory map leaves behind is not to be relied on
        return pa.ipc.open_file(source).read_all()


def write_users(path: Path, table: pa.Table) -> None:
    """`table`: `user_hash`, `impressions` and a count per head."""
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.ipc.new_file(str(path), table.schema, options=options) as writer:
        writer.write_table(table.sort_by("user_hash"))


def newest(root: Path) -> str | None:
    """The last day that has a snapshot."""
    return max((path.name for path in (root / RATES).glob("[!.]*")), default=None)


@contextlib.contextmanager
def _reading(root: Path, day: str, file: str) -> Iterator[Path]:
    directory = root / RATES / day
    if not directory.exists():
        raise PublishError(f"there are no rates of {day} in {root / RATES}; `rayapp windows` counts them")
    try:
        yield directory / file
    except (OSError, KeyError, pa.ArrowInvalid) as error:
        raise PublishError(
            f"{directory / file} is damaged, of other heads, or of an older version ({error}); remove {directory} and "
            "count its rates again: `rayapp windows`"
        ) from None


def _snapshot(table: pa.Table, hash_N: NDArray[np.uint64], directory: Path, domain: Domain) -> Snapshot:
    manifest = read_manifest(directory)
    positives_NH = np.stack([table[head].to_numpy() for head in domain.head_names], axis=1)
    total_H = np.array([manifest["positives"][head] for head in domain.head_names], np.float64)
    return Snapshot(hash_N, table["impressions"].to_numpy(), positives_NH, total_H / max(manifest["impressions"], 1))
