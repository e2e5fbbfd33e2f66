"""What a ranker is asked: some requests, each with its user's sequence and a list of candidates, by hash of the ids.

The one form of it: the reader of windows, the server and a batch job make it, and the model reads nothing else. The
candidates of all requests lie end to end, and are padded where the model reads them.

Shapes: R requests, N candidates of all of them, C candidates of the largest, B requests that are chosen, L history rows
(newest first), K statistics.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rayapp.contracts.schema import FIRST_ACTION_ID, Attribute, attribute_fields
from rayapp.features.sequence import Ints, Sequences


@dataclass(frozen=True, slots=True)
class Requests:
    """Candidate n belongs to request r for `offset_R[r] <= n < offset_R[r + 1]`. No item table and no model is involved
    yet."""

    user_hash_R: NDArray[np.uint64]
    timestamp_ms_R: Ints
    context: pa.Table
    """A row per request, a column per context attribute, and `timestamp_ms`, so that there is a column at all."""
    sequences: Sequences
    offset_R: Ints
    """R + 1."""
    candidate_hash_N: NDArray[np.uint64]
    user_statistic_RK: NDArray[np.float32]
    """What was known of each user at the request (`features.statistic_columns`); no columns for those who don't ask."""
    item_statistic_NK: NDArray[np.float32]
    """The same of each candidate."""

    @staticmethod
    def of_one(
        user_hash: int,
        timestamp_ms: int,
        context: pa.Table,
        sequences: Sequences,
        candidate_hash_C: NDArray[np.uint64],
        user_statistic_K: NDArray[np.float32],
        item_statistic_CK: NDArray[np.float32],
    ) -> "Requests":
        """A single request."""
        return Requests(
            np.array([user_hash], np.uint64),
            np.array([timestamp_ms], np.int64),
            context,
            sequences,
            np.array([0, len(candidate_hash_C)]),
            candidate_hash_C,
            user_statistic_K[None],
            item_statistic_CK,
        )

    def __len__(self) -> int:
        return len(self.user_hash_R)

    def without_statistics(self, num_item: int, num_user: int) -> "Requests":
        """The same with zeros for so many statistics of items and of users."""
        return dataclasses.replace(
            self,
            user_statistic_RK=np.zeros((len(self), num_user), np.float32),
            item_statistic_NK=np.zeros((len(self.candidate_hash_N), num_item), np.float32),
        )

    @property
    def sizes(self) -> Ints:
        """Candidates of each request `[R]`."""
        return np.diff(self.offset_R)

    def request_of_candidate(self) -> Ints:
        """`[N]`."""
        return np.repeat(np.arange(len(self)), self.sizes)

    def places(self, rows_B: Ints) -> Ints:
        """Where the candidates of some requests stand, end to end."""
        return ragged_places(self.offset_R, rows_B)

    def take(self, rows_B: Ints) -> "Requests":
        """Some requests, in this order."""
        at_N = self.places(rows_B)
        return Requests(
            self.user_hash_R[rows_B],
            self.timestamp_ms_R[rows_B],
            self.context.take(pa.array(rows_B)),
            self.sequences.take(rows_B),
            offsets(self.sizes[rows_B]),
            self.candidate_hash_N[at_N],
            self.user_statistic_RK[rows_B],
            self.item_statistic_NK[at_N],
        )

    def with_candidates(self, keep_N: NDArray[np.bool_]) -> "Requests":
        """The same requests with some of their candidates."""
        kept = offsets(keep_N.astype(np.int64))
        return dataclasses.replace(
            self,
            offset_R=kept[self.offset_R],
            candidate_hash_N=self.candidate_hash_N[keep_N],
            item_statistic_NK=self.item_statistic_NK[keep_N],
        )

    @staticmethod
    def concatenate(parts: Sequence["Requests"]) -> "Requests":
        """Requests of one context schema, one after the other; the shorter histories are filled up with PAD."""
        return Requests(
            np.concatenate([part.user_hash_R for part in parts]),
            np.concatenate([part.timestamp_ms_R for part in parts]),
            pa.concat_tables([part.context for part in parts]).combine_chunks(),
            Sequences.concatenate([part.sequences for part in parts]),
            offsets(np.concatenate([part.sizes for part in parts])),
            np.concatenate([part.candidate_hash_N for part in parts]),
            np.concatenate([part.user_statistic_RK for part in parts]),
            np.concatenate([part.item_statistic_NK for part in parts]),
        )

    def pad(self, x_N: NDArray[Any], num_candidates: int | None = None) -> NDArray[Any]:
        """`[N, ...]` of the candidates as `[R, C, ...]`; see `pad`."""
        return pad(x_N, self.sizes, num_candidates)

    def valid(self, num_candidates: int | None = None) -> NDArray[np.bool_]:
        """Which places of `pad` are candidates `[R, C]`."""
        return valid_places(self.sizes, num_candidates)


