"""The orders that sources take items in: by what people did lately, by what they did for long, by date.

All ties end at the hash of an item's id, so that replicas with the same counts have the same orders, whatever rows
their tables give to items that were put since.

Shapes: N item table rows (row 0 is "absent"), K items with counts, S half-lives.
"""

import bisect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rayapp.contracts.config import FOREVER
from rayapp.features.statistics import Grid, Hashes, Ints

Rows = NDArray[np.int64]
Scores = NDArray[np.float32]
Floats = NDArray[np.float64]

LEAST_COUNT: Final = 0.05
"""What has faded to less counts as nothing: one action more than four half-lives ago."""
DECIMALS: Final = 3
"""Counts are told apart to so many: replicas that added them up in other parts differ by a rounding."""


@dataclass(frozen=True, slots=True)
class Positives:
    """Positive actions on items as of one moment, in counts that fade fast and slowly."""

    hash_K: Hashes
    """Ascending."""
    lately_K: Floats
    """With the shortest half-life."""
    lasting_K: Floats
    """With the longest half-life that ends; with the only one where none does."""

    @staticmethod
    def of(grid: Grid, hash_K: Hashes, positive_KS: Floats) -> "Positives":
        """Of `known.Statistics.all_positives`."""
        lasting = max((s for s, half_life_ms in enumerate(grid.half_lives_ms) if half_life_ms != FOREVER), default=0)
        lately_K, lasting_K = (
            np.where(count_K < LEAST_COUNT, 0.0, count_K.round(DECIMALS))
            for count_K in (positive_KS[:, 0], positive_KS[:, lasting])
        )
        some_K = (lately_K > 0) | (lasting_K > 0)
        return Positives(hash_K[some_K], lately_K[some_K], lasting_K[some_K])


NO_POSITIVES: Final = Positives(np.zeros(0, np.uint64), np.zeros(0), np.zeros(0))


class Known(NamedTuple):
    """What the items of a table are sorted by."""

    hash_N: Hashes
    created_ms_N: Ints
    likes_N: Ints
    """As the item table has them."""
    lately_N: Floats
    lasting_N: Floats

    # The place of a row in each of the orders, as a key.

    def liked(self, row: int) -> tuple[Any, ...]:
        return -self.likes_N[row], self.hash_N[row]

    def popular(self, row: int) -> tuple[Any, ...]:
        return -self.lasting_N[row], *self.liked(row)

    def newest(self, row: int) -> tuple[Any, ...]:
        return -self.created_ms_N[row], *self.popular(row)

    def trending(self, row: int) -> tuple[Any, ...]:
        return -self.lately_N[row], *self.popular(row)


@dataclass(frozen=True, slots=True)
class Orders:
    """Rows of a table, first what comes first. Not changed once made."""

    liked: Rows
    """By the likes of the item table; the same at all times."""
    popular: Rows
    """By the lasting count; the others behind, by the likes of the item table."""
    newest: Rows
    """By date; those of one date by popularity, so that a catalogue dated by year does not call its oldest rows new."""
    trending: Rows
    """By the count of what was done lately; without the others."""
    popularity_N: Scores
    """In [0, 1]."""
    trend_N: Scores
    """In (0, 1] for what trends, else 0."""

    @staticmethod
    def of(known: Known) -> "Orders":
        return Orders._of(np.lexsort((known.hash_N, -known.likes_N)), known)

    def anew(self, known: Known) -> "Orders":
        """With other counts."""
        return Orders._of(self.liked, known)

    @staticmethod
    def _of(liked: Rows, known: Known) -> "Orders":
        popular = liked[np.argsort(-known.lasting_N[liked], kind="stable")]
        newest = popular[np.argsort(-known.created_ms_N[popular], kind="stable")]
        lately = popular[known.lately_N[popular] > 0]
        trending = lately[np.argsort(-known.lately_N[lately], kind="stable")]
        return Orders(liked, popular, newest, trending, _popularity(popular, known), _trend(known))

    def extended(self, known: Known, changed: Rows) -> "Orders":
        """The orders of more rows, where only `changed` were added or dated anew; does not sort the others again."""
        added = changed[changed >= len(self.popular)]
        is_changed_N = np.zeros(len(known.hash_N), bool)
        is_changed_N[changed] = True
        liked = _inserted(self.liked, added, known.liked)
        popular = _inserted(self.popular, added, known.popular)
        newest = _inserted(self.newest[~is_changed_N[self.newest]], changed, known.newest)
        trending = _inserted(self.trending, added[known.lately_N[added] > 0], known.trending)
        return Orders(liked, popular, newest, trending, _popularity(popular, known), _trend(known))


def _inserted(order: Rows, rows: Rows, key: Callable[[int], tuple[Any, ...]]) -> Rows:
    sorted_rows = sorted(rows.tolist(), key=key)
    places = [bisect.bisect_left(order, key(row), key=key) for row in sorted_rows]
    return np.insert(order, places, np.array(sorted_rows, np.int64))


def _popularity(popular: Rows, known: Known) -> Scores:
    """By the logarithm of the rank, as counts fall off with it: 1 for the first alone, 0 for those alike at the end."""
    ends = np.ones(len(popular), bool)
    ends[:-1] = (np.diff(known.lasting_N[popular]) != 0) | (np.diff(known.likes_N[popular]) != 0)
    rank = np.flatnonzero(ends) + 1  # those that are alike share the last one's
    share = 1 - np.log(rank) / np.log(max(len(popular), 2))
    popularity_N = np.zeros(len(popular), np.float32)
    popularity_N[popular] = np.repeat(share, np.diff(rank, prepend=0))
    return popularity_N


def _trend(known: Known) -> Scores:
    return np.asarray(known.lately_N / max(float(known.lately_N.max(initial=0.0)), LEAST_COUNT), np.float32)
