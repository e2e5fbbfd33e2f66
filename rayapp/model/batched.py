"""Scores several users' requests in one forward, for a GPU: one copy there, one CUDA graph, one copy back.

The plain module runs, not the fast one: what that saves, arithmetic and cache, is not what a GPU lacks. Runs on a CPU
all the same, without graphs and bf16, and is tested there.

Shapes: B requests, C candidates, L history rows, H heads.
"""

import copy
import dataclasses
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rayapp.contracts.schema import FIRST_ACTION_ID
from rayapp.features import known_numbers
from rayapp.features.attributes import ABSENT
from rayapp.features.requests import Requests
from rayapp.features.statistic_columns import Columns
from rayapp.model.calibration import Calibration
from rayapp.model.graphs import Graphs
from rayapp.model.inputs import FeatureTables, Rows
from rayapp.model.item_table import ItemTable
from rayapp.model.matching import NUM_AGES
from rayapp.model.packing import OneCopy
from rayapp.model.ranker import Batch, Ranker

LARGEST_BATCH: Final = 16
FEWEST_CANDIDATES: Final = 32
MOST_EXAMPLES: Final = 8_192
"""Requests times candidates of one forward, unless one request alone is larger: bounds the GPU's memory."""
LARGEST_BF16_ERROR: Final = 2e-3
"""Of a probability. Beyond it float32 is used."""


class Scores(NamedTuple):
    """Of one request's candidates."""

    probability_CH: NDArray[np.float32]
    row_C: NDArray[np.int64]
    """Of the item table; ABSENT for an item that it does not hold, which is scored cold."""

    @property
    def known(self) -> NDArray[np.bool_]:
        """Which items the table holds `[C]`."""
        return np.asarray(self.row_C != ABSENT)


class Probabilities:
    """Calibrated probabilities of a batch: the function that is captured, so everything it reads is on the device."""

    def __init__(self, ranker: Ranker, calibration: Calibration, device: torch.device) -> None:
        self._ranker = copy.deepcopy(ranker).to(device).eval()
        self._scale_H = torch.tensor(calibration.scale_H, device=device)
        self._shift_H = torch.tensor(calibration.shift_H, device=device)
        self._device_type, self.num_heads = device.type, len(calibration.scale_H)
        self.bf16 = False

    def __call__(self, batch: Batch) -> Tensor:
        """`[B, C, H]`, float32."""
        return self.computed(batch, self.bf16)

    def computed(self, batch: Batch, bf16: bool) -> Tensor:
        # A cache of cast weights would outlive the graph that wrote it.
        with torch.autocast(self._device_type, torch.bfloat16, enabled=bf16, cache_enabled=False):
            logits_BCH = self._ranker(batch)
        return torch.sigmoid(logits_BCH.float() * self._scale_H + self._shift_H)


