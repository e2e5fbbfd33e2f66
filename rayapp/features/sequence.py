"""The user's last L actions as the server could have known them at a request's time: the cut and the encoding.

Shapes: E events of one or many users, R requests, L history length (newest first).
"""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import xxhash
from numpy.typing import NDArray

from rayapp.schema import PAD, UNKNOWN, Vocabulary

Ints = NDArray[np.int64]
NO_WATERMARK = -1


@dataclass(frozen=True, slots=True)
class History:
    """Aligned columns of events; `event_hash` and `item_hash` are `schema.hash64` of the ids."""

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
    within_N = np.arange(len(request_N)) - np.repeat(np.cumsum(size_R) - size_R, size_R)
    row_N = start_R[request_N] + within_N

    happened_N = history.timestamp_ms_E[row_N] < (timestamp_ms_R - mask_ms_R)[request_N]
    arrived_N = np.where(
        watermark_R[request_N] == NO_WATERMARK,
        history.received_at_ms_E[row_N] <= timestamp_ms_R[request_N],
        history.commit_seq_E[row_N] <= watermark_R[request_N],
    )
    in_sequence_N = vocabulary.flags(in_sequence=True)[history.action_E[row_N]]
    keep = happened_N & arrived_N & in_sequence_N
    request_N, row_N = request_N[keep], row_N[keep]

    timestamp_N = history.timestamp_ms_E[row_N]
    event_hash_N = history.event_hash_E[row_N]
    item_N = history.item_hash_E[row_N]

    # One place for one (item, millisecond): sort each group best first and keep its first row.
    priority_N = vocabulary.priorities[history.action_E[row_N]]
    order = np.lexsort((~event_hash_N, -priority_N, item_N, timestamp_N, request_N))
    first = np.ones(len(order), bool)
    first[1:] = (
        (np.diff(request_N[order]) != 0)
        | (np.diff(timestamp_N[order]) != 0)
        | (item_N[order][1:] != item_N[order][:-1])
    )
    best = order[first]

    # Newest first within each request; the bitwise complement of an unsigned hash sorts it descending.
    best = best[np.lexsort((~event_hash_N[best], -timestamp_N[best], request_N[best]))]
    request_N, row_N = request_N[best], row_N[best]
    count_R = np.bincount(request_N, minlength=num_requests)
    place_N = np.arange(len(row_N)) - np.repeat(np.cumsum(count_R) - count_R, count_R)
    keep = place_N < length
    request_N, row_N, place_N = request_N[keep], row_N[keep], place_N[keep]

    action_RL = np.full((num_requests, length), PAD, np.uint8)
    item_hash_RL = np.zeros((num_requests, length), np.uint64)
    timestamp_ms_RL = np.zeros((num_requests, length), np.int64)
    action_RL[request_N, place_N] = history.action_E[row_N]
    item_hash_RL[request_N, place_N] = history.item_hash_E[row_N]
    timestamp_ms_RL[request_N, place_N] = history.timestamp_ms_E[row_N]
    return Sequences(action_RL, item_hash_RL, timestamp_ms_RL, np.minimum(count_R, length))


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
