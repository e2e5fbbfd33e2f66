"""Scores one user's candidates with a trained ranker, in the same arithmetic as training.

Shapes: B requests, C candidates, H heads.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rayapp.features.attributes import ABSENT
from rayapp.features.requests import Requests
from rayapp.model.calibration import Calibration
from rayapp.model.inputs import Inputs
from rayapp.model.item_table import ItemTable
from rayapp.model.ranker import Ranker

BLOCK = 64
"""Candidates scored at a time: a block's activations stay in the cache."""


@dataclass(frozen=True, slots=True)
class Scorer:
    """One loaded model over one item table. A score depends on the user and that candidate alone."""

    ranker: Ranker
    inputs: Inputs
    calibration: Calibration

    @property
    def history_length(self) -> int:
        """Actions that the model reads."""
        return self.ranker.config.history_length

    def with_table(self, table: ItemTable) -> "Scorer":
        """The same weights over an extended item table."""
        old = self.inputs
        inputs = Inputs.of(table, old.users, old.encoders, old.vocabulary_size)
        return dataclasses.replace(self, inputs=inputs)

    def logits(self, requests: Requests) -> Tensor:
        """Calibrated logits `[B, C, H]`."""
        with torch.inference_mode():
            return self.calibration.apply(self.ranker.eval()(self.inputs.batch(requests)))

    def score(self, request: Requests) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """`(probabilities [C, H], known [C])` of one request; a candidate the table does not hold is scored cold and
        not known."""
        batch = self.inputs.batch(request)
        logits = []
        with torch.inference_mode():
            for at in range(0, batch.candidate_BCE.shape[1], BLOCK):
                block = batch.candidates(slice(at, at + BLOCK))
                logits.append(self.calibration.apply(self.ranker.eval()(block))[0])
        probability = torch.sigmoid(torch.cat(logits)).cpu().numpy() if logits else np.zeros((0, 0), np.float32)
        return probability, self.inputs.table.rows_of(request.candidate_hash_BC[0]) != ABSENT
