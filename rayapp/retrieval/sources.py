"""Candidate sources: where the items come from that a feed may show. SOURCES is the one list of them.

The mix of the feed, the keys that an experiment's `mix` may have, what is counted while events arrive, and the table in
`docs/serving.md` follow from it. A new source is a function and a line of the list.

Shapes: N item table rows (row 0 is "absent"), K items that one source brings.
"""

import enum
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from rayapp.contracts.hashing import hash64
from rayapp.retrieval.trends import Trends

Rows = NDArray[np.int64]
Scores = NDArray[np.float32]

NO_ROWS: Final[Rows] = np.zeros(0, np.int64)
NO_SCORES: Final[Scores] = np.zeros(0, np.float32)


class Need(enum.StrEnum):
    """What a source goes by."""

    HISTORY = "history"
    """The user's; without it the source brings nothing."""
    VECTORS = "vectors"
    TRENDS = "trends"
    LIKES = "likes"
    DATES = "dates"
    CHANCE = "chance"
    """It draws: not for jobs that must give the same answer again."""


class LiveCounts(Protocol):
    """What is counted while events arrive, for sources that say they need it."""

    def add(self, item_ids: Iterable[str], timestamp_ms: int) -> None:
        """One positive action on each of the items."""

    def top(self, num_items: int, now_ms: int) -> dict[str, float]:
        """Items and their scores in (0, 1]."""


LIVE: Final[Mapping[Need, Callable[[], LiveCounts]]] = {Need.TRENDS: Trends}


class LiveItems(NamedTuple):
    """`LiveCounts.top`, best first, as sources read it."""

    item_hash_K: NDArray[np.uint64]
    score_K: Scores

    @staticmethod
    def of(scores: Mapping[str, float]) -> "LiveItems":
        best = sorted(scores, key=lambda item_id: -scores[item_id])
        hash_K = np.fromiter((hash64(item_id) for item_id in best), np.uint64, len(best))
        return LiveItems(hash_K, np.array([scores[item_id] for item_id in best], np.float32))


NOTHING_LIVE: Final = LiveItems.of({})


@dataclass(frozen=True, slots=True)
class Tastes:
    """What a user's history says about taste. Rows of the item table, newest first; each once, and only items with a
    vector."""

    newest: Rows
    interests: Rows
    """One like for each of the largest groups among the older likes, the largest first."""
    hidden: Rows
    """Items with a negative action; a like does not outweigh it."""


class Index(Protocol):
    """The item table as sources see it (`index.CandidateIndex`)."""

    popular: Rows
    """The most liked first."""
    newest: Rows
    """The newest first."""
    popularity_N: Scores
    """In [0, 1]."""

    def rows_of(self, item_hash: NDArray[np.uint64]) -> Rows:
        """ABSENT (0), which is never free, for what the table does not hold."""

    def near(self, seeds: Rows, hidden: Rows, count: int, free_N: NDArray[np.bool_]) -> tuple[Rows, Scores]:
        """Free rows around the seeds, by turns of the seeds, none that lies nearer to a hidden row, and their cosines;
        up to `count` for each seed."""


@dataclass(frozen=True, slots=True)
class Pool:
    """What the sources of one request choose from."""

    index: Index
    free_N: NDArray[np.bool_]
    """Rows that the request may show and that no source before has brought."""
    tastes: Tastes
    live: Mapping[Need, LiveItems]
    seed: int
    """Of draws."""


class Found(NamedTuple):
    """What a source brings: free rows, each once, best first, and its own scores in [0, 1]."""

    row_K: Rows
    score_K: Scores
    propensity: float = 1.0
    """The probability with which each row was drawn."""


@dataclass(frozen=True, slots=True)
class Source:
    """One way to items worth ranking."""

    name: str
    share: float | None
    """The most that it brings of a feed's candidates, unless a mix says otherwise; None: it fills what others leave."""
    needs: tuple[Need, ...]
    brings: str
    """In words, for the documents."""
    fetch: Callable[[Pool, int], Found]
    """Given how many rows it may bring at the most, which is above 0."""


def first_free(order: Rows, free_N: NDArray[np.bool_], count: int) -> Rows:
    """The first `count` free rows of an order, looking no further than needed."""
    found: list[Rows] = []
    at, width = 0, max(2 * count, 64)
    while count > 0 and at < len(order):
        part = order[at : at + width]
        free = part[free_N[part]][:count]
        found.append(free)
        count, at, width = count - len(free), at + width, 2 * width
    return np.concatenate(found) if found else NO_ROWS


def _nearest(pool: Pool, count: int) -> Found:
    return _near(pool, pool.tastes.newest, count)


def _interests(pool: Pool, count: int) -> Found:
    return _near(pool, pool.tastes.interests, count)


def _near(pool: Pool, seeds: Rows, count: int) -> Found:
    if not len(seeds):
        return Found(NO_ROWS, NO_SCORES)
    row_K, cosine_K = pool.index.near(seeds, pool.tastes.hidden, count, pool.free_N)
    return Found(row_K[:count], cosine_K[:count])


def _trending(pool: Pool, count: int) -> Found:
    items = pool.live.get(Need.TRENDS, NOTHING_LIVE)
    row_K = pool.index.rows_of(items.item_hash_K)
    free = np.flatnonzero(pool.free_N[row_K])[:count]
    return Found(row_K[free], items.score_K[free])


def _newest(pool: Pool, count: int) -> Found:
    row_K = first_free(pool.index.newest, pool.free_N, count)
    return Found(row_K, np.linspace(1, 0, len(row_K), endpoint=False, dtype=np.float32))


def _popular(pool: Pool, count: int) -> Found:
    row_K = first_free(pool.index.popular, pool.free_N, count)
    return Found(row_K, pool.index.popularity_N[row_K])


def _explore(pool: Pool, count: int) -> Found:
    free = np.flatnonzero(pool.free_N)
    size = min(count, len(free))
    row_K = np.random.default_rng(pool.seed).choice(free, size, replace=False, shuffle=False)
    return Found(row_K, pool.index.popularity_N[row_K], size / max(len(free), 1))


HISTORY, VECTORS = Need.HISTORY, Need.VECTORS
POPULAR: Final = "popular"
SOURCES: Final[dict[str, Source]] = {
    source.name: source
    for source in (
        Source("nearest", 0.45, (HISTORY, VECTORS), "neighbours of the newest likes, by turns", _nearest),
        Source("interests", 0.15, (HISTORY, VECTORS), "neighbours of likes that stand for older interests", _interests),
        Source("trending", 0.1, (Need.TRENDS,), "what people liked in the last hours", _trending),
        Source("newest", 0.1, (Need.DATES,), "the newest items", _newest),
        Source(POPULAR, None, (Need.LIKES,), "the most liked items of the training data", _popular),
        Source("explore", 0.05, (Need.CHANCE,), "items drawn at random, with the odds logged", _explore),
    )
}
"""In the order in which they choose; whoever comes first keeps an item."""


def default_mix() -> dict[str, float]:
    """The most that each source may bring, as a share, unless an experiment says otherwise."""
    return {name: source.share for name, source in SOURCES.items() if source.share is not None}
