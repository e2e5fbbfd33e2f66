"""Item tables: the immutable link between item ids, dense rows, vectors, attributes and the tower that made them.

Rows are private to one table; row 0 is "absent".

Shapes: N items + 1 rows, E vector width, C items asked for, P items put.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray

from rayapp.contracts.hashing import hash64, places_of
from rayapp.contracts.schema import deleted_item, is_deleted
from rayapp.features.attributes import ABSENT
from rayapp.features.content import Item
from rayapp.model.covisits import Covisits
from rayapp.model.tower import LinearTower


@dataclass(frozen=True, slots=True)
class ItemTable:
    """Items of one catalogue version; `items[n]` sits in row n + 1."""

    name: str
    tower: LinearTower
    items: tuple[Item, ...]
    likes_N: NDArray[np.int64]
    """Positive actions of each row's item before the end of the training data; row 0 is 0."""
    vectors_NE: NDArray[np.float32]
    trained_until_ms: int
    _sorted_hash: NDArray[np.uint64] = field(repr=False)
    _sorted_row: NDArray[np.int64] = field(repr=False)
    _round: int = field(repr=False)
    """How often items were put into it since it was made."""
    _round_N: NDArray[np.int64] = field(repr=False)
    """The round in which each row's item was put; 0: when it was made."""
    _num_made: int = field(repr=False)
    """Rows that it was made with."""
    covisits: Covisits | None = None
    """Of a log without shown lists."""

    @classmethod
    def make(
        cls,
        name: str,
        tower: LinearTower,
        items: Sequence[Item],
        likes: NDArray[np.int64],
        vectors: NDArray[np.float32],
        trained_until_ms: int,
        covisits: Covisits | None = None,
    ) -> Self:
        """`likes` and `vectors` have a row per item; row 0 is added here. `covisits` has it already.

        Raises:
            ValueError: two items have one id, or (once in 10^8 for a million items) one hash.
        """
        hashes = np.fromiter((hash64(item["item_id"]) for item in items), np.uint64, len(items))
        order = np.argsort(hashes)
        same = np.flatnonzero(np.diff(hashes[order]) == 0)
        if len(same):
            a, b = (items[order[same[0] + k]]["item_id"] for k in (0, 1))
            raise ValueError(f"items {a!r} and {b!r} have one id or one 8-byte hash; rename one of them")
        return cls(
            name,
            tower,
            tuple(items),
            np.concatenate([np.zeros(1, np.int64), likes]),
            np.concatenate([np.zeros((1, vectors.shape[1]), np.float32), vectors]),
            trained_until_ms,
            hashes[order],
            order + 1,
            0,
            np.zeros(len(items) + 1, np.int64),
            len(items) + 1,
            covisits,
        )

    @property
    def num_rows(self) -> int:
        return len(self.items) + 1

    def hashes(self) -> NDArray[np.uint64]:
        """`hash64` of each row's item id `[N]`; 0 for row 0. Made anew at every call."""
        hash_N = np.zeros(self.num_rows, np.uint64)
        hash_N[self._sorted_row] = self._sorted_hash
        return hash_N

    def rows_of(self, item_hash: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Rows of `hash64(item_id)` in any shape; ABSENT for items the table does not hold."""
        place, known = places_of(self._sorted_hash, item_hash)
        rows = np.full(item_hash.shape, ABSENT, np.int64)
        rows[known] = self._sorted_row[place[known]]
        return rows

    def rows_of_ids(self, item_ids: Sequence[str]) -> NDArray[np.int64]:
        return self.rows_of(np.fromiter((hash64(i) for i in item_ids), np.uint64, len(item_ids)))

    def item(self, row: int) -> Item:
        return self.items[row - 1]

    def vectors_of(self, item_ids: Sequence[str]) -> NDArray[np.float32]:
        """Vectors `[C, E]`; zeros for items the table does not hold."""
        return self.vectors_NE[self.rows_of_ids(item_ids)]

    def with_items(self, changed: Sequence[Item]) -> "ItemTable":
        """This table plus items put since it was made, each embedded by this table's own tower.

        A changed item keeps its row and its likes, and where its attributes are what they were its vector too, which
        need not be the tower's: it may have been given. The result lives in memory only. Costs one copy of the columns.
        """
        latest = self._put({item["item_id"]: item for item in changed})
        put = list(latest.values())
        vectors_PE = self.tower.embed(put)
        hash_P = np.fromiter((hash64(item_id) for item_id in latest), np.uint64, len(latest))
        row_P = self.rows_of(hash_P)
        is_new_P = row_P == ABSENT
        num_new = int(is_new_P.sum())
        row_P[is_new_P] = np.arange(self.num_rows, self.num_rows + num_new)
        vectors_NE = np.concatenate([self.vectors_NE, np.zeros((num_new, self.vectors_NE.shape[1]), np.float32)])
        same_P = np.array([self._same_content(row, item) for row, item in zip(row_P.tolist(), put, strict=True)], bool)
        vectors_NE[row_P[~same_P]] = vectors_PE[~same_P]
        items = [*self.items, *(put[0] for _ in range(num_new))]
        for row, item in zip(row_P.tolist(), put, strict=True):
            items[row - 1] = item
        round_N = np.append(self._round_N, np.zeros(num_new, np.int64))
        round_N[row_P] = self._round + 1
        order = np.argsort(hash_P[is_new_P])
        new_hash, new_row = hash_P[is_new_P][order], row_P[is_new_P][order]
        place = np.searchsorted(self._sorted_hash, new_hash)
        return dataclasses.replace(
            self,
            items=tuple(items),
            likes_N=np.append(self.likes_N, np.zeros(num_new, np.int64)),
            vectors_NE=vectors_NE,
            _sorted_hash=np.insert(self._sorted_hash, place, new_hash),
            _sorted_row=np.insert(self._sorted_row, place, new_row),
            _round=self._round + 1,
            _round_N=round_N,
        )

    def _put(self, latest: Mapping[str, Item]) -> dict[str, Item]:
        """The items as rows keep them. A deleted one stays what it was, for the histories that name it, but in no feed;
        one that has no row needs none."""
        put: dict[str, Item] = {}
        for item_id, item in latest.items():
            if not is_deleted(item):
                put[item_id] = item
            elif row := int(self.rows_of_ids([item_id])[0]):
                put[item_id] = {**self.item(row), **item, "available": False}
        return put

    def without(self, gone: Sequence[int]) -> "ItemTable":
        """This table with the items of some rows deleted."""
        return self.with_items([deleted_item(self.item(row)["item_id"]) for row in gone])

    def blank(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Of rows in any shape, whether nothing is known of their item: it was put since the table was made, and has no
        attributes."""
        blank: NDArray[np.bool_] = rows >= self._num_made
        blank[blank] = ~self.vectors_NE[rows[blank]].any(axis=-1)  # of these alone: every candidate comes by here
        if blank.any():
            names = [attribute.name for attribute in self.tower.attributes]
            items = [self.item(row) for row in rows[blank].tolist()]
            blank[blank] = [all(item.get(name) in (None, "", []) for name in names) for item in items]
        return blank

    def _same_content(self, row: int, item: Item) -> bool:
        """Whether the tower reads of `item` what it read of the row's item."""
        if row >= self.num_rows:
            return False
        old = self.item(row)
        return all((old.get(a.name) or None) == (item.get(a.name) or None) for a in self.tower.attributes)

    def changed_since(self, older: "ItemTable") -> NDArray[np.int64]:
        """Rows of items put after `older`, of which this table is an extension.

        Raises:
            ValueError: they are not of one name.
        """
        if older.name != self.name:
            raise ValueError(f"item table {self.name} does not extend {older.name}")
        return np.flatnonzero(self._round_N > older._round)
