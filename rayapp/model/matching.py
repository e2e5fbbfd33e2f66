"""What the user's last actions say of a candidate, learned: sums over the actions on items like it.

Target attention that adds up instead of averaging, so that five hides weigh more than one. Each action has a few
learned values by its type, its age and its place in the history; a candidate gets their sum over the actions on items
that share its categories, one sum for each attribute, and over items whose vectors are close to its own. What an
action means, and how soon it fades, is learned from the labels. (DIN keeps its attention without a softmax for the
same reason: Zhou et al., KDD 2018, section 4.3.)

It belongs to the ranker, not to the encoder: ages are counted to now, so these values change while the user does
nothing, and what is encoded of a user does not.

Shapes: B requests, C candidates, L history rows (newest first), E item vector width, W category places, J vector
kernels, K values of an action, Q = attributes + J ways to be alike.
"""

import math
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rayapp.contracts.schema import FIRST_ACTION_ID, PAD
from rayapp.features.attributes import UNKNOWN_CATEGORY, AttributeEncoder

YOUNGEST_MS: Final = 30_000
NUM_AGES: Final = 20
"""Buckets of ages, each twice as long as the one before; the last one begins at half a year."""
NUM_PLACES: Final = 8
"""Buckets of places in the history, likewise: the newest, the two before it, the four before these, …"""
KERNEL_WIDTHS: Final = (2.0, 8.0)
"""Of the kernels `exp(width (cos - 1))` of vectors, before training."""
STEEPEST: Final = 1.0
"""What a bucket takes from a value's logit before training, at most: the values begin as quick and slow memories."""


def age_buckets(
    timestamp_ms_RL: NDArray[np.int64], now_ms_R: NDArray[np.int64], time_mask_ms: int
) -> NDArray[np.int64]:
    """`[R, L]`: how long ago each action was. What is newer than the domain's training mask reads as the mask: training
    hides it."""
    age_ms_RL = np.maximum(now_ms_R[:, None] - timestamp_ms_RL, time_mask_ms)
    bucket_RL: NDArray[np.int64] = np.log2(1 + age_ms_RL / YOUNGEST_MS).astype(np.int64)
    return bucket_RL.clip(max=NUM_AGES - 1)


class Matches(nn.Module):
    """`[B, C, output_dim]`; zeros for a user without any action."""

    place_L: Tensor

    def __init__(
        self, dim: int, vocabulary_size: int, history_length: int, items: AttributeEncoder, *, action_types: bool = True
    ) -> None:
        """`dim`: K. `items`: its attributes give the categories their meaning. Without `action_types` all actions have
        the same values."""
        super().__init__()
        self.action_types = action_types
        self.widths = list(items.widths.values())
        self.output_dim = dim * (len(self.widths) + len(KERNEL_WIDTHS))
        self.action_AK = nn.Parameter(torch.randn(vocabulary_size, dim) * 0.3)
        steep_K = torch.arange(dim) / max(dim - 1, 1) * STEEPEST
        self.age_AK = nn.Parameter(1.0 - torch.arange(NUM_AGES)[:, None] * steep_K)
        self.place_PK = nn.Parameter(1.0 - torch.arange(NUM_PLACES)[:, None] * steep_K.flip(0))
        self.width_J = nn.Parameter(torch.tensor([math.log(width) for width in KERNEL_WIDTHS]))
        place_L = torch.log2(1 + torch.arange(history_length)).long().clamp(max=NUM_PLACES - 1)
        self.register_buffer("place_L", place_L, persistent=False)

    def forward(
        self,
        action_BL: Tensor,
        age_BL: Tensor,
        history_BLE: Tensor,
        history_category_BLW: Tensor,
        candidate_BCE: Tensor,
        category_BCW: Tensor,
    ) -> Tensor:
        value_BLK = self.values(action_BL, age_BL)
        kernels = [*self.by_category(history_category_BLW, category_BCW), *self.by_vector(history_BLE, candidate_BCE)]
        summed = [kernel_BCL @ value_BLK for kernel_BCL in kernels]
        # Near 0 a sum counts in full; beyond a few actions its logarithm does.
        return torch.asinh(torch.cat(summed, dim=-1))

    def values(self, action_BL: Tensor, age_BL: Tensor) -> Tensor:
        """`[B, L, K]` of the actions; zeros where there is none."""
        kept_BLK = torch.sigmoid(self.age_AK[age_BL]) * torch.sigmoid(self.place_PK[self.place_L[: age_BL.shape[1]]])
        type_BL = action_BL if self.action_types else (action_BL != PAD).long() * FIRST_ACTION_ID
        return self.action_AK[type_BL] * kept_BLK * (action_BL != PAD)[:, :, None]

    def by_category(self, history_BLW: Tensor, candidate_BCW: Tensor) -> list[Tensor]:
        """For each attribute `[B, C, L]`: the share of the candidate's categories that the action's item has."""
        if not self.widths:
            return []
        kernels = []
        candidates, histories = (torch.split(x, self.widths, dim=-1) for x in (candidate_BCW, history_BLW))
        for candidate_BCV, history_BLV in zip(candidates, histories, strict=True):
            known_BCV = candidate_BCV > UNKNOWN_CATEGORY
            same_BCL = torch.zeros((), dtype=self.width_J.dtype, device=self.width_J.device)
            for own_BC, known_BC in zip(candidate_BCV.unbind(-1), known_BCV.unbind(-1), strict=True):
                for theirs_BL in history_BLV.unbind(-1):
                    same_BCL = same_BCL + ((own_BC[:, :, None] == theirs_BL[:, None]) & known_BC[:, :, None])
            kernels.append(same_BCL / known_BCV.sum(-1).clamp(min=1)[:, :, None])
        return kernels

    def by_vector(self, history_BLE: Tensor, candidate_BCE: Tensor) -> list[Tensor]:
        """For each kernel `[B, C, L]`; item vectors have length 1."""
        below_BCL = candidate_BCE @ history_BLE.mT - 1
        return [torch.exp(below_BCL * width) for width in self.width_J.exp()]
