"""Scores one user's candidates with a trained ranker, in the same arithmetic as training.

Shapes: L history rows (newest first), C candidates, H heads, N item table rows, E vector width, G categories per
item, M numeric features.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rayapp.features.items import ABSENT, ItemEncoder
from rayapp.features.sequence import known_to
from rayapp.model.item_table import ItemTable
from rayapp.model.ranker import Batch, Ranker

BLOCK = 64
"""Candidates scored at a time: a block's activations stay in the cache."""


@dataclass(frozen=True, slots=True)
class ItemArrays:
    """An item table as a ranker reads it; row 0, "absent", is all zeros."""

    vector_NE: Tensor
    category_NG: Tensor
    number_NM: Tensor

    @staticmethod
    def of(table: ItemTable, encoder: ItemEncoder) -> "ItemArrays":
        category_NG, number_NM = encoder.encode([{}, *table.items])
        return ItemArrays(
            torch.from_numpy(table.vectors_NE), torch.from_numpy(category_NG), torch.from_numpy(number_NM)
        )

    def to(self, device: torch.device) -> "ItemArrays":
        return ItemArrays(self.vector_NE.to(device), self.category_NG.to(device), self.number_NM.to(device))

    def batch(self, action_BL: Tensor, item_row_BL: Tensor, candidate_row_BC: Tensor) -> Batch:
        """Looks everything up by row. The history is cut to the longest one present: padding costs nothing."""
        longest = max(int((action_BL != 0).sum(dim=1).max()), 1)
        return Batch(
            action_BL[:, :longest],
            self.vector_NE[item_row_BL[:, :longest]],
            self.vector_NE[candidate_row_BC],
            self.category_NG[candidate_row_BC],
            self.number_NM[candidate_row_BC],
        )


class Scorer:
    """One loaded model over one item table. A score depends on the user and that candidate alone."""

    def __init__(self, ranker: Ranker, table: ItemTable, encoder: ItemEncoder, vocabulary_size: int) -> None:
        self.table = table
        self._ranker = ranker.eval()
        self._encoder = encoder
        self._vocabulary_size = vocabulary_size
        self._items = ItemArrays.of(table, encoder)

    def with_table(self, table: ItemTable) -> "Scorer":
        """The same weights over an extended item table."""
        return Scorer(self._ranker, table, self._encoder, self._vocabulary_size)

    def score(
        self, action_L: NDArray[np.uint8], item_hash_L: NDArray[np.uint64], candidate_hash_C: NDArray[np.uint64]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """`(probabilities [C, H], known [C])`; a candidate the table does not hold is scored cold and not known."""
        row_C = self.table.rows_of(candidate_hash_C)
        action_1L = torch.from_numpy(known_to(self._vocabulary_size, action_L)[None].astype(np.int64))
        row_1L = torch.from_numpy(self.table.rows_of(item_hash_L)[None])
        with torch.inference_mode():
            logits = [
                self._ranker(self._items.batch(action_1L, row_1L, torch.from_numpy(row_C[None, at : at + BLOCK])))[0]
                for at in range(0, len(row_C), BLOCK)
            ]
            probabilities = torch.sigmoid(torch.cat(logits)).numpy() if logits else np.zeros((0, 0), np.float32)
        return probabilities, row_C != ABSENT
