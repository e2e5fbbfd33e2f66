"""What a ranker is asked: some requests, each with its user's sequence and its candidates, by hash of the ids.

The pipeline's reader makes it from a window, the server from what just arrived; the model reads nothing else.

Shapes: B requests, C candidates (padded), L history rows (newest first), R rate features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rayapp.contracts.schema import Attribute, attribute_fields
from rayapp.features.sequence import Sequences


@dataclass(frozen=True, slots=True)
class Requests:
    """Requests of one batch; no item table and no model is involved yet."""

    user_hash_B: NDArray[np.uint64]
    timestamp_ms_B: NDArray[np.int64]
    context: pa.Table
    """A row per request, a column per context attribute, and `timestamp_ms`, so that there is a column at all."""
    sequences: Sequences
    candidate_hash_BC: NDArray[np.uint64]
    user_rate_BR: NDArray[np.float32]
    item_rate_BCR: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.user_hash_B)


def context_row(attributes: Sequence[Attribute], timestamp_ms: int, values: Mapping[str, Any]) -> pa.Table:
    """One request's `context`; what `values` lacks is missing."""
    schema = pa.schema([pa.field("timestamp_ms", pa.int64()), *attribute_fields(attributes)])
    return pa.Table.from_pylist([{"timestamp_ms": timestamp_ms, **values}], schema=schema)


def join(requests: Sequence[Requests], num_requests: int, num_candidates: int, length: int) -> Requests:
    """Requests of one context schema as one of fixed shape: candidates filled up with hash 0, histories with PAD or cut
    to the newest `length`, and requests with copies of the last one."""
    filled = [*requests, *[requests[-1]] * (num_requests - len(requests))]
    sequences = [one.sequences for one in filled]
    return Requests(
        np.concatenate([one.user_hash_B for one in filled]),
        np.concatenate([one.timestamp_ms_B for one in filled]),
        pa.concat_tables([one.context for one in filled]),
        Sequences(
            np.concatenate([_of_width(one.action_RL, length) for one in sequences]),
            np.concatenate([_of_width(one.item_hash_RL, length) for one in sequences]),
            np.concatenate([_of_width(one.timestamp_ms_RL, length) for one in sequences]),
            np.minimum(np.concatenate([one.length_R for one in sequences]), length),
        ),
        np.concatenate([_of_width(one.candidate_hash_BC, num_candidates) for one in filled]),
        np.concatenate([one.user_rate_BR for one in filled]),
        np.concatenate([_of_width(one.item_rate_BCR, num_candidates) for one in filled]),
    )


def _of_width(array: NDArray[Any], width: int) -> NDArray[Any]:
    """`[B, X, ...]` as `[B, width, ...]`, cut or filled up with zeros (PAD is one)."""
    missing = max(width - array.shape[1], 0)
    return np.pad(array[:, :width], [(0, 0), (0, missing)] + [(0, 0)] * (array.ndim - 2))
