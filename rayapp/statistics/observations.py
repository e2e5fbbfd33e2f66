"""What statistics are made of: a user was shown an item, or acted on it, in some step of the grid.

A user counts once for an item, a kind and a step, however often it happened: nobody makes an item popular alone.

Shapes: E observations, M shown items of all requests, R requests, H heads, A counted kinds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rayapp.contracts.config import Domain
from rayapp.contracts.hashing import hash64_column, places_of
from rayapp.features.requests import known_columns
from rayapp.features.statistics import Grid, Hashes, Increments, Ints

IMPRESSION: Final = 0
"""The kind of a shown item; `1 + h` is an action of head h, `1 + H + h` its flag in a shown list."""
MIX: Final = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F), np.uint64(0x165667B19E3779F9))
"""Odd numbers whose multiples lie far apart."""


@dataclass(frozen=True, slots=True)
class Observations:
    """In any order."""

    user_hash_E: Hashes
    item_hash_E: Hashes
    step_E: Ints
    kind_E: Ints

    def __len__(self) -> int:
        return len(self.user_hash_E)

    @staticmethod
    def concatenate(parts: "list[Observations]") -> "Observations":
        """`parts` may be empty."""
        names = ("user_hash_E", "item_hash_E", "step_E", "kind_E")
        kinds = (np.uint64, np.uint64, np.int64, np.int64)
        return Observations(
            *(
                np.concatenate([np.zeros(0, kind), *(getattr(part, name) for part in parts)])
                for name, kind in zip(names, kinds, strict=True)
            )
        )

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> "Observations":
        return Observations(self.user_hash_E[rows], self.item_hash_E[rows], self.step_E[rows], self.kind_E[rows])

    def once(self) -> "Observations":
        """Without what a user did with an item in the same step before."""
        return self.take(np.unique(self.keys(), return_index=True)[1])

    def keys(self) -> Hashes:
        """Equal for what counts once. That two others share one is as unlikely as that two ids do."""
        step_kind_E = (self.step_E * 256 + self.kind_E).astype(np.uint64)
        return np.asarray(self.user_hash_E * MIX[0] + self.item_hash_E * MIX[1] + step_kind_E * MIX[2])

    def not_in(self, key_X: Hashes) -> "Observations":
        """Without those that were counted before."""
        return self.take(~np.isin(self.keys(), key_X)) if len(key_X) else self

    def without(self, user_hash_X: Hashes) -> "Observations":
        """Without those of some users."""
        return self.take(~np.isin(self.user_hash_E, user_hash_X)) if len(user_hash_X) else self

    def after(self, erased: Mapping[int, int], grid: Grid) -> "Observations":
        """Without what erased users did up to their erasure: hash of the user -> time (ms)."""
        if not erased:
            return self
        hash_X = np.array(sorted(erased), np.uint64)
        step_X = grid.step(np.array([erased[int(user)] for user in hash_X], np.int64))
        place_E, erased_E = places_of(hash_X, self.user_hash_E)
        return self.take(~erased_E | (self.step_E > step_X[place_E]))

    def of_items(self, num_kinds: int) -> Increments:
        return self._by(self.item_hash_E, num_kinds)

    def of_users(self, num_kinds: int) -> Increments:
        return self._by(self.user_hash_E, num_kinds)

    def _by(self, key_E: Hashes, num_kinds: int) -> Increments:
        count_EA = np.zeros((len(self), num_kinds), np.int64)
        count_EA[np.arange(len(self)), self.kind_E] = 1
        return Increments.added_up([Increments(key_E, self.step_E, count_EA)])


def shown(requests: pa.Table, domain: Domain, grid: Grid) -> tuple[Ints, Observations]:
    """Impressions, and what their flags say, each with the number of its row. `requests`: `user_id`, `timestamp_ms`,
    `item_ids`, `labels`.

    When a flag was set is not known; it counts the domain's `flag_delay_ms` after the list was shown, because a
    statistic that knew it at once would know the answer.
    """
    item_lists = requests["item_ids"].combine_chunks()
    size_R = pc.list_value_length(item_lists).to_numpy(zero_copy_only=False)
    item_M, row_M = hash64_column(pc.list_flatten(item_lists)), np.repeat(np.arange(requests.num_rows), size_R)
    user_R, time_R = hash64_column(requests["user_id"]), requests["timestamp_ms"].to_numpy()
    impression_M = np.full(len(item_M), IMPRESSION)
    rows, parts = [row_M], [Observations(user_R[row_M], item_M, grid.step(time_R[row_M]), impression_M)]
    given_R = pc.is_valid(requests["labels"]).to_numpy()
    if given_R.any():
        given_M = given_R[row_M]
        label_GH = given_labels(requests.filter(pa.array(given_R)), len(domain.heads))
        place_L, head_L = np.nonzero(label_GH > 0)
        row_L, item_L = row_M[given_M][place_L], item_M[given_M][place_L]
        rows.append(row_L)
        kind_L, step_L = 1 + len(domain.heads) + head_L, grid.step(time_R[row_L] + domain.flag_delay_ms)
        parts.append(Observations(user_R[row_L], item_L, step_L, kind_L))
    return np.concatenate(rows), Observations.concatenate(parts)


def given_labels(requests: pa.Table, num_heads: int) -> NDArray[np.float32]:
    """`[M, H]` of requests that all came with `labels`: NaN for heads that were appended after that."""
    labels, item_lists = requests["labels"].combine_chunks(), requests["item_ids"].combine_chunks()
    size_R = pc.list_value_length(item_lists).to_numpy(zero_copy_only=False).astype(np.int64)
    length_R = pc.list_value_length(labels).to_numpy(zero_copy_only=False).astype(np.int64)
    return known_columns(pc.list_flatten(labels).to_numpy(), length_R // np.maximum(size_R, 1), size_R, num_heads)


def acted(events: pa.Table, domain: Domain, grid: Grid) -> tuple[Ints, Observations]:
    """Actions of each head, when they were received, each with the number of its row. `events`: `user_id`, `item_id`,
    `action`, `received_at_ms`."""
    user_E, item_E = hash64_column(events["user_id"]), hash64_column(events["item_id"])
    step_E, action = grid.step(events["received_at_ms"].to_numpy()), events["action"].cast(pa.string())
    rows, parts = [np.zeros(0, np.int64)], []
    for number, head in enumerate(domain.heads, 1):
        is_head = pc.is_in(action, value_set=pa.array(head.actions))
        row_A = np.flatnonzero(is_head.to_numpy(zero_copy_only=False))
        rows.append(row_A)
        parts.append(Observations(user_E[row_A], item_E[row_A], step_E[row_A], np.full(len(row_A), number)))
    return np.concatenate(rows), Observations.concatenate(parts)
