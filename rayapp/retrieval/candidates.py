"""The candidates of one request: what must not be shown is struck out once, then each source brings its share.

Shapes: N item table rows, C candidates.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rayapp.contracts.schema import ActionKind, Vocabulary
from rayapp.features.content import Item
from rayapp.features.seen import EVERYTHING, Seen, ShownItems
from rayapp.features.sequence import History
from rayapp.retrieval.caps import Values
from rayapp.retrieval.index import CandidateIndex
from rayapp.retrieval.orders import Rows
from rayapp.retrieval.sources import NO_ROWS, NO_SCORES, POPULAR, SOURCES, Found, Pool, default_mix
from rayapp.retrieval.tastes import SAME_INTEREST, tastes_of

SEEN_AGAIN: Final = "seen_again"
"""Marks what the user acted on before, where nothing else is left."""
SHOWN_AGAIN: Final = "shown_again"
"""Marks what rests because it was shown to the user, where too little else is left."""
AGAIN: Final = (SHOWN_AGAIN, SEEN_AGAIN)


class Judged(NamedTuple):
    """An item that the user liked, or hid."""

    values: tuple[str, ...]
    liked: bool


@dataclass(frozen=True, slots=True)
class Query:
    """What one request asks for."""

    num_candidates: int
    now_ms: int
    """An item created later than this is not available yet."""
    mix: Mapping[str, float] = field(default_factory=default_mix)
    """The most that each source may bring, as a share; popular items fill what is left."""
    exclude_hash: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    """Hashes of item ids: shown earlier in this paging chain, and the caller's."""
    require: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Categorical attribute -> values, of which an item must have one."""
    seed: int = 0
    """Of the exploration draw; not negative."""
    fewest: int = 0
    """With fewer new items than this, what the user acted on is shown again, least recently first."""

    judged_by: str | None = None
    """The categorical attribute by which the user's newest likes and hidden items are wanted."""

    def __post_init__(self) -> None:
        if unknown := set(self.mix) - set(SOURCES):
            raise ValueError(f"no source is called {sorted(unknown)[0]!r}; there are {sorted(SOURCES)}")
        if any(share < 0 for share in self.mix.values()) or sum(self.mix.values()) > 1 + 1e-9:
            raise ValueError(f"the shares of a mix must not be negative nor add up to more than 1: {dict(self.mix)}")

    def quota(self, source: str) -> int:
        return int(self.mix.get(source, 0.0) * self.num_candidates + 1e-9)


@dataclass(frozen=True, slots=True)
class Candidates:
    """Items to rank, without repeats."""

    item_ids: list[str]
    item_hash_C: NDArray[np.uint64]
    sources: list[str]
    """The source that proposed each."""
    score_C: NDArray[np.float32]
    """In [0, 1]: the mean of the source's own score and the item's popularity. An answer without the ranker is sorted
    by it."""
    propensity_C: NDArray[np.float32]
    """The probability with which a source drew the item; 1 where nothing was drawn."""
    values: Values = field(default_factory=dict)
    """Of capped attributes, and of the query's `judged_by`."""
    judged: Sequence[Judged] = ()
    """The user's newest likes and hidden items by the query's `judged_by`, newest first."""


