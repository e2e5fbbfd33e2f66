"""The user's last L actions as the server could have known them at a request's time: the cut and the encoding.

Shapes: E events of one or many users, R requests, L history length (newest first), N rows that are
looked at, T those of them that share their millisecond.
"""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import xxhash
from numpy.typing import NDArray

from rayapp.contracts.schema import PAD, UNKNOWN, Vocabulary

Ints = NDArray[np.int64]
NO_WATERMARK = -1


@dataclass(frozen=True, slots=True)
class History:
    """Aligned columns of events; the hashes are `contracts.hashing.hash64` of the ids."""

    timestamp_ms_E: Ints
    received_at_ms_E: Ints
    commit_seq_E: Ints
    event_hash_E: NDArray[np.uint64]
    item_hash_E: NDArray[np.uint64]
    action_E: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.timestamp_ms_E)

    def take(self, index_E: Any) -> Self:
        """The rows at `index_E` (any numpy index), as another History."""
        return type(self)(*(column[index_E] for column in self.columns()))

    def columns(self) -> tuple[NDArray[Any], ...]:
        return (
            self.timestamp_ms_E,
            self.received_at_ms_E,
            self.commit_seq_E,
            self.event_hash_E,
            self.item_hash_E,
            self.action_E,
        )

    @staticmethod
    def empty() -> "History":
        i, u = np.zeros(0, np.int64), np.zeros(0, np.uint64)
        return History(i, i, i, u, u, np.zeros(0, np.uint8))

    @staticmethod
    def concatenate(parts: "list[History]") -> "History":
        if not parts:
            return History.empty()
        return History(*(np.concatenate(columns) for columns in zip(*(p.columns() for p in parts), strict=True)))


@dataclass(frozen=True, slots=True)
class Sequences:
    """Encoded histories, newest first, padded with PAD and zeros. The model's only view of a user's actions."""

    action_RL: NDArray[np.uint8]
    item_hash_RL: NDArray[np.uint64]
    timestamp_ms_RL: Ints
    length_R: Ints

    def hash_of(self, r: int) -> int:
        """8-byte hash of the r-th encoded sequence: logged when served, compared when re-cut from the log."""
        n = int(self.length_R[r])
        digest = xxhash.xxh64()
        for column in (self.action_RL, self.item_hash_RL, self.timestamp_ms_RL):
            digest.update(np.ascontiguousarray(column[r, :n]).tobytes())
        return digest.intdigest()

    def take(self, index_R: Ints) -> "Sequences":
        """Those of some requests."""
        return Sequences(*(column[index_R] for column in self.columns()))

    def columns(self) -> tuple[NDArray[Any], ...]:
        return self.action_RL, self.item_hash_RL, self.timestamp_ms_RL, self.length_R

    def of_length(self, length: int) -> "Sequences":
        """As a model reads them: cut to the newest `length` actions, or filled up with PAD."""
        if length == self.action_RL.shape[1]:
            return self
        action_RL, item_hash_RL, timestamp_ms_RL = (_of_width(column, length) for column in self.columns()[:3])
        return Sequences(action_RL, item_hash_RL, timestamp_ms_RL, np.minimum(self.length_R, length))

    @staticmethod
    def concatenate(parts: "list[Sequences]") -> "Sequences":
        """One after the other, all as long as the longest."""
        length = max(part.action_RL.shape[1] for part in parts)
        columns = zip(*(part.of_length(length).columns() for part in parts), strict=True)
        return Sequences(*(np.concatenate(column) for column in columns))

    @staticmethod
    def not_cut(num_requests: int) -> "Sequences":
        """In the place of sequences that are still to be cut: of no action."""
        nothing = np.zeros((num_requests, 0), np.int64)
        lengths = np.zeros(num_requests, np.int64)
        return Sequences(nothing.astype(np.uint8), nothing.astype(np.uint64), nothing, lengths)


def _of_width(array_RX: NDArray[Any], width: int) -> NDArray[Any]:
    """`[R, width]`, cut or filled up with zeros (PAD is one)."""
    missing = width - array_RX.shape[1]
    return np.pad(array_RX, [(0, 0), (0, missing)]) if missing > 0 else array_RX[:, :width]


