"""One item table made ready for the candidate sources: availability, categories, orders, neighbours.

Shapes: N item table rows (row 0 is "absent"), S seeds, K neighbours of each.
"""

import copy
import heapq
from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rayapp.contracts.schema import AttributeKind, is_deleted
from rayapp.features.attributes import ABSENT
from rayapp.model.item_table import ItemTable
from rayapp.retrieval.neighbours import Neighbours
from rayapp.retrieval.orders import NO_POSITIVES, Known, Orders, Positives, Rows, Scores
from rayapp.retrieval.sources import NO_ROWS, NO_SCORES

MOST_CATEGORIES: Final = 20
"""Categories of one user's likes that bring items."""
MOST_KEPT_AWAY: Final = 100
"""Nearest rows of one hidden item."""


class CandidateIndex:
    """What `sources.Index` promises, over one item table. Not changed once made, so any thread may read it."""

    def __init__(self, table: ItemTable, positives: Positives = NO_POSITIVES) -> None:
        self.table, self.item_hash_N, self._positives = table, table.hashes(), positives
        size = table.num_rows
        self._available_N = np.ones(size, bool)
        self._created_ms_N = np.zeros(size, np.int64)
        rows = np.arange(1, size)
        self._read(rows)
        self._having = {key: np.array(having, np.int64) for key, having in _by_category(table, rows).items()}
        self.orders = Orders.of(self._known())
        self._neighbours = Neighbours(table.vectors_NE)

    def ordered(self, positives: Positives) -> "CandidateIndex":
        """The same items in the orders of another moment."""
        other = copy.copy(self)
        other._positives = positives
        other.orders = self.orders.anew(other._known())
        return other

    def extended(self, table: ItemTable) -> "CandidateIndex":
        """The index over `table`, which is this one's plus items put since; costs copies of a few columns."""
        changed = table.changed_since(self.table)
        added = np.arange(self.table.num_rows, table.num_rows)
        more = copy.copy(self)
        more.table, more.item_hash_N = table, table.hashes()
        more._available_N = np.append(self._available_N, np.ones(len(added), bool))
        more._created_ms_N = np.append(self._created_ms_N, np.zeros(len(added), np.int64))
        more._read(changed)
        more._having = self._having_with(table, changed)
        more.orders = self.orders.extended(more._known(), changed)
        more._neighbours = self._neighbours.extended(table.vectors_NE, changed)
        return more

    def rows_of(self, item_hash: NDArray[np.uint64]) -> Rows:
        """Rows of `hash64(item_id)`; ABSENT for items that the table does not hold."""
        return self.table.rows_of(item_hash)

    def allowed(
        self, now_ms: int, require: Mapping[str, frozenset[str]], exclude_hash: NDArray[np.uint64]
    ) -> NDArray[np.bool_]:
        """`[N]`: what is available now, has one of the values of each required attribute, and is not excluded."""
        allowed_N = self._available_N & (self._created_ms_N <= now_ms)
        for attribute, values in require.items():
            allowed_N &= self._with_category(attribute, values)
        allowed_N[self.rows_of(exclude_hash)] = False
        allowed_N[ABSENT] = False
        return allowed_N

    def categories(self, limit: int) -> dict[str, list[tuple[str, int]]]:
        """Categorical attribute -> its values and how many items have each, the `limit` most frequent ones."""
        counts: dict[str, list[tuple[str, int]]] = {}
        for (attribute, value), rows in self._having.items():
            if len(rows):
                counts.setdefault(attribute, []).append((value, len(rows)))
        return {
            name: heapq.nsmallest(limit, values, key=lambda pair: (-pair[1], pair[0]))
            for name, values in counts.items()
        }

    def _with_category(self, attribute: str, values: frozenset[str]) -> NDArray[np.bool_]:
        """Rows whose item has one of the values; none for an attribute that is not categorical or not known."""
        has_N = np.zeros(self.table.num_rows, bool)
        for value in values:
            has_N[self._having.get((attribute, value), NO_ROWS)] = True
        return has_N

    def near(self, seeds: Rows, hidden: Rows, count: int, free_N: NDArray[np.bool_]) -> tuple[Rows, Scores]:
        """Rows by turns: the best neighbour of the newest seed, of the next, and so on round; and how near.

        Left out is what stands nearer to an item that the user rejected than to the seed that found it.
        """
        vectors_NE = self.table.vectors_NE
        row_SK, similarity_SK = self._neighbours.search(vectors_NE[seeds], count, free_N)
        found, similarity = row_SK.T.ravel(), similarity_SK.T.ravel()
        first = np.sort(np.unique(found, return_index=True)[1])
        first = first[found[first] != ABSENT]
        found, similarity = found[first], similarity[first]
        if len(hidden):
            keep = (vectors_NE[found] @ vectors_NE[hidden].T).max(axis=1) <= similarity + 1e-5
            found, similarity = found[keep], similarity[keep]
        return found, np.clip(similarity, 0, 1)

    def of_categories(self, likes: Rows, count: int, free_N: NDArray[np.bool_]) -> Rows:
        """Free rows by turns: the most popular one of the category that most likes have, of the next, and so on round.
        Of categories with as many likes, the newest like's comes first."""
        having = _by_category(self.table, likes)
        frequent = sorted(having, key=lambda key: -len(having[key]))[:MOST_CATEGORIES]
        rows = [self._most_popular(self._having.get(key, NO_ROWS), count, free_N) for key in frequent]
        row_K = np.concatenate([NO_ROWS, *rows])
        turn_K = np.concatenate([NO_ROWS, *(np.arange(len(of_one)) for of_one in rows)])
        row_K = row_K[np.argsort(turn_K, kind="stable")]
        return row_K[np.sort(np.unique(row_K, return_index=True)[1])][:count]

    def _most_popular(self, rows: Rows, count: int, free_N: NDArray[np.bool_]) -> Rows:
        rows = rows[free_N[rows]]
        # Ties end at the hash, as those of the orders do.
        last_K = self.item_hash_N[rows] / 2.0**64 * 1e-9 - self.orders.popularity_N[rows]
        if len(rows) > count:
            best = np.argpartition(last_K, count - 1)[:count]
            rows, last_K = rows[best], last_K[best]
        return rows[np.argsort(last_K)]

    def around(self, hidden: Rows, likes: Rows, nearer_than: float, free_N: NDArray[np.bool_]) -> Rows:
        """Free rows, but the hidden ones, with at least this cosine to one of them, and none larger to a like; of each
        the nearest MOST_KEPT_AWAY."""
        if not len(hidden):
            return NO_ROWS
        vectors_NE = self.table.vectors_NE
        row_SK, similarity_SK = self._neighbours.search(vectors_NE[hidden], MOST_KEPT_AWAY, free_N)
        near = np.setdiff1d(row_SK[similarity_SK >= nearer_than], [ABSENT, *hidden])
        if not len(likes) or not len(near):
            return near
        to_hidden, to_likes = ((vectors_NE[near] @ vectors_NE[rows].T).max(axis=1) for rows in (hidden, likes))
        return np.asarray(near[to_hidden > to_likes])

    def beside(self, last: Rows, count: int, free_N: NDArray[np.bool_]) -> tuple[Rows, Scores]:
        """The free rows with the largest co-visitation with the last items, as shares of the largest."""
        if self.table.covisits is None:
            return NO_ROWS, NO_SCORES
        rows, weights = self.table.covisits.of_last_items(last)
        rows, weights = rows[free_N[rows]], weights[free_N[rows]]
        best = np.argsort(-weights, kind="stable")[:count]
        return rows[best], (weights[best] / max(weights.max(initial=0.0), 1e-9)).astype(np.float32)

    def similar(self, item_hash: np.uint64, count: int, now_ms: int) -> tuple[Rows, Scores] | None:
        """The nearest rows that are available, without the item's own, and their cosines; None where the table does not
        hold the item, or it was deleted."""
        row = self.rows_of(np.array([item_hash], np.uint64))
        if row[0] == ABSENT or is_deleted(self.table.item(int(row[0]))):
            return None
        if not self.table.vectors_NE[row].any():
            return NO_ROWS, NO_SCORES  # nothing is near an item without a vector
        free_N = self.allowed(now_ms, {}, np.array([item_hash], np.uint64))
        found, similarity = self.near(row, NO_ROWS, count, free_N)
        return found[:count], similarity[:count]

    def _read(self, rows: Rows) -> None:
        """Availability and date of these rows' items."""
        items = [self.table.item(row) for row in rows.tolist()]
        self._available_N[rows] = [item.get("available") is not False for item in items]
        self._created_ms_N[rows] = [item["created_at_ms"] for item in items]

    def _having_with(self, table: ItemTable, changed: Rows) -> dict[tuple[str, str], Rows]:
        """`_having` after the items of `changed` were replaced or added."""
        gone = _by_category(self.table, changed[changed < self.table.num_rows])
        come = _by_category(table, changed)
        having = dict(self._having)
        for key in gone.keys() | come.keys():
            rows = having.get(key, NO_ROWS)
            having[key] = np.append(rows[~np.isin(rows, gone.get(key, []))], np.array(come.get(key, []), np.int64))
        return having

    def _known(self) -> Known:
        row_K = self.table.rows_of(self._positives.hash_K)
        lately_N, lasting_N = np.zeros((2, self.table.num_rows))
        lately_N[row_K], lasting_N[row_K] = self._positives.lately_K, self._positives.lasting_K
        lately_N[ABSENT] = lasting_N[ABSENT] = 0.0
        return Known(self.item_hash_N, self._created_ms_N, self.table.likes_N, lately_N, lasting_N)


def _most_items_first(count: tuple[str, int]) -> tuple[int, str]:
    value, items = count
    return -items, value


def _by_category(table: ItemTable, rows: Rows) -> dict[tuple[str, str], list[int]]:
    """(attribute, value) -> those of `rows` whose item has it."""
    names = [a.name for a in table.tower.attributes if a.kind is AttributeKind.CATEGORIES]
    having: dict[tuple[str, str], list[int]] = {}
    for row in rows.tolist():
        item = table.item(row)
        for name in names:
            for value in item.get(name) or ():
                having.setdefault((name, value), []).append(row)
    return having