def fetch(
    index: CandidateIndex,
    history: History,
    vocabulary: Vocabulary,
    query: Query,
    *,
    seen: Seen = EVERYTHING,
    shown: ShownItems | None = None,
    capped: Iterable[str] = (),
) -> Candidates:
    """As many items as asked for, or all that are left, then up to `query.fewest` that rest because they were `shown`,
    then that the user has `seen` before, each with its values of the `capped` attributes.

    `history` is the user's, newest first. Without likes nothing is near, and popular items take the place. What lies
    near a just hidden item, and not nearer to a like, comes only where nothing else new is left. May be called from
    several threads.
    """
    allowed_N = index.allowed(query.now_ms, query.require, query.exclude_hash)
    seen_row_E = index.rows_of(history.item_hash_E[seen.counts(history, query.now_ms)])
    resting_S = NO_ROWS if shown is None else index.rows_of(seen.resting(shown, query.now_ms))
    chosen = _Chosen(index, allowed_N, np.concatenate([seen_row_E, resting_S]))
    tastes = tastes_of(index.table, history, vocabulary)
    kept_away = index.around(tastes.just_hidden, tastes.newest, SAME_INTEREST, chosen.free_N)
    chosen.free_N[kept_away] = False
    pool = Pool(index, chosen.free_N, tastes, query.seed)
    reserved = sum(query.quota(name) for name in SOURCES)
    for name, source in SOURCES.items():
        count = query.quota(name)
        reserved -= count
        if source.share is None:
            count = query.num_candidates - len(chosen) - reserved
        if count > 0:
            chosen.take(name, source.fetch(pool, count))
    if len(kept_away) and (count := query.fewest - len(chosen)) > 0:
        chosen.free_N[kept_away] = True
        chosen.take(POPULAR, SOURCES[POPULAR].fetch(pool, count))
    if (count := query.fewest - len(chosen)) > 0:
        rested_S = resting_S[allowed_N[resting_S] & ~np.isin(resting_S, seen_row_E)][::-1][:count]
        chosen.take(SHOWN_AGAIN, Found(rested_S, np.zeros(len(rested_S), np.float32)))
    if (count := query.fewest - len(chosen)) > 0:
        again_N = np.zeros(len(allowed_N), bool)
        again_N[seen_row_E] = True
        again_N[index.rows_of(history.item_hash_E[seen.too_lately(history, query.now_ms)])] = False
        again = _seen_again(index, history, vocabulary, allowed_N & again_N, nothing_else=not len(chosen))[:count]
        chosen.take(SEEN_AGAIN, Found(again, np.zeros(len(again), np.float32)))
    judged: list[Judged] = []
    if query.judged_by:
        hidden = set(tastes.hidden.tolist())
        of_rows = ((row, index.table.item(row)) for row in tastes.judged.tolist())
        judged = [Judged(_values(item, query.judged_by), row not in hidden) for row, item in of_rows]
    return chosen.candidates(dict.fromkeys([*capped, *([query.judged_by] if query.judged_by else [])]), judged)


def _values(item: Item, name: str) -> tuple[str, ...]:
    return tuple(item.get(name) or ())


def _seen_again(
    index: CandidateIndex,
    history: History,
    vocabulary: Vocabulary,
    allowed_N: NDArray[np.bool_],
    *,
    nothing_else: bool,
) -> Rows:
    """What the user acted on, least recently first; what was rejected only where there is nothing else."""
    row_E = index.rows_of(history.item_hash_E)
    newest_first = row_E[np.sort(np.unique(row_E, return_index=True)[1])]
    rows = newest_first[allowed_N[newest_first]][::-1]
    rejected = np.isin(rows, row_E[vocabulary.flags(kind=ActionKind.NEGATIVE)[history.action_E]])
    liked = rows[~rejected]
    return rows if nothing_else and not len(liked) else liked


class _Chosen:
    """The rows that sources have brought so far; whoever comes first keeps a row."""

    def __init__(self, index: CandidateIndex, allowed_N: NDArray[np.bool_], seen: Rows) -> None:
        self._index, self._rows, self._scores = index, [NO_ROWS], [NO_SCORES]
        self._propensities = [NO_SCORES]
        self._sources: list[str] = []
        self.free_N = allowed_N.copy()
        self.free_N[seen] = False

    def __len__(self) -> int:
        return len(self._sources)

    def take(self, source: str, found: Found) -> None:
        row_K, size = found.row_K, len(found.row_K)
        self.free_N[row_K] = False
        self._rows.append(row_K)
        self._scores.append(np.asarray((found.score_K + self._index.orders.popularity_N[row_K]) / 2, np.float32))
        self._propensities.append(np.full(size, found.propensity, np.float32))
        self._sources += [source] * size

    def candidates(self, names: Iterable[str], judged: Sequence[Judged]) -> Candidates:
        row_C = np.concatenate(self._rows)
        items = [self._index.table.item(row) for row in row_C.tolist()]
        return Candidates(
            [item["item_id"] for item in items],
            self._index.item_hash_N[row_C],
            self._sources,
            np.concatenate(self._scores),
            np.concatenate(self._propensities),
            {name: [_values(item, name) for item in items] for name in names},
            judged,
        )
