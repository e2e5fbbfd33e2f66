"""Statistics as a ranker reads them: those of all items looked up once a step, those of a user with each request.

Shapes: C candidates, I items, P items put since, K columns, E events of a user, R histories.
"""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rayapp.contracts.config import Domain
from rayapp.contracts.hashing import hash64, places_of
from rayapp.contracts.schema import is_deleted, item_schema
from rayapp.features.item_values import ItemValues
from rayapp.features.sequence import History
from rayapp.features.statistic_columns import Columns
from rayapp.features.statistics import Hashes
from rayapp.root.erasure import tombstones
from rayapp.serving.closed_steps import ClosedSteps
from rayapp.serving.refreshed import PutItems
from rayapp.statistics.known import Base, Statistics
from rayapp.statistics.left_out import gone_counts
from rayapp.store import Store

Numbers = NDArray[np.float32]
LATE_STEPS: Final = 2
"""So many steps behind, statistics are not fresh any more."""
ITEMS_AT_ONCE: Final = 50_000


@dataclass(frozen=True, slots=True)
class StepStatistics:
    """Statistics as of the beginning of one step; those of all items known then are looked up once."""

    statistics: Statistics
    step: int
    hash_I: Hashes
    column_IK: Numbers
    erased: frozenset[int]
    """Hashes of users of whom nothing is read any more."""
    put_hash_P: Hashes
    """Items put since, whose categories may be others than `column_IK` knows."""

    @staticmethod
    def of(statistics: Statistics, step: int, erased: frozenset[int]) -> "StepStatistics":
        hash_I = statistics.item_values.hash_I
        column_IK = np.zeros((len(hash_I), statistics.columns.num_item), np.float32)
        for at in range(0, len(hash_I), ITEMS_AT_ONCE):
            part = slice(at, at + ITEMS_AT_ONCE)
            column_IK[part] = statistics.items(hash_I[part], np.full(len(hash_I[part]), step))
        return StepStatistics(statistics, step, hash_I, column_IK, erased, np.zeros(0, np.uint64))

    def with_put(self, put: ItemValues) -> "StepStatistics":
        """An item takes the statistics of its categories from the moment it is put, as later readers of the log do."""
        statistics = dataclasses.replace(self.statistics, item_values=self.statistics.item_values.updated(put))
        return dataclasses.replace(self, statistics=statistics, put_hash_P=np.union1d(self.put_hash_P, put.hash_I))

    def of_items(self, hash_C: Hashes) -> Numbers:
        """`[C, K]`."""
        row_C, known_C = places_of(self.hash_I, hash_C)
        if len(self.put_hash_P):
            known_C &= ~np.isin(hash_C, self.put_hash_P)
        if known_C.all():
            return np.asarray(self.column_IK[row_C])
        column_CK, new_C = np.zeros((len(hash_C), self.column_IK.shape[1]), np.float32), np.flatnonzero(~known_C)
        column_CK[known_C] = self.column_IK[row_C[known_C]]
        column_CK[new_C] = self.statistics.items(hash_C[new_C], np.full(len(new_C), self.step))
        return column_CK

    def of_user(self, user_hash: int) -> Numbers:
        """`[K]`."""
        if user_hash in self.erased:
            return np.zeros(self.statistics.columns.num_user, np.float32)
        return np.asarray(self.statistics.users(np.array([user_hash], np.uint64), np.array([self.step]))[0])

    def of_user_without(self, user_hash: int, history: History, keep_RE: NDArray[np.bool_], domain: Domain) -> Numbers:
        """`[R, K]`: `of_user` as it would be had only the kept actions happened."""
        if user_hash in self.erased:
            return np.zeros((len(keep_RE), self.statistics.columns.num_user), np.float32)
        gone_RSA = gone_counts(history, keep_RE, domain, self.step)
        return self.statistics.users_without(np.uint64(user_hash), self.step, gone_RSA)


@dataclass(frozen=True, slots=True)
class Read:
    """What one request reads of the statistics."""

    user_K: Numbers
    item_CK: Numbers
    at_ms: int | None
    """They hold what was received before; None without any."""
    fresh: bool
    """Whether that is as of now, give or take LATE_STEPS."""


class FreshStatistics:
    """Of one replica. `refresh` is called by one thread at a time, `read` by any."""

    def __init__(self, root: Path, domain: Domain, store: Store, time_ns: Callable[[], int] = time.time_ns) -> None:
        """`time_ns`: the clock."""
        self._root, self._domain, self._items = root, domain, PutItems(store)
        self._steps = ClosedSteps(root, domain, store, time_ns)
        self._closed: StepStatistics | None = None
        self.refresh()

    def read(self, user_id: str, hash_C: Hashes) -> Read:
        """Zeros until the store was read for the first time."""
        closed = self._closed
        if closed is None:
            num_item, num_user = Columns.of(self._domain).widths
            return Read(np.zeros(num_user, np.float32), np.zeros((len(hash_C), num_item), np.float32), None, False)
        return self._read(closed, user_id, hash_C)

    def read_without(
        self, user_id: str, hash_C: Hashes, history: History, keep_RE: NDArray[np.bool_]
    ) -> tuple[Read, Numbers]:
        """`read`, and of the same moment the user's numbers `[R, K]` had only the kept actions happened."""
        closed = self._closed
        if closed is None:
            read = self.read(user_id, hash_C)
            return read, np.repeat(read.user_K[None], len(keep_RE), axis=0)
        user_RK = closed.of_user_without(hash64(user_id), history, keep_RE, self._domain)
        return self._read(closed, user_id, hash_C), user_RK

    def _read(self, closed: StepStatistics, user_id: str, hash_C: Hashes) -> Read:
        fresh = self._steps.last_over() - closed.step <= LATE_STEPS
        at_ms = closed.step * closed.statistics.grid.step_ms
        return Read(closed.of_user(hash64(user_id)), closed.of_items(hash_C), at_ms, fresh)

    def refresh(self) -> None:
        """Reads what is new, and moves on when a step is over.

        Raises:
            PublishError: the statistics that were counted last, or a log, can't be read; what is served stays.
            StoreError: the store does not answer; likewise.
        """
        self._steps.read()
        news = self._items.news()  # behind the rows: whoever acted on an item finds it put
        if news and self._closed is not None:
            self._closed = self._closed.with_put(self._values_of(news))
        if (closed := self._steps.close(self._values)) is not None:
            self._closed = StepStatistics.of(closed.statistics, closed.step, frozenset(tombstones(self._root)))

    def _values(self, base: Base) -> ItemValues:
        """Of the items that were counted and those put since."""
        put, values = self._items.items, base.statistics.item_values
        return values.updated(self._values_of(put)) if put else values

    def _values_of(self, items: list[dict[str, Any]]) -> ItemValues:
        items = [item for item in items if not is_deleted(item)]  # the others count where they counted
        table = pa.Table.from_pylist(items, schema=item_schema(self._domain.attributes))
        return ItemValues.of(table, self._domain)
