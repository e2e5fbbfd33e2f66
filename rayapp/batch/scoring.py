"""Scores many requests with one model: large ones one by one as the live ranker does, small ones together.

Shapes: R requests, N candidates of all of them, B requests scored together, C candidates of the largest of these,
K rate features, H heads, L history rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from rayapp.features.requests import Requests
from rayapp.features.sequence import Sequences
from rayapp.model.scorer import Scorer

Ints = NDArray[np.int64]
ALONE: Final = 32
"""On a CPU a request of this many candidates fills the caches by itself; the live ranker's way is the quickest then."""
TOGETHER_CPU: Final = 128
TOGETHER_GPU: Final = 8192
"""Candidates, padding included, of requests that are scored together."""


@dataclass(frozen=True, slots=True)
class Questions:
    """Requests with their features. Candidate n belongs to request r for offset_R[r] <= n < offset_R[r + 1]."""

    user_hash_R: NDArray[np.uint64]
    timestamp_ms_R: Ints
    context: pa.Table
    sequences: Sequences
    offset_R: Ints
    item_hash_N: NDArray[np.uint64]
    user_rate_RK: NDArray[np.float32]
    item_rate_NK: NDArray[np.float32]

    def some(self, rows_B: Ints) -> tuple[Requests, Ints, NDArray[np.bool_]]:
        """`(requests, padded; where each candidate stands [B, C]; which of them are real)`."""
        start_B, size_B = self.offset_R[rows_B], np.diff(self.offset_R)[rows_B]
        column_C = np.arange(size_B.max())
        valid_BC = column_C < size_B[:, None]
        at_BC = np.where(valid_BC, start_B[:, None] + column_C, 0)
        requests = Requests(
            self.user_hash_R[rows_B],
            self.timestamp_ms_R[rows_B],
            self.context.take(pa.array(rows_B)),
            take_sequences(self.sequences, rows_B, self.sequences.action_RL.shape[1]),
            np.where(valid_BC, self.item_hash_N[at_BC], 0).astype(np.uint64),
            self.user_rate_RK[rows_B],
            np.where(valid_BC[:, :, None], self.item_rate_NK[at_BC], 0.0).astype(np.float32),
        )
        return requests, at_BC, valid_BC


def take_sequences(sequences: Sequences, rows_B: Ints, length: int) -> Sequences:
    """Those of some requests as a model sees them that reads only `length` actions."""
    return Sequences(
        sequences.action_RL[rows_B, :length],
        sequences.item_hash_RL[rows_B, :length],
        sequences.timestamp_ms_RL[rows_B, :length],
        np.minimum(sequences.length_R[rows_B], length),
    )


def probabilities(scorer: Scorer, questions: Questions, num_heads: int) -> NDArray[np.float32]:
    """Calibrated probabilities `[N, H]`. How requests are put together changes no score by more than rounding."""
    probability_NH = np.zeros((len(questions.item_hash_N), num_heads), np.float32)
    gpu = scorer.inputs.vector_NE.device.type != "cpu"
    for rows_B in batches(np.diff(questions.offset_R), gpu=gpu):
        requests, at_BC, valid_BC = questions.some(rows_B)
        if len(rows_B) == 1:
            probability_NH[at_BC[0]] = scorer.score(requests)[0]
        else:
            probability_BCH = torch.sigmoid(scorer.logits(requests)).float().cpu().numpy()
            probability_NH[at_BC[valid_BC]] = probability_BCH[valid_BC]
    return probability_NH


def batches(size_R: Ints, *, gpu: bool) -> Iterator[Ints]:
    """Requests that are scored together: of like size, so that little is padded. Empty ones are left out."""
    order = np.argsort(size_R, kind="stable")
    order = order[size_R[order] > 0]
    alone, together = (1 << 62, TOGETHER_GPU) if gpu else (ALONE, TOGETHER_CPU)
    at = 0
    while at < len(order):
        end = at + 1
        while end < len(order) and size_R[order[end]] < alone and (end + 1 - at) * size_R[order[end]] <= together:
            end += 1
        yield order[at:end]
        at = end
