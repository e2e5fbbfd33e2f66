"""Rate snapshots as the ranker reads them: how often a user or an item had each label, known at the start of a day.

`rates/<day>/` holds `users/bucket=NNNN.parquet` (user_id, impressions, a count per head), `items.parquet` (the same by
item_id) and the totals in its manifest; `pipeline.rates` writes them. Training and serving read them here.

Shapes: N ids of a snapshot, Q ids asked for, H heads, R = H + 1 features.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rayapp.config import DAY_MS, Domain
from rayapp.hashing import hash64_column
from rayapp.publish import PublishError, read_manifest

RATES: Final = "rates"
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

    def smoothed(self) -> NDArray[np.float64]:
        """Rates `[N, H]`, drawn towards the average of all by PRIOR_STRENGTH impressions."""
        prior_H = PRIOR_STRENGTH * self.average_H
        return np.asarray((self.positives_NH + prior_H) / (self.impressions_N[:, None] + PRIOR_STRENGTH))

    def features(self, hash_Q: NDArray[np.uint64]) -> NDArray[np.float32]:
        """`[Q, R]` for `hash64` of ids in any shape: log-odds of each rate above the average's, and the logarithm of
        the impressions; zeros for an id that the snapshot does not know."""
        feature_NR = np.zeros((len(self.hash_N) + 1, len(self.average_H) + 1), np.float32)
        feature_NR[:-1, :-1] = _log_odds(self.smoothed()) - _log_odds(self.average_H)
        feature_NR[:-1, -1] = np.log1p(self.impressions_N) / 5
        place_Q = np.searchsorted(self.hash_N, hash_Q).clip(max=max(len(self.hash_N) - 1, 0))
        known_Q = self.hash_N[place_Q] == hash_Q if len(self.hash_N) else np.zeros(hash_Q.shape, bool)
        return np.asarray(feature_NR[np.where(known_Q, place_Q, len(self.hash_N))])


def _log_odds(rate: NDArray[np.float64]) -> NDArray[np.float64]:
    rate = rate.clip(LOWEST_RATE, 1 - LOWEST_RATE)
    return np.asarray(np.log(rate / (1 - rate)))


def snapshot_start(timestamp_ms: NDArray[np.int64] | int, domain: Domain) -> NDArray[np.int64]:
    """Start of the period whose snapshot a request of this time sees: a UTC day, or several (`rates_every`)."""
    period_ms = domain.rates_every_days * DAY_MS
    return np.asarray(timestamp_ms, np.int64) // period_ms * period_ms


def load_items(root: Path, day: str, domain: Domain) -> Snapshot:
    """The items' snapshot of a day."""
    return _load(root, day, "item_id", "items.parquet", domain)


def load_users(root: Path, day: str, bucket: int, domain: Domain) -> Snapshot:
    """The snapshot of one bucket's users."""
    return _load(root, day, "user_id", f"users/bucket={bucket:04d}.parquet", domain)


def newest(root: Path) -> str | None:
    """The last day that has a snapshot."""
    return max((path.name for path in (root / RATES).glob("[!.]*")), default=None)


def _load(root: Path, day: str, key: str, file: str, domain: Domain) -> Snapshot:
    directory = root / RATES / day
    if not directory.exists():
        raise PublishError(f"there are no rates of {day} in {root / RATES}; `rayapp windows` counts them")
    manifest = read_manifest(directory)
    try:
        table = pq.read_table(directory / file, partitioning=None)
        positives_NH = np.stack([table[head].to_numpy() for head in domain.head_names], axis=1)
        total_H = np.array([manifest["positives"][head] for head in domain.head_names], np.float64)
    except (OSError, KeyError, pa.ArrowInvalid) as error:
        raise PublishError(f"{directory / file} is damaged or of other heads ({error}); remove {directory} and build "
                           "the window's rates again") from None  # fmt: skip
    hash_N = hash64_column(table[key])
    order = np.argsort(hash_N)
    return Snapshot(
        hash_N[order],
        table["impressions"].to_numpy()[order],
        positives_NH[order],
        total_H / max(manifest["impressions"], 1),
    )