@dataclass(frozen=True, slots=True)
class BatchedScorer:
    """One model on one device over one item table; threads take turns. Scores are `Scorer.score`'s up to the rounding
    of float32, or within LARGEST_BF16_ERROR on a GPU where bf16 passed the check when the model was loaded."""

    inputs: FeatureTables
    length: int
    probabilities: Probabilities
    graphs: Graphs
    bring: OneCopy
    lock: threading.Lock = field(default_factory=threading.Lock)

    @staticmethod
    def of(ranker: Ranker, inputs: FeatureTables, calibration: Calibration, device: torch.device) -> "BatchedScorer":
        with torch.inference_mode():
            probabilities = Probabilities(ranker, calibration, device)
        graphs, length = Graphs(probabilities, device), ranker.config.history_length
        scorer = BatchedScorer(inputs.to(device), length, probabilities, graphs, OneCopy(device))
        probabilities.bf16 = device.type == "cuda" and scorer.error_of_bf16() <= LARGEST_BF16_ERROR
        return scorer

    def error_of_bf16(self) -> float:
        """The largest difference that bf16 makes to a probability of a made-up batch."""
        rows = made_up_rows(self.inputs, self.length)
        with torch.inference_mode():
            batch = self.inputs.gather(rows)
            exact_BCH, rounded_BCH = (self.probabilities.computed(batch, bf16) for bf16 in (False, True))
            return float((rounded_BCH - exact_BCH).abs().max())

    def with_table(self, table: ItemTable) -> "BatchedScorer":
        """The same weights, graphs and buffers over an extended item table."""
        return dataclasses.replace(self, inputs=self.inputs.extended(table))

    def score_many(self, requests: Sequence[Requests]) -> list[Scores]:
        """The scores of each, which holds one request and no more actions than the model reads."""
        scores: dict[int, Scores] = {}
        for part in groups([len(one.candidate_hash_N) for one in requests]):
            scores |= zip(part, self._score([requests[n] for n in part]), strict=True)
        return [scores[n] for n in range(len(requests))]

    def warm_up(self, request: Requests) -> None:
        """Scores it in batches of every size, which captures their graphs; a shape met later captures its own."""
        size = 1
        while size <= LARGEST_BATCH:
            self.score_many([request] * size)
            size *= 2

    def _score(self, requests: Sequence[Requests]) -> Iterator[Scores]:
        counts = [len(one.candidate_hash_N) for one in requests]
        copies = [requests[-1]] * (bucket(len(requests)) - len(requests))
        joined = Requests.concatenate([*requests, *copies])
        rows = self.inputs.look_up(joined, self.length, bucket(max(counts), FEWEST_CANDIDATES))
        with self.lock, torch.inference_mode():
            batch = self.inputs.gather(Rows(*self.bring(rows.tensors())))
            probability_BCH = self.graphs(batch).cpu().numpy()  # waits, so that the buffers are free again
        row_BC = rows.candidate_BC.numpy()
        return (Scores(probability_BCH[b, :count], row_BC[b, :count]) for b, count in enumerate(counts))


def bucket(size: int, least: int = 1) -> int:
    """The power of two from `least` on that holds `size`: few shapes, so few graphs."""
    return max(least, 1 << max(size - 1, 0).bit_length())


def groups(counts: Sequence[int]) -> Iterator[list[int]]:
    """Indexes of requests of so many candidates, in groups to be scored at once; like sizes stand together."""
    group: list[int] = []
    for n in sorted(range(len(counts)), key=lambda n: counts[n]):
        size = bucket(len(group) + 1)
        if group and (size > LARGEST_BATCH or size * bucket(counts[n], FEWEST_CANDIDATES) > MOST_EXAMPLES):
            yield group
            group = []
        group.append(n)
    if group:
        yield group


def made_up_rows(inputs: FeatureTables, length: int) -> Rows:
    """8 full histories with 64 candidates each, of the table's own items and users: what bf16 is tried on."""
    rng, shape, context = np.random.default_rng(0), (8, 64), inputs.encoders.context
    user_B = rng.integers(0, len(inputs.users.category_UW), shape[0])
    num_item, num_user = Columns.of(inputs.domain).widths
    of_user_BK = rng.normal(size=(shape[0], num_user + known_numbers.NUM_USER))
    number_BM = np.concatenate([inputs.users.number_UM[user_B], of_user_BK], axis=1)
    return Rows(
        torch.from_numpy(rng.integers(FIRST_ACTION_ID, inputs.vocabulary_size, (shape[0], length))),
        torch.from_numpy(np.sort(rng.integers(0, NUM_AGES, (shape[0], length)))),
        torch.from_numpy(rng.integers(0, inputs.table.num_rows, (shape[0], length))),
        torch.from_numpy(rng.integers(0, inputs.table.num_rows, shape)),
        torch.from_numpy(rng.normal(size=(*shape, num_item + known_numbers.NUM_ITEM)).astype(np.float32)),
        torch.from_numpy(inputs.users.category_UW[user_B]),
        torch.from_numpy(number_BM.astype(np.float32)),
        torch.from_numpy(rng.integers(0, context.num_categories, (shape[0], sum(context.widths.values())))),
        torch.from_numpy(rng.normal(size=(shape[0], context.num_numbers)).astype(np.float32)),
    )
