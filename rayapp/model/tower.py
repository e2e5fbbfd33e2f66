"""A first item tower: a linear map from hashed content tokens to the space of co-engagement vectors.

Items that the same people liked get nearby vectors (truncated SVD of positive pointwise mutual information), and a
ridge regression learns to say them from content alone; the tower's answer is what everyone uses, so an item that
appeared a second ago has a vector of the same kind as the others.

Shapes: N items, T hashed tokens, E vector width, P co-engaged pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from rayapp.features.items import Item, content_tokens
from rayapp.schema import Attribute, AttributeKind

NUM_TOKENS = 4096
RIDGE = 1.0
SMOOTHING = 0.75
"""Exponent of the context distribution (Levy, Goldberg and Dagan, 2015)."""


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


def co_engagement_vectors(
    user_P: NDArray[np.int64], item_P: NDArray[np.int64], num_items: int, width: int, seed: int
) -> NDArray[np.float32]:
    """Unit vectors `[N, E]` from (user, liked item) pairs; zeros for an item nobody liked."""
    if len(user_P) == 0:
        return np.zeros((num_items, width), np.float32)
    num_users = int(user_P.max()) + 1
    pairs_2P = torch.from_numpy(np.unique(np.stack([user_P, item_P]), axis=1))
    likes = torch.sparse_coo_tensor(
        pairs_2P, torch.ones(pairs_2P.shape[1]), (num_users, num_items), check_invariants=True
    )
    together_NN = torch.sparse.mm(likes.t(), likes.to_dense())
    together_NN.fill_diagonal_(0.0)
    count_N = together_NN.sum(dim=1)
    context_N = count_N**SMOOTHING
    context_N = context_N / context_N.sum().clamp(min=1e-12)
    expected_NN = count_N[:, None] * context_N[None, :]
    ppmi_NN = torch.log((together_NN / expected_NN.clamp(min=1e-12)).clamp(min=1.0))
    torch.manual_seed(seed)
    width_here = min(width, num_items)
    u_NE, s_E, _ = torch.svd_lowrank(ppmi_NN, q=min(width_here + 16, num_items), niter=6)
    vector_NE = torch.zeros(num_items, width)
    vector_NE[:, :width_here] = (u_NE * s_E.sqrt())[:, :width_here]
    return torch.nn.functional.normalize(vector_NE, dim=1).numpy()


def category_vectors(items: Sequence[Item], attributes: Sequence[Attribute], width: int) -> NDArray[np.float32]:
    """Unit vectors `[N, E]`: the main directions of the items' categories; zeros for an item without any."""
    sets = [
        [f"{a.name}={v}" for a in attributes if a.kind is AttributeKind.CATEGORIES for v in item.get(a.name) or ()]
        for item in items
    ]
    column = {name: k for k, name in enumerate(sorted({name for names in sets for name in names}))}
    has_NK = torch.zeros(len(items), len(column))
    for n, names in enumerate(sets):
        has_NK[n, [column[name] for name in names]] = 1.0
    vector_NE = torch.zeros(len(items), width)
    if column:
        _, _, axes_KK = torch.linalg.svd(torch.nn.functional.normalize(has_NK, dim=1), full_matrices=False)
        kept = min(width, len(axes_KK))
        vector_NE[:, :kept] = has_NK @ axes_KK[:kept].T
    return torch.nn.functional.normalize(vector_NE, dim=1).numpy()


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
