"""The ranker prepared for scoring: one request at a time, what belongs to the user computed once.

Exact up to float32 rounding. Prepared once and never changed, so any number of threads may score with it.

Shapes: C candidates, F crossing width, U of its columns the same for every candidate, O those of their own, G encoder
output width, X output width of the first linear layer, H heads.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from rayapp.model.encoder import SequenceEncoder, TransActEncoder
from rayapp.model.fast_encoder import EarlyFusion, plain_blocks
from rayapp.model.ranker import Batch, Ranker


class FastRanker:
    """Logits `[C, H]` of a batch that holds one request."""

    def __init__(self, ranker: Ranker) -> None:
        """`ranker` is in evaluation mode, and its weights do not change any more."""
        self._ranker = ranker
        self._encode = candidate_encoder(ranker.encoder)
        self._cross: list[Any] = list(ranker.cross.layers)
        self._output: Any = ranker.mlp[0]
        self._shared = ranker.encoder.shared_dim if ranker.encoder is not None else 0
        first = (*self._cross, self._output)[0]
        user = slice(ranker.item_width, ranker.item_width + ranker.user_width + self._shared)
        weight_XF = first.weight.detach()
        self._user_XU, self._bias_X = weight_XF[:, user].contiguous(), first.bias.detach()
        self._own_XO = torch.cat([weight_XF[:, : user.start], weight_XF[:, user.stop :]], dim=1)

    def __call__(self, batch: Batch) -> Tensor:
        ranker = self._ranker
        item_CF, encoded_CG = ranker.item_features(batch)[0], self._encode(batch)
        user_1U = torch.cat([ranker.user_features(batch), encoded_CG[:1, : self._shared]], dim=1)
        own_CO = torch.cat([item_CF, encoded_CG[:, self._shared :]], dim=1)
        first_X = torch.addmv(self._bias_X, self._user_XU, user_1U[0])
        if not self._cross:
            return self._heads(torch.addmm(first_X, own_CO, self._own_XO[:, : own_CO.shape[1]].T))
        # Columns that are zero, as those of a user without actions, stay zero in every layer: they come last, so
        # `width` leaves them out.
        user_CU = user_1U.expand(len(item_CF), -1)
        x_CF = torch.cat([item_CF, user_CU, own_CO[:, item_CF.shape[1] :]], dim=1)
        width = x_CF.shape[1]
        gate_CF = torch.addmm(first_X[:width], own_CO, self._own_XO[:width, : own_CO.shape[1]].T)
        crossed_CF = torch.addcmul(x_CF, x_CF, gate_CF)
        for layer in self._cross[1:]:
            gate_CF = functional.linear(crossed_CF, layer.weight[:width, :width], layer.bias[:width])
            crossed_CF = torch.addcmul(crossed_CF, x_CF, gate_CF)
        return self._heads(functional.linear(crossed_CF, self._output.weight[:, :width], self._output.bias))

    def _heads(self, hidden_CX: Tensor) -> Tensor:
        logits_CH: Tensor = self._ranker.mlp[1:](hidden_CX)
        return logits_CH


def candidate_encoder(encoder: SequenceEncoder | None) -> Callable[[Batch], Tensor]:
    """The quickest exact form of an encoder: from a batch of one request to `[C, G]`, or `[C, 0]` where it is zero."""
    if encoder is None:
        return lambda batch: batch.candidate_BCE[0, :, :0]
    if isinstance(encoder, TransActEncoder) and encoder.config.fusion == "concat":
        return EarlyFusion(encoder)

    return lambda batch: plain_blocks(encoder, batch)
