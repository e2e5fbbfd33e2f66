"""Counts which items people act on soon before or after an item: co-visitation, which is what shops use.

Shapes: P actions by user and time, N items, K neighbours of each, X pairs.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from rayapp.contracts.config import DAY_MS
from rayapp.features.attributes import ABSENT
from rayapp.model.covisits import Covisits
from rayapp.pipeline.engagements import Engagements

NEIGHBOURS: Final = 100
PLACES: Final = 5
"""Two items are beside each other when at most so many of a user's places lie between the actions on them,"""
WITHIN_MS: Final = DAY_MS
"""and no more than this time."""

MOST_ACTS: Final = 5_000_000
"""The newest so many are counted, which takes some 2 GB."""


def count_covisits(acts: Engagements, num_items: int) -> Covisits:
    """Of actions of any kind but negative. An item's weight beside another: how often they were acted on together, over
    the root of how often the item was at all, so that what is popular everywhere is not near to everything."""
    user_P, item_P, time_P = acts.user_P, acts.item_P, acts.timestamp_ms_P
    if len(acts) > MOST_ACTS:
        newest_P = time_P >= np.partition(time_P, -MOST_ACTS)[-MOST_ACTS]
        user_P, item_P, time_P = user_P[newest_P], item_P[newest_P], time_P[newest_P]
    moved_P = np.r_[True, (np.diff(user_P) != 0) | (np.diff(item_P) != 0)][: len(user_P)]
    user_P, item_P, time_P = user_P[moved_P], item_P[moved_P], time_P[moved_P]
    codes = [np.zeros(0, np.int64)]
    for apart in range(1, PLACES + 1):
        near = (user_P[apart:] == user_P[:-apart]) & (time_P[apart:] - time_P[:-apart] <= WITHIN_MS)
        near &= item_P[apart:] != item_P[:-apart]
        one, other = item_P[:-apart][near], item_P[apart:][near]
        codes += [one * num_items + other, other * num_items + one]
    code_X, count_X = np.unique(np.concatenate(codes), return_counts=True)
    item_X, near_X = np.divmod(code_X, max(num_items, 1))
    weight_X = count_X / np.sqrt(np.bincount(item_P, minlength=num_items)[near_X])
    return strongest(item_X, near_X, weight_X, num_items)


def strongest(
    item_X: NDArray[np.int64], near_X: NDArray[np.int64], weight_X: NDArray[np.float64], num_items: int
) -> Covisits:
    """The neighbours of each item with the largest weights, as rows of an item table: item n is row n + 1."""
    order = np.lexsort((near_X, -weight_X, item_X))
    item_X, near_X, weight_X = item_X[order], near_X[order], weight_X[order]
    first_X = np.searchsorted(item_X, item_X)
    place_X = np.arange(len(item_X)) - first_X
    width = int(min(place_X.max(initial=0) + 1, NEIGHBOURS))
    row_NK = np.full((num_items + 1, width), ABSENT, np.int32)
    weight_NK = np.zeros((num_items + 1, width), np.float32)
    kept = place_X < width
    row_NK[item_X[kept] + 1, place_X[kept]] = near_X[kept] + 1
    weight_NK[item_X[kept] + 1, place_X[kept]] = weight_X[kept]
    return Covisits(row_NK, weight_NK)
