"""Scores one user's candidates with a trained ranker, in the same arithmetic as training.

Shapes: B requests, C candidates, H heads.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rayapp.features.attributes import ABSENT
from rayapp.features.requests import Requests
from rayapp.model.batched import BatchedScorer, Scores
from rayapp.model.calibration import Calibration
from rayapp.model.fast import FastRanker
from rayapp.model.inputs import Inputs
from rayapp.model.item_table import ItemTable
from rayapp.model.ranker import Ranker


@dataclass(frozen=True, slots=True)
class Scorer:
    """One loaded model over one item table. A score depends on the user and that candidate alone."""

    ranker: Ranker
    """Its weights do not change any more."""
    inputs: Inputs
    calibration: Calibration
    fast: FastRanker | None = None
    """Made from `ranker`, and kept when the table is extended."""
    batched: BatchedScorer | None = None
    """On a GPU, where there is one."""

    def __post_init__(self) -> None:
        self.ranker.eval()
        if self.fast is None:
            object.__setattr__(self, "fast", FastRanker(self.ranker))

    @property
    def history_length(self) -> int:
        """Actions that the model reads."""
        return self.ranker.config.history_length

    def with_table(self, table: ItemTable) -> "Scorer":
        """The same weights over an extended item table."""
        batched = None if self.batched is None else self.batched.with_table(table)
        return dataclasses.replace(self, inputs=self.inputs.extended(table), batched=batched)

    def on(self, device: torch.device) -> "Scorer":
        """The same with `score_many` on a GPU."""
        return dataclasses.replace(self, batched=BatchedScorer.of(self.ranker, self.inputs, self.calibration, device))

    def logits(self, requests: Requests) -> Tensor:
        """Calibrated logits `[B, C, H]`."""
        with torch.inference_mode():
            return self.calibration.apply(self.ranker(self.inputs.batch(requests)))

    def score(self, request: Requests) -> Scores:
        """`(probabilities [C, H], known [C])` of one request; a candidate the table does not hold is scored cold and
        not known."""
        assert self.fast is not None
        with torch.inference_mode():
            logits_CH = self.fast(self.inputs.batch(request))
            probability_CH = torch.sigmoid(self.calibration.apply(logits_CH)).cpu().numpy()
        return probability_CH, self.inputs.table.rows_of(request.candidate_hash_BC[0]) != ABSENT

    def score_many(self, requests: Sequence[Requests]) -> list[Scores]:
        """`score` of each, which holds one request: at once on a GPU, one after the other on a CPU."""
        return [self.score(one) for one in requests] if self.batched is None else self.batched.score_many(requests)