def point_in_time(
    history: History,
    start_R: Ints,
    end_R: Ints,
    *,
    timestamp_ms_R: Ints,
    watermark_R: Ints,
    mask_ms_R: Ints,
    length: int,
    vocabulary: Vocabulary,
) -> Sequences:
    """For each request, the newest `length` actions of rows `[start, end)` that its server could have known.

    A row counts when its action is in-sequence and known (`in_sequence`), it happened before the request less the
    training mask (`timestamp_ms < t - mask`), and it had arrived: `commit_seq <= watermark` where the request has
    a watermark (the store's own word for what it read), else `received_at_ms <= t`. Actions on one item at one
    millisecond take one place, the highest priority's. Newest first; ties by the larger event hash. Duplicated
    event ids must have been dropped before.
    """
    num_requests = len(start_R)
    size_R = np.maximum(end_R - start_R, 0)
    request_N = np.repeat(np.arange(num_requests), size_R)
    # Backwards: histories in ascending order, as windows keep them, then need no sorting.
    row_N = np.repeat(start_R + np.cumsum(size_R) - 1, size_R) - np.arange(len(request_N))

    happened_N = history.timestamp_ms_E[row_N] < (timestamp_ms_R - mask_ms_R)[request_N]
    arrived_N = np.where(
        watermark_R[request_N] == NO_WATERMARK,
        history.received_at_ms_E[row_N] <= timestamp_ms_R[request_N],
        history.commit_seq_E[row_N] <= watermark_R[request_N],
    )
    in_sequence_N = vocabulary.flags(in_sequence=True)[history.action_E[row_N]]
    keep = happened_N & arrived_N & in_sequence_N
    request_N, row_N = _places(history, request_N[keep], row_N[keep], vocabulary)

    count_R = np.bincount(request_N, minlength=num_requests)
    place_N = np.arange(len(row_N)) - np.repeat(np.cumsum(count_R) - count_R, count_R)
    keep = place_N < length
    row_N, at_N = row_N[keep], request_N[keep] * length + place_N[keep]

    action_RL = np.full((num_requests, length), PAD, np.uint8)
    item_hash_RL = np.zeros((num_requests, length), np.uint64)
    timestamp_ms_RL = np.zeros((num_requests, length), np.int64)
    action_RL.reshape(-1)[at_N] = history.action_E[row_N]
    item_hash_RL.reshape(-1)[at_N] = history.item_hash_E[row_N]
    timestamp_ms_RL.reshape(-1)[at_N] = history.timestamp_ms_E[row_N]
    return Sequences(action_RL, item_hash_RL, timestamp_ms_RL, np.minimum(count_R, length))


def _places(history: History, request_N: Ints, row_N: Ints, vocabulary: Vocabulary) -> tuple[Ints, Ints]:
    """Requests and rows in the order of `point_in_time`, one row for each of a request's (item, millisecond).

    `request_N` ascends. Rows that stand in order already are not sorted, and only ties are looked at for repetitions.
    """
    time_N, hash_N = history.timestamp_ms_E[row_N], history.event_hash_E[row_N]
    same_request = request_N[1:] == request_N[:-1]
    tied = same_request & (time_N[1:] == time_N[:-1])
    in_order = (time_N[1:] < time_N[:-1]) | (tied & (hash_N[1:] <= hash_N[:-1]))
    if not (in_order | ~same_request).all():
        order = np.lexsort((~hash_N, -time_N, request_N))  # the complement of an unsigned hash sorts it descending
        row_N, time_N, hash_N = row_N[order], time_N[order], hash_N[order]
        tied = same_request & (time_N[1:] == time_N[:-1])
    if not tied.any():
        return request_N, row_N
    # Rows of one millisecond: the best of each item stays.
    place_T = np.flatnonzero(np.r_[tied, False] | np.r_[False, tied])
    row_T, item_T = row_N[place_T], history.item_hash_E[row_N[place_T]]
    priority_T = vocabulary.priorities[history.action_E[row_T]]
    order_T = np.lexsort((~hash_N[place_T], -priority_T, item_T, time_N[place_T], request_N[place_T]))
    key_3T = (request_N[place_T][order_T], time_N[place_T][order_T], item_T[order_T])
    repeated_T = np.r_[False, np.all([key[1:] == key[:-1] for key in key_3T], axis=0)]
    keep_N = np.ones(len(row_N), bool)
    keep_N[place_T[order_T[repeated_T]]] = False
    return request_N[keep_N], row_N[keep_N]


def at_request(
    history: History, *, timestamp_ms: int, watermark: int, length: int, vocabulary: Vocabulary
) -> Sequences:
    """`point_in_time` for one user at one moment, as the server asks it. `history` is that user's rows."""
    one = np.array([timestamp_ms], np.int64)
    return point_in_time(
        history,
        np.array([0]),
        np.array([len(history)]),
        timestamp_ms_R=one,
        watermark_R=np.array([watermark], np.int64),
        mask_ms_R=np.zeros(1, np.int64),
        length=length,
        vocabulary=vocabulary,
    )


def known_to(vocabulary_size: int, action_RL: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Action ids as a model trained with a shorter vocabulary may see them: later ids become UNKNOWN."""
    return np.where(action_RL < vocabulary_size, action_RL, np.uint8(UNKNOWN))
