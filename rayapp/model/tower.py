"""The item tower: a linear map from hashed content tokens to vectors.

Whatever trained it, the tower's answer is what everyone uses, so an item that appeared a second ago has a vector of the
same kind as the others.

Shapes: N items, T hashed tokens, E vector width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from rayapp.contracts.schema import Attribute
from rayapp.features.content import Item, content_tokens

NUM_TOKENS = 4096
RIDGE = 1.0


@dataclass(frozen=True, slots=True)
class LinearTower:
    """`vector(item) = normalise(sum of its tokens' rows)`."""

    weight_TE: NDArray[np.float32]
    attributes: tuple[Attribute, ...]

    def embed(self, items: Sequence[Item]) -> NDArray[np.float32]:
        """Unit vectors `[N, E]`; zeros for an item without content."""
        num_tokens, width = self.weight_TE.shape
        vector_NE = np.zeros((len(items), width), np.float32)
        for n, item in enumerate(items):
            tokens = content_tokens(item, self.attributes, num_tokens)
            if tokens:
                vector_NE[n] = self.weight_TE[tokens].sum(axis=0)
        norm_N1 = np.linalg.norm(vector_NE, axis=1, keepdims=True)
        unit_NE: NDArray[np.float32] = np.divide(vector_NE, norm_N1, out=np.zeros_like(vector_NE), where=norm_N1 > 1e-8)
        return unit_NE


def fit_linear_tower(
    items: Sequence[Item],
    attributes: Sequence[Attribute],
    target_NE: NDArray[np.float32],
    weight_N: NDArray[np.float32],
) -> LinearTower:
    """Ridge regression from content tokens to `target_NE`, each item weighing `weight_N` (0: unknown target)."""
    content_NT = torch.zeros(len(items), NUM_TOKENS, dtype=torch.float64)
    for n, item in enumerate(items):
        for token in content_tokens(item, attributes, NUM_TOKENS):
            content_NT[n, token] += 1.0
    weighted_NT = content_NT * torch.from_numpy(weight_N).double()[:, None]
    gram_TT = weighted_NT.T @ content_NT + RIDGE * torch.eye(NUM_TOKENS, dtype=torch.float64)
    weight_TE = torch.linalg.solve(gram_TT, weighted_NT.T @ torch.from_numpy(target_NE).double())
    return LinearTower(weight_TE.float().numpy(), tuple(attributes))
