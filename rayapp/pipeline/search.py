"""Searches inside groups of sorted rows, all at once: what `bisect` is to one user's list, for every user of a bucket.

Shapes: E sorted rows, Q queries.
"""

from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def group_starts(column: pa.ChunkedArray) -> Ints:
    """Row at which each run of equal values starts."""
    if not len(column):
        return np.zeros(0, np.int64)
    column = column.combine_chunks()
    if pa.types.is_dictionary(column.type):
        column = column.indices
    changed = pc.not_equal(column.slice(1), column.slice(0, len(column) - 1)).to_numpy(zero_copy_only=False)
    return np.flatnonzero(np.r_[True, changed])


def group_numbers(starts: Ints, num_rows: int) -> Ints:
    """0, 0, 1, 1, 1, 2 … for runs that start at `starts`."""
    return np.repeat(np.arange(len(starts)), np.diff(np.r_[starts, num_rows]))


def search_in_groups(
    group_E: Ints, value_E: Ints, group_Q: Ints, value_Q: Ints, side: Literal["left", "right"]
) -> Ints:
    """For each query the row before which its value belongs among the rows of its group.

    `group_E` must not decrease, and `value_E` must not decrease within a group. For a group that has no rows the
    answer is where its rows would be.
    """
    # Values become ranks, so that group and rank fit one integer whatever the values are.
    values, rank = np.unique(np.r_[value_E, value_Q], return_inverse=True)
    key_E = group_E * len(values) + rank[: len(value_E)]
    return np.searchsorted(key_E, group_Q * len(values) + rank[len(value_E) :], side=side)


def running_max(group_E: Ints, value_E: Ints) -> Ints:
    """The largest value so far within each group."""
    if not len(value_E):
        return value_E
    values, rank = np.unique(value_E, return_inverse=True)
    highest = np.maximum.accumulate(group_E * len(values) + rank)
    return values[highest - group_E * len(values)]