def offsets(size_R: Ints) -> Ints:
    """Where each of so many begins, and the end: R + 1."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(size_R)])


def ragged_places(offset_R: Ints, rows_B: Ints) -> Ints:
    """Where the values of some rows of a ragged array stand, end to end."""
    size_B = offset_R[rows_B + 1] - offset_R[rows_B]
    end_B = np.cumsum(size_B)
    return np.asarray(np.arange(size_B.sum()) + np.repeat(offset_R[rows_B] - end_B + size_B, size_B))


def pad(x_N: NDArray[Any], size_R: Ints, width: int | None = None) -> NDArray[Any]:
    """A ragged array `[N, ...]` of these sizes as `[R, C, ...]`, zeros where there is nothing. C is `width` or what the
    largest needs, and at least 1: no module can be asked about nothing."""
    width = int(size_R.max(initial=1)) if width is None else width
    shape = (len(size_R), width, *x_N.shape[1:])
    if len(x_N) == len(size_R) * width:  # as of a single request: nothing to fill up
        return x_N.reshape(shape)
    padded = np.zeros(shape, x_N.dtype)
    padded[valid_places(size_R, width)] = x_N
    return padded


def known_columns(flat_V: NDArray[np.float32], width_R: Ints, size_R: Ints, num_columns: int) -> NDArray[np.float32]:
    """`[N, num_columns]` of values that lie row by row and request by request, where request r has the first
    `width_R[r]` columns: NaN in those that came later."""
    width_N = np.repeat(width_R, size_R)
    known_NC = np.arange(num_columns) < width_N[:, None]
    matrix_NC = np.full(known_NC.shape, np.nan, np.float32)
    matrix_NC[known_NC] = flat_V
    return matrix_NC


def valid_places(size_R: Ints, width: int | None = None) -> NDArray[np.bool_]:
    """Which places of `pad` hold a value `[R, C]`."""
    width = int(size_R.max(initial=1)) if width is None else width
    return np.asarray(np.arange(width) < size_R[:, None])


def context_row(attributes: Sequence[Attribute], timestamp_ms: int, values: Mapping[str, Any]) -> pa.Table:
    """One request's `context`; what `values` lacks is missing."""
    schema = pa.schema([pa.field("timestamp_ms", pa.int64()), *attribute_fields(attributes)])
    return pa.Table.from_pylist([{"timestamp_ms": timestamp_ms, **values}], schema=schema)


def full_request(
    attributes: Sequence[Attribute],
    num_statistics: tuple[int, int],
    item_hash_L: NDArray[np.uint64],
    candidate_hash_C: NDArray[np.uint64],
) -> Requests:
    """A made-up request with as many actions as a model reads, to warm it up and to time it. `num_statistics`: of items
    and of users."""
    length = len(item_hash_L)
    sequences = Sequences(
        np.full((1, length), FIRST_ACTION_ID, np.uint8),
        item_hash_L[None],
        np.zeros((1, length), np.int64),
        np.array([length]),
    )
    return Requests.of_one(
        0,
        0,
        context_row(attributes, 0, {}),
        sequences,
        candidate_hash_C,
        np.zeros(num_statistics[1], np.float32),
        np.zeros((len(candidate_hash_C), num_statistics[0]), np.float32),
    )
