"""Candidate sources over one item table: near the newest likes and near older interests, trending, newest, popular,
and a share drawn at random, whose chance is told.

What a request must not show (seen, hidden, unavailable, the caller's filters) is struck out once, before any source.

Shapes: N item table rows (row 0 is "absent"), E vector width, C candidates.
"""

import bisect
import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rayapp.contracts.schema import ActionKind, AttributeKind, Vocabulary
from rayapp.features.attributes import ABSENT
from rayapp.features.sequence import History
from rayapp.model.item_table import ItemTable
from rayapp.serving.neighbours import Neighbours
from rayapp.serving.tastes import tastes_of

Rows = NDArray[np.int64]
Scores = NDArray[np.float32]

DEFAULT_MIX: Final[Mapping[str, float]] = MappingProxyType(
    {"nearest": 0.45, "interests": 0.15, "trending": 0.1, "newest": 0.1, "explore": 0.05}
)
POPULAR: Final = "popular"
SEEN_AGAIN: Final = "seen_again"
"""Marks what the user acted on before, where nothing else is left."""
NO_ROWS: Final[Rows] = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class Query:
    """What one request asks for."""

    num_candidates: int
    now_ms: int
    """An item created later than this is not available yet."""
    mix: Mapping[str, float] = field(default_factory=lambda: DEFAULT_MIX)
    """The most that each source may bring, as a share; popular items fill what is left."""
    exclude_hash: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    """Hashes of item ids: shown earlier in this paging chain, and the caller's."""
    require: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Categorical attribute -> values, of which an item must have one."""
    seed: int = 0
    """Of the exploration draw; not negative."""
    fewest: int = 0
    """With fewer new items than this, what the user acted on is shown again, least recently first."""

    def __post_init__(self) -> None:
        if unknown := set(self.mix) - {*DEFAULT_MIX, POPULAR}:
            raise ValueError(f"no source is called {sorted(unknown)[0]!r}; there are {sorted([*DEFAULT_MIX, POPULAR])}")
        if any(share < 0 for share in self.mix.values()) or sum(self.mix.values()) > 1 + 1e-9:
            raise ValueError(f"the shares of a mix must not be negative nor add up to more than 1: {dict(self.mix)}")

    def quota(self, source: str) -> int:
        return int(self.mix.get(source, 0.0) * self.num_candidates + 1e-9)


@dataclass(frozen=True, slots=True)
class Candidates:
    """Items to rank, without repeats."""

    item_ids: list[str]
    sources: list[str]
    """The source that proposed each."""
    score_C: NDArray[np.float32]
    """In [0, 1]: the mean of the source's own score and the item's popularity. An answer without the ranker is sorted
    by it."""
    propensity_C: NDArray[np.float32]
    """The probability with which an `explore` item was drawn; 1 for all others."""


class CandidateIndex:
    """Answers for one item table. `fetch` may be called from several threads."""

    def __init__(self, table: ItemTable) -> None:
        self.table = table
        size = table.num_rows
        self._available_N = np.ones(size, bool)
        self._created_ms_N = np.zeros(size, np.int64)
        self._popularity_N = _popularity(table.likes_N)
        rows = np.arange(1, size)
        self._read(rows)
        self._having = {key: np.array(having, np.int64) for key, having in _by_category(table, rows).items()}
        self._popular = np.argsort(-table.likes_N, kind="stable")
        # Likes break ties, so that a catalogue dated by year does not call its oldest rows new.
        self._newest = np.lexsort((-table.likes_N, -self._created_ms_N))
        self._neighbours = Neighbours(table.vectors_NE)

    def extended(self, table: ItemTable) -> "CandidateIndex":
        """The index over `table`, which is this one's plus items put since; costs copies of a few columns."""
        changed = table.changed_since(self.table)
        added = np.arange(self.table.num_rows, table.num_rows)
        more = copy.copy(self)
        more.table = table
        more._available_N = np.append(self._available_N, np.ones(len(added), bool))
        more._created_ms_N = np.append(self._created_ms_N, np.zeros(len(added), np.int64))
        more._popularity_N = np.append(self._popularity_N, _popularity(np.zeros(len(added), np.int64)))
        more._read(changed)
        more._having = self._having_with(table, changed)
        more._popular = np.append(self._popular, added)  # without likes: behind all others
        more._newest = more._newest_with(changed)
        more._neighbours = self._neighbours.extended(table.vectors_NE, changed)
        return more

    def fetch(
        self,
        history: History,
        vocabulary: Vocabulary,
        query: Query,
        trends: Mapping[str, float] = MappingProxyType({}),
    ) -> Candidates:
        """As many items as asked for, or all that are left, then up to `query.fewest` that the user acted on before.

        `history` is the user's, newest first; `trends` gives items' scores in [0, 1]. Without likes nothing is near,
        and popular items take the place.
        """
        allowed_N = self._allowed(query)
        free_N = allowed_N.copy()
        free_N[self.table.rows_of(history.item_hash_E)] = False
        chosen = _Chosen(free_N, self._popularity_N)
        tastes = tastes_of(self.table, history, vocabulary)
        for source, seeds in (("nearest", tastes.newest), ("interests", tastes.interests)):
            quota = query.quota(source)
            rows, cosines = self._near(seeds, tastes.hidden, quota, chosen.free_N)
            chosen.take(source, rows[:quota], cosines[:quota])
        trending = sorted(trends, key=lambda i: -trends[i])
        scores = np.array([trends[i] for i in trending], np.float32)
        rows = self.table.rows_of_ids(trending)
        free = np.flatnonzero(chosen.free_N[rows])[: query.quota("trending")]
        chosen.take("trending", rows[free], scores[free])
        new = _first_free(self._newest, chosen.free_N, query.quota("newest"))
        chosen.take("newest", new, np.linspace(1, 0, len(new), endpoint=False, dtype=np.float32))
        rest = query.num_candidates - len(chosen) - query.quota("explore")
        popular = _first_free(self._popular, chosen.free_N, rest)
        chosen.take(POPULAR, popular, self._popularity_N[popular])
        pool = np.flatnonzero(chosen.free_N)
        size = min(query.quota("explore"), len(pool))
        drawn = np.random.default_rng(query.seed).choice(pool, size, replace=False, shuffle=False)
        chosen.take("explore", drawn, self._popularity_N[drawn])
        if (count := query.fewest - len(chosen)) > 0:
            again = self._seen_again(history, vocabulary, allowed_N, count, nothing_else=not len(chosen))
            chosen.take(SEEN_AGAIN, again, np.zeros(len(again), np.float32))
        return chosen.candidates(self.table, size / len(pool) if size else 1.0)

    def _seen_again(
        self, history: History, vocabulary: Vocabulary, allowed_N: NDArray[np.bool_], count: int, *, nothing_else: bool
    ) -> Rows:
        """What the user acted on, least recently first; what was rejected only where there is nothing else."""
        row_E = self.table.rows_of(history.item_hash_E)
        newest_first = row_E[np.sort(np.unique(row_E, return_index=True)[1])]
        rows = newest_first[allowed_N[newest_first]][::-1]
        rejected = np.isin(rows, row_E[vocabulary.flags(kind=ActionKind.NEGATIVE)[history.action_E]])
        liked = rows[~rejected]
        return (rows if nothing_else and not len(liked) else liked)[:count]

    def _allowed(self, query: Query) -> NDArray[np.bool_]:
        """The rows that this request may show, whether the user has seen them or not."""
        allowed_N = self._available_N & (self._created_ms_N <= query.now_ms)
        for attribute, values in query.require.items():
            allowed_N &= self._with_category(attribute, values)
        allowed_N[self.table.rows_of(query.exclude_hash)] = False
        allowed_N[ABSENT] = False
        return allowed_N

    def _with_category(self, attribute: str, values: frozenset[str]) -> NDArray[np.bool_]:
        """Rows whose item has one of the values; none for an attribute that is not categorical or not known."""
        has_N = np.zeros(self.table.num_rows, bool)
        for value in values:
            has_N[self._having.get((attribute, value), NO_ROWS)] = True
        return has_N

    def _near(self, seeds: Rows, hidden: Rows, count: int, free_N: NDArray[np.bool_]) -> tuple[Rows, Scores]:
        """Rows by turns: the best neighbour of the newest seed, of the next, and so on round; and how near.

        Left out is what stands nearer to an item that the user rejected than to the seed that found it.
        """
        if not len(seeds) or not count:
            return NO_ROWS, np.zeros(0, np.float32)
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

    def _newest_with(self, changed: Rows) -> Rows:
        """The newest-first order after the dates of `changed` were read anew."""

        def key(row: int) -> tuple[int, int, int]:
            return -int(self._created_ms_N[row]), -int(self.table.likes_N[row]), int(row)

        is_changed_N = np.zeros(self.table.num_rows, bool)
        is_changed_N[changed] = True
        others = self._newest[~is_changed_N[self._newest]]
        rows = sorted(changed.tolist(), key=key)
        places = [bisect.bisect_left(others, key(row), key=key) for row in rows]
        return np.insert(others, places, rows)


