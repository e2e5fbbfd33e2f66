"""Co-visitation: which items people act on soon before or after an item, as a table that a model reads.

Shapes: N item table rows (row 0 is "absent"), K neighbours of each, B requests, L history rows (newest first), C
candidates of all requests, P pairs of a request and one of its last items.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rayapp.contracts.hashing import places_of
from rayapp.features.attributes import ABSENT

Ints = NDArray[np.int64]
LAST_ITEMS: Final = 5
"""So many different items that a user acted on last have their neighbours added up."""


@dataclass(frozen=True, slots=True)
class Covisits:
    """The strongest neighbours of each item that had any when the item table was made."""

    row_NK: NDArray[np.int32]
    """Rows of the table; ABSENT where there are fewer."""
    weight_NK: NDArray[np.float32]

    def of_last_items(self, row_L: Ints) -> tuple[Ints, NDArray[np.float64]]:
        """`(rows, ascending; their weights)`: what the last items of one user have for neighbours. `row_L`: rows of
        what the user acted on, newest first; ABSENT counts for nothing."""
        known_L = row_L[(row_L != ABSENT) & (row_L < len(self.row_NK))]
        last = known_L[np.sort(np.unique(known_L, return_index=True)[1])[:LAST_ITEMS]]
        near, weight = self.row_NK[last].ravel(), self.weight_NK[last].ravel()
        rows, number = np.unique(near[near != ABSENT], return_inverse=True)
        added = np.bincount(number, weights=weight[near != ABSENT], minlength=len(rows))
        return rows.astype(np.int64), added.astype(np.float64)

    def numbers(self, row_BL: Ints, size_B: Ints, candidate_C: Ints) -> NDArray[np.float32]:
        """`[C, 1]`: the logarithm of each candidate's weight. `size_B`: candidates of each request, end to end."""
        weight_C, at = np.zeros(len(candidate_C)), 0
        for row_L, size in zip(row_BL, size_B.tolist(), strict=True):
            rows, weights = self.of_last_items(row_L)
            place, known = places_of(rows, candidate_C[at : at + size])
            if len(rows):
                weight_C[at : at + size] = np.where(known, weights[place], 0.0)
            at += size
        return np.log1p(weight_C)[:, None].astype(np.float32)
