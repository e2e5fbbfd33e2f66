"""Attributes as numbers: category ids and standardised numbers, the same for items, users and the request's context.

Shapes: N rows, W category places of a row (each attribute has its own, padded), M numeric attributes.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rayapp.contracts.schema import Attribute, AttributeKind

ABSENT: Final = 0
"""Category id of "no category"; also the item table's row for an item it does not hold."""
UNKNOWN_CATEGORY: Final = 1
MAX_CATEGORIES: Final = 8
"""Categories of one attribute that a row may have; further ones are left out."""
MIN_ROWS: Final = 5
"""A category of fewer rows is UNKNOWN: nothing can be learned of it, and UNKNOWN needs rows to learn from."""


@dataclass(frozen=True, slots=True)
class AttributeEncoder:
    """Categories, means and deviations as they were when a model was trained; stored in its `schema.json`."""

    categories: dict[str, list[str]]
    """Attribute -> categories; their ids follow one another over all attributes, from 2 on."""
    widths: dict[str, int]
    """Attribute -> places in a row: as many as the row with the most categories has."""
    mean: dict[str, float]
    std: dict[str, float]

    @property
    def num_categories(self) -> int:
        return UNKNOWN_CATEGORY + 1 + sum(len(names) for names in self.categories.values())

    @property
    def num_numbers(self) -> int:
        return len(self.mean)

    @staticmethod
    def fit(table: pa.Table, attributes: tuple[Attribute, ...]) -> "AttributeEncoder":
        """Learns the categories in use and the numbers' mean and deviation."""
        encoder = AttributeEncoder({}, {}, {}, {})
        for attribute in attributes:
            column = table[attribute.name]
            if attribute.kind is AttributeKind.CATEGORIES:
                counts = pc.value_counts(pc.list_flatten(column).combine_chunks()).to_pylist()
                common = [c["values"] for c in counts if c["values"] is not None and c["counts"] >= MIN_ROWS]
                longest = pc.max(pc.list_value_length(column)).as_py() or 0
                encoder.categories[attribute.name] = sorted(common)
                encoder.widths[attribute.name] = int(min(max(longest, 1), MAX_CATEGORIES))
            elif attribute.kind is AttributeKind.NUMBER:
                encoder.mean[attribute.name] = float(pc.mean(column).as_py() or 0.0)
                encoder.std[attribute.name] = float(pc.stddev(column).as_py() or 1.0)
        return encoder

    def encode(self, table: pa.Table) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """`(category_NW, number_NM)` of a table that has the attributes' columns; a missing number is 0, the mean."""
        category_NW = np.full((table.num_rows, sum(self.widths.values())), ABSENT, np.int32)
        next_id, at = UNKNOWN_CATEGORY + 1, 0
        for name, known in self.categories.items():
            width = self.widths[name]
            lists = table[name].combine_chunks()
            size_N = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
            place = pc.index_in(pc.list_flatten(lists), value_set=pa.array(known, pa.string()))
            ids = np.asarray(pc.fill_null(pc.add(place, next_id), UNKNOWN_CATEGORY))
            row_V = np.repeat(np.arange(len(size_N)), size_N)
            column_V = np.arange(len(row_V)) - np.repeat(np.cumsum(size_N) - size_N, size_N)
            keep = column_V < width
            category_NW[row_V[keep], at + column_V[keep]] = ids[keep]
            next_id, at = next_id + len(known), at + width
        number_NM = np.zeros((table.num_rows, self.num_numbers), np.float32)
        for m, name in enumerate(self.mean):
            value_N = pc.cast(table[name], pa.float64()).to_numpy()
            standard_N = np.clip((value_N - self.mean[name]) / self.std[name], -5, 5)
            number_NM[:, m] = np.nan_to_num(standard_N)
        return category_NW, number_NM


@dataclass(frozen=True, slots=True)
class Encoders:
    """How a model reads the attributes of items, users and requests."""

    item: AttributeEncoder
    user: AttributeEncoder
    context: AttributeEncoder
