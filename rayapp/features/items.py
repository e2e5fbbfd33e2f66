"""Items as numbers: content tokens for the tower, category ids and standardised numbers for the ranker.

Shapes: N items, T tokens (ragged, with offsets), G categories per item (padded), M numeric attributes.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayapp.hashing import hash64
from rayapp.schema import Attribute, AttributeKind

ABSENT = 0
"""Category id of "no category"; also the item table's row for an item it does not hold."""
UNKNOWN_CATEGORY = 1
MAX_CATEGORIES = 8
MAX_TEXT_TOKENS = 32
WORD = re.compile(r"\w+")

Item = Mapping[str, Any]
"""One item: `item_id`, `created_at_ms` and its attributes, as in a row of `schema.item_schema`."""


def content_tokens(item: Item, attributes: Sequence[Attribute], num_tokens: int) -> list[int]:
    """Hashed tokens of an item's content, for the linear tower: categories, words and number ranges.

    Hashing keeps the tower's size fixed and lets a category never seen before have a token of its own.
    """
    tokens = []
    for attribute in attributes:
        value = item.get(attribute.name)
        if value is None:
            continue
        if attribute.kind is AttributeKind.CATEGORIES:
            words = [str(v) for v in value]
        elif attribute.kind is AttributeKind.TEXT:
            words = WORD.findall(str(value).lower())[:MAX_TEXT_TOKENS]
        else:
            words = [f"{value:.2g}", f"{value:.3g}"]  # coarse and finer ranges of a number
        tokens += [hash64(f"{attribute.name}={word}") % num_tokens for word in words]
    return tokens


@dataclass(frozen=True, slots=True)
class ItemEncoder:
    """The ranker's own item features, fixed when the model is trained and stored in its `schema.json`."""

    attributes: tuple[Attribute, ...]
    categories: dict[str, dict[str, int]]
    """Attribute -> category -> id; ids are unique over all attributes."""
    mean: dict[str, float]
    std: dict[str, float]

    @property
    def num_categories(self) -> int:
        return 2 + sum(len(ids) for ids in self.categories.values())

    @property
    def num_numbers(self) -> int:
        return len(self.mean)

    @staticmethod
    def fit(items: Sequence[Item], attributes: Sequence[Attribute]) -> "ItemEncoder":
        """Learns the categories in use and the numbers' mean and deviation."""
        categories: dict[str, dict[str, int]] = {}
        mean, std = {}, {}
        next_id = UNKNOWN_CATEGORY + 1
        for attribute in attributes:
            present = [item[attribute.name] for item in items if item.get(attribute.name) is not None]
            if attribute.kind is AttributeKind.CATEGORIES:
                names = sorted({name for value in present for name in value})
                categories[attribute.name] = {name: next_id + i for i, name in enumerate(names)}
                next_id += len(names)
            elif attribute.kind is AttributeKind.NUMBER:
                mean[attribute.name] = float(np.mean(present)) if present else 0.0
                std[attribute.name] = float(np.std(present)) or 1.0 if present else 1.0
        return ItemEncoder(tuple(attributes), categories, mean, std)

    def encode(self, items: Sequence[Item]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """`(category_NG, number_NM)`; a missing number is 0, the mean."""
        category_NG = np.full((len(items), MAX_CATEGORIES), ABSENT, np.int64)
        number_NM = np.zeros((len(items), self.num_numbers), np.float32)
        for n, item in enumerate(items):
            ids = [
                table.get(name, UNKNOWN_CATEGORY)
                for attribute, table in self.categories.items()
                for name in item.get(attribute) or ()
            ][:MAX_CATEGORIES]
            category_NG[n, : len(ids)] = ids
            for m, name in enumerate(self.mean):
                value = item.get(name)
                if value is not None:
                    number_NM[n, m] = np.clip((value - self.mean[name]) / self.std[name], -5, 5)
        return category_NG, number_NM

    def to_json(self) -> dict[str, Any]:
        return {
            "attributes": [{"name": a.name, "kind": a.kind.value} for a in self.attributes],
            "categories": self.categories,
            "mean": self.mean,
            "std": self.std,
        }

    @staticmethod
    def from_json(values: dict[str, Any]) -> "ItemEncoder":
        attributes = tuple(Attribute(a["name"], AttributeKind(a["kind"])) for a in values["attributes"])
        return ItemEncoder(attributes, values["categories"], values["mean"], values["std"])
