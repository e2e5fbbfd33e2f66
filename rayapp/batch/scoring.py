"""Scores many requests with one model: large ones one by one as the live ranker does, small ones together.

Shapes: R requests, N candidates of all of them, B requests scored together, C candidates of the largest of these,
H heads.
"""

from collections.abc import Iterator
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from rayapp.features.requests import Requests
from rayapp.features.sequence import Ints
from rayapp.model.scorer import Scorer

ALONE: Final = 32
"""On a CPU a request of this many candidates fills the caches by itself; the live ranker's way is the quickest then."""
TOGETHER_CPU: Final = 128
TOGETHER_GPU: Final = 8192
"""Candidates, padding included, of requests that are scored together."""


def probabilities(scorer: Scorer, requests: Requests, num_heads: int) -> NDArray[np.float32]:
    """Calibrated probabilities `[N, H]`; NaN of heads that the domain has gained since the model was trained. How
    requests are put together changes no score by more than rounding."""
    probability_NH = np.full((len(requests.candidate_hash_N), num_heads), np.nan, np.float32)
    gpu = scorer.inputs.vector_NE.device.type != "cpu"
    for rows_B in batches(requests.sizes, gpu=gpu):
        some, at_N = requests.take(rows_B), requests.places(rows_B)
        if len(some) == 1:
            found_NH = scorer.score(some).probability_CH
        else:
            found_NH = torch.sigmoid(scorer.logits(some)).float().cpu().numpy()
        probability_NH[at_N, : found_NH.shape[1]] = found_NH
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
