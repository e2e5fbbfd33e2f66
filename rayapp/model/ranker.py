"""The feed ranker: sequence read-out and item features through DCN v2 and an MLP to one sigmoid per head.

Shapes: B requests, C candidates per request, N = B*C examples, L history rows, E item vector width, G categories
per item, M numeric features, F crossing width, H heads.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rayapp.config import ModelConfig
from rayapp.features.items import ABSENT
from rayapp.model.encoder import TransActEncoder


@dataclass(frozen=True, slots=True)
class Batch:
    """What the ranker reads, request-centred: a history is held once, not once per candidate."""

    action_BL: Tensor
    history_BLE: Tensor
    candidate_BCE: Tensor
    category_BCG: Tensor
    number_BCM: Tensor


class CrossNetwork(nn.Module):
    """Full-rank DCN v2: `x_{l+1} = x_0 * (W_l x_l + b_l) + x_l` (Wang et al., WWW 2021, eq. 1)."""

    def __init__(self, width: int, num_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(num_layers))

    def forward(self, x_NF: Tensor) -> Tensor:
        crossed_NF = x_NF
        for layer in self.layers:
            crossed_NF = torch.addcmul(crossed_NF, x_NF, layer(crossed_NF))
        return crossed_NF


class Ranker(nn.Module):
    """Logits of every head for every candidate. Without the sequence it is the same ranker minus the encoder."""

    def __init__(
        self, config: ModelConfig, *, vocabulary_size: int, num_heads: int, num_categories: int, num_numbers: int
    ) -> None:
        super().__init__()
        self.encoder = TransActEncoder(config, vocabulary_size) if config.use_sequence else None
        self.category_embedding = nn.Embedding(num_categories, config.category_dim, padding_idx=ABSENT)
        width = config.item_dim + config.category_dim + num_numbers
        width += self.encoder.output_dim if self.encoder is not None else 0
        self.cross = CrossNetwork(width, config.num_cross_layers)
        self.mlp = nn.Sequential(nn.Linear(width, config.mlp_dim), nn.ReLU(), nn.Linear(config.mlp_dim, num_heads))

    def forward(self, batch: Batch) -> Tensor:
        """Returns logits `[B, C, H]`."""
        num_requests, num_candidates = batch.candidate_BCE.shape[:2]
        features = [
            batch.candidate_BCE.flatten(0, 1),
            self.category_embedding(batch.category_BCG.flatten(0, 1)).sum(dim=1),
            batch.number_BCM.flatten(0, 1),
        ]
        if self.encoder is not None:
            features.append(
                self.encoder(
                    batch.action_BL.repeat_interleave(num_candidates, dim=0),
                    batch.history_BLE.repeat_interleave(num_candidates, dim=0),
                    batch.candidate_BCE.flatten(0, 1),
                )
            )
        logits_NH: Tensor = self.mlp(self.cross(torch.cat(features, dim=-1)))
        return logits_NH.view(num_requests, num_candidates, -1)


def ranking_loss(logits_BCH: Tensor, label_BCH: Tensor, valid_BC: Tensor, weight_HA: Tensor) -> Tensor:
    """Binary cross-entropy weighted by the label-weight matrix (TransAct, eq. 1 and 2), a mean over candidates.

    `weight_HA` has a column per head's label and a last one for an impression without any. Read to the letter the
    paper's matrix has no such column, and an impression without an action would weigh nothing.
    """
    no_label_BC1 = (label_BCH.sum(dim=-1, keepdim=True) == 0).to(label_BCH.dtype)
    weight_BCH = torch.cat([label_BCH, no_label_BC1], dim=-1) @ weight_HA.T
    loss_BCH = nn.functional.binary_cross_entropy_with_logits(logits_BCH, label_BCH, reduction="none")
    return (loss_BCH * weight_BCH).sum(dim=-1)[valid_BC].mean()
