"""The newest rate snapshot, as the ranker's replicas hold it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rayapp.contracts.config import Domain
from rayapp.contracts.hashing import hash64
from rayapp.contracts.schema import bucket_of
from rayapp.root.rates import Snapshot, load_items, load_users, newest


@dataclass(frozen=True, slots=True)
class _Day:
    """One snapshot; what it holds is replaced as a whole, so that no answer mixes two days."""

    name: str
    items: Snapshot
    users: dict[int, Snapshot]
    """By bucket, those that were asked for."""


class LiveRates:
    """Rates of items, and of users bucket by bucket as they are asked for. Zeros where there is no snapshot."""

    def __init__(self, root: Path, domain: Domain, num_buckets: int) -> None:
        self._root, self._domain, self._num_buckets = root, domain, num_buckets
        self._day: _Day | None = None
        self.refresh()

    def refresh(self) -> None:
        """Moves to a newer snapshot when there is one.

        Raises:
            PublishError: it is damaged; the one before stays.
        """
        name = newest(self._root)
        if name is not None and (self._day is None or name != self._day.name):
            self._day = _Day(name, load_items(self._root, name, self._domain), {})

    def features(
        self, user_id: str, candidate_hash_C: NDArray[np.uint64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], str | None]:
        """`(user's [R], candidates' [C, R], the snapshot's day)`. Reads the disk for a bucket's first user."""
        day = self._day
        if day is None:
            width = len(self._domain.heads) + 1
            return np.zeros(width, np.float32), np.zeros((len(candidate_hash_C), width), np.float32), None
        bucket = bucket_of(user_id, self._num_buckets)
        users = day.users.get(bucket)
        if users is None:
            users = day.users[bucket] = load_users(self._root, day.name, bucket, self._domain)
        user_hash_1 = np.array([hash64(user_id)], np.uint64)
        return users.features(user_hash_1)[0], day.items.features(candidate_hash_C), day.name
