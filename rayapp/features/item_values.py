"""Items by the hash of their ids, with the values of their categories, as statistics read them.

Shapes: I items, N wanted items, V values of all of either, end to end.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rayapp.contracts.config import Domain
from rayapp.contracts.hashing import hash64_column, places_of
from rayapp.contracts.schema import AttributeKind
from rayapp.features.requests import offsets, ragged_places
from rayapp.features.statistics import Hashes, Ints


@dataclass(frozen=True, slots=True)
class ItemValues:
    """Sorted by hash; the values of item i are `value_V[offset_I[i] : offset_I[i + 1]]`."""

    hash_I: Hashes
    offset_I: Ints
    """I + 1."""
    value_V: Hashes
    """Hashes of attribute and value."""

    @staticmethod
    def nothing() -> "ItemValues":
        return ItemValues(np.zeros(0, np.uint64), np.zeros(1, np.int64), np.zeros(0, np.uint64))

    @staticmethod
    def of(items: pa.Table, domain: Domain) -> "ItemValues":
        """`items`: `item_id`, each once, and the domain's attributes."""
        hash_I = hash64_column(items["item_id"])
        row, value = [np.zeros(0, np.int64)], [np.zeros(0, np.uint64)]
        for attribute in domain.attributes:
            if attribute.kind is AttributeKind.CATEGORIES:
                values = items[attribute.name].combine_chunks()
                row.append(pc.list_parent_indices(values).to_numpy())
                texts = pc.binary_join_element_wise(attribute.name, pc.list_flatten(values).cast(pa.string()), "/")
                value.append(hash64_column(texts))
        row_V, value_V = np.concatenate(row), np.concatenate(value)
        by_item, order = np.argsort(row_V, kind="stable"), np.argsort(hash_I)
        offset_I = offsets(np.bincount(row_V, minlength=len(hash_I)))
        sorted_V = value_V[by_item][ragged_places(offset_I, order)]
        return ItemValues(hash_I[order], offsets(np.diff(offset_I)[order]), sorted_V)

    def updated(self, newer: "ItemValues") -> "ItemValues":
        """With `newer` in the place of, or besides, what is here."""
        old_O = np.flatnonzero(~np.isin(self.hash_I, newer.hash_I))
        hash_I = np.concatenate([self.hash_I[old_O], newer.hash_I])
        size_I = np.concatenate([np.diff(self.offset_I)[old_O], np.diff(newer.offset_I)])
        value_V = np.concatenate([self.value_V[ragged_places(self.offset_I, old_O)], newer.value_V])
        order, offset_I = np.argsort(hash_I), offsets(size_I)
        return ItemValues(hash_I[order], offsets(size_I[order]), value_V[ragged_places(offset_I, order)])

    def rows_of(self, hash_N: Hashes) -> tuple[Ints, NDArray[np.bool_]]:
        """Row and whether the item is known, of hashes in any shape."""
        return places_of(self.hash_I, hash_N)

    def of_items(self, hash_N: Hashes) -> tuple[Ints, Hashes]:
        """`(number of the wanted item, value)` of each value that wanted items have; the numbers ascend."""
        row_N, known_N = self.rows_of(hash_N)
        size_N = np.where(known_N, np.diff(self.offset_I)[row_N], 0) if len(self.hash_I) else np.zeros(len(hash_N), int)
        return np.repeat(np.arange(len(hash_N)), size_N), self.value_V[ragged_places(self.offset_I, row_N[known_N])]


def mean_by_item(value_VF: NDArray[np.float64], number_V: Ints, size: int) -> NDArray[np.float64]:
    """`[N, F]`: means over the values of each of `size` items, whose numbers ascend; zeros for one without any."""
    count_N = np.bincount(number_V, minlength=size)
    mean_NF = np.zeros((size, value_VF.shape[1]))
    if len(number_V):
        some_N = count_N > 0
        first_N = (np.cumsum(count_N) - count_N)[some_N]
        mean_NF[some_N] = np.add.reduceat(value_VF, first_N, axis=0) / count_N[some_N, None]
    return mean_NF
