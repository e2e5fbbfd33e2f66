"""Candidate sources: where the items come from that a feed may show. SOURCES is the one list of them.

The mix of the feed, the keys that an experiment's `mix` may have, and the table in `docs/serving.md` follow from it. A
new source is a function and a line of the list.

Shapes: N item table rows (row 0 is "absent"), K items that one source brings.
"""

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from rayapp.retrieval.orders import Orders, Rows, Scores

NO_ROWS: Final[Rows] = np.zeros(0, np.int64)
NO_SCORES: Final[Scores] = np.zeros(0, np.float32)


class Need(enum.StrEnum):
    """What a source goes by."""

    HISTORY = "history"
    """The user's; without it the source brings nothing."""
    VECTORS = "vectors"
    COVISITS = "covisits"
    """Which items are acted on beside each other: counted with the item table where a log has no shown lists."""
    STATISTICS = "statistics"
    """What people did up to the last step of the grid."""
    DATES = "dates"
    CHANCE = "chance"
    """It draws: not for jobs that must give the same answer again."""


@dataclass(frozen=True, slots=True)
class Tastes:
    """What a user's history says about taste. Rows of the item table, newest first; each once, and only items with a
    vector."""

    newest: Rows
    interests: Rows
    """One like for each of the largest groups among the older likes, the largest first."""
    hidden: Rows
    """Items with a negative action; a like does not outweigh it."""
    just_hidden: Rows
    """Those of them that were hidden among the last actions of all."""
    judged: Rows
    """The newest likes and hidden items together."""
    last: Rows
    """What was acted on last, in any way but a negative one, with a vector or without."""


class Index(Protocol):
    """The item table as sources see it (`index.CandidateIndex`)."""

    orders: Orders

    def near(self, seeds: Rows, hidden: Rows, count: int, free_N: NDArray[np.bool_]) -> tuple[Rows, Scores]:
        """Free rows around the seeds, by turns of the seeds, none that lies nearer to a hidden row, and their cosines;
        up to `count` for each seed."""

    def of_categories(self, likes: Rows, count: int, free_N: NDArray[np.bool_]) -> Rows:
        """Free rows of the likes' categories, the most popular of each by turns; up to `count`."""

    def beside(self, last: Rows, count: int, free_N: NDArray[np.bool_]) -> tuple[Rows, Scores]:
        """Free rows that people act on beside the last items, and how often, up to 1; none where the item table has not
        counted it."""


@dataclass(frozen=True, slots=True)
class Pool:
    """What the sources of one request choose from."""

    index: Index
    free_N: NDArray[np.bool_]
    """Rows that the request may show and that no source before has brought."""
    tastes: Tastes
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


def _categories(pool: Pool, count: int) -> Found:
    row_K = pool.index.of_categories(pool.tastes.newest, count, pool.free_N)
    return Found(row_K, pool.index.orders.popularity_N[row_K])


def _beside(pool: Pool, count: int) -> Found:
    return Found(*pool.index.beside(pool.tastes.last, count, pool.free_N))


def _trending(pool: Pool, count: int) -> Found:
    row_K = first_free(pool.index.orders.trending, pool.free_N, count)
    return Found(row_K, pool.index.orders.trend_N[row_K])


def _newest(pool: Pool, count: int) -> Found:
    row_K = first_free(pool.index.orders.newest, pool.free_N, count)
    return Found(row_K, np.linspace(1, 0, len(row_K), endpoint=False, dtype=np.float32))


def _popular(pool: Pool, count: int) -> Found:
    row_K = first_free(pool.index.orders.popular, pool.free_N, count)
    return Found(row_K, pool.index.orders.popularity_N[row_K])


def _explore(pool: Pool, count: int) -> Found:
    free = np.flatnonzero(pool.free_N)
    size = min(count, len(free))
    row_K = np.random.default_rng(pool.seed).choice(free, size, replace=False, shuffle=False)
    return Found(row_K, pool.index.orders.popularity_N[row_K], size / max(len(free), 1))


HISTORY, VECTORS, STATISTICS = Need.HISTORY, Need.VECTORS, Need.STATISTICS
POPULAR: Final = "popular"
SOURCES: Final[dict[str, Source]] = {
    source.name: source
    for source in (
        Source("beside", None, (HISTORY, Need.COVISITS), "what people act on beside the last items", _beside),
        Source("nearest", 0.35, (HISTORY, VECTORS), "neighbours of the newest likes, by turns", _nearest),
        Source("interests", 0.1, (HISTORY, VECTORS), "neighbours of likes that stand for older interests", _interests),
        Source(
            "categories",
            0.15,
            (HISTORY, STATISTICS),
            "popular items of each category of the newest likes, by turns",
            _categories,
        ),
        Source("trending", 0.1, (STATISTICS,), "the most positive actions lately: the shortest half-life", _trending),
        Source("newest", 0.1, (Need.DATES, STATISTICS), "the newest items, of one date the most popular", _newest),
        Source(POPULAR, None, (STATISTICS,), "the most positive actions: the longest half-life that ends", _popular),
        Source("explore", 0.05, (Need.CHANCE,), "items drawn at random, with the odds logged", _explore),
    )
}
"""In the order in which they choose; whoever comes first keeps an item."""


def default_mix() -> dict[str, float]:
    """The most that each source may bring, as a share, unless an experiment says otherwise."""
    return {name: source.share for name, source in SOURCES.items() if source.share is not None}
