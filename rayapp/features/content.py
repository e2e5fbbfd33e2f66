"""The content of items as hashed tokens, which the item tower reads."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rayapp.contracts.hashing import hash64
from rayapp.contracts.schema import Attribute, AttributeKind

MAX_TEXT_TOKENS = 32
WORD = re.compile(r"\w+")

Item = Mapping[str, Any]
"""One item: `item_id`, `created_at_ms`, `available` and its attributes, as in a row of `schema.item_schema`."""


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