class _Chosen:
    """The rows that sources have brought so far; whoever comes first keeps a row."""

    def __init__(self, free_N: NDArray[np.bool_], popularity_N: Scores) -> None:
        self.free_N, self._popularity_N = free_N, popularity_N
        self._rows: list[Rows] = []
        self._scores: list[Scores] = []
        self._sources: list[str] = []

    def __len__(self) -> int:
        return len(self._sources)

    def take(self, source: str, rows: Rows, scores: Scores) -> None:
        """Rows that are free, each once, best first, and the source's own scores."""
        self.free_N[rows] = False
        self._rows.append(rows)
        self._scores.append(np.asarray((scores + self._popularity_N[rows]) / 2, np.float32))
        self._sources += [source] * len(rows)

    def candidates(self, table: ItemTable, propensity: float) -> Candidates:
        rows = np.concatenate(self._rows)
        drawn_C = np.array([source == "explore" for source in self._sources], bool)
        return Candidates(
            [table.item(row)["item_id"] for row in rows.tolist()],
            self._sources,
            np.concatenate(self._scores),
            np.where(drawn_C, propensity, 1.0).astype(np.float32),
        )


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


def _popularity(likes_N: NDArray[np.int64]) -> Scores:
    """Likes on a logarithmic scale, in [0, 1]."""
    log_N = np.log1p(likes_N)
    return np.asarray(log_N / max(float(log_N.max(initial=0.0)), 1e-9), np.float32)


def _first_free(order: Rows, free_N: NDArray[np.bool_], count: int) -> Rows:
    """The first `count` free rows of an order, looking no further than needed."""
    found: list[Rows] = []
    at, width = 0, max(2 * count, 64)
    while count > 0 and at < len(order):
        part = order[at : at + width]
        free = part[free_N[part]][:count]
        found.append(free)
        count, at, width = count - len(free), at + width, 2 * width
    return np.concatenate(found) if found else NO_ROWS
