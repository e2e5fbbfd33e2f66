"""The newest rate snapshot, as the ranker's replicas hold it."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rayapp.config import Domain
from rayapp.hashing import hash64
from rayapp.rates import Snapshot, load_items, load_users, newest
from rayapp.schema import bucket_of


class LiveRates:
    """Rates of items, and of users bucket by bucket as they are asked for. Zeros where there is no snapshot."""

    def __init__(self, root: Path, domain: Domain, num_buckets: int) -> None:
        self._root, self._domain, self._num_buckets = root, domain, num_buckets
        self.day: str | None = None
        """The snapshot's name, which every answer carries."""
        self._items: Snapshot | None = None
        self._users: dict[int, Snapshot] = {}
        self.refresh()

    def refresh(self) -> None:
        """Moves to a newer snapshot when there is one.

        Raises:
            PublishError: it is damaged; the one before stays.
        """
        day = newest(self._root)
        if day is not None and day != self.day:
            self._items, self._users, self.day = load_items(self._root, day, self._domain), {}, day

    def features(
        self, user_id: str, candidate_hash_C: NDArray[np.uint64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], str | None]:
        """`(user's [R], candidates' [C, R], the snapshot's day)`."""
        day, items = self.day, self._items
        width = len(self._domain.heads) + 1
        if day is None or items is None:
            return np.zeros(width, np.float32), np.zeros((len(candidate_hash_C), width), np.float32), None
        bucket = bucket_of(user_id, self._num_buckets)
        users = self._users.get(bucket)
        if users is None:
            users = self._users[bucket] = load_users(self._root, day, bucket, self._domain)
        user_hash_1 = np.array([hash64(user_id)], np.uint64)
        return users.features(user_hash_1)[0], items.features(candidate_hash_C), day
