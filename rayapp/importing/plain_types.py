"""Columns of whatever type a file has -> the few types that the import's checks know.

Dictionaries, views, run-end encodings and extensions are other ways to hold the same values; what a type is called in
a message stands here too.
"""

import uuid
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

NAMES: Final = (
    (pa.types.is_struct, "an object"),
    (pa.types.is_map, "an object"),
    (pa.types.is_list, "a list"),
    (pa.types.is_large_list, "a list"),
    (pa.types.is_fixed_size_list, "a list"),
    (pa.types.is_time, "a time of day"),
    (pa.types.is_duration, "a duration"),
    (pa.types.is_temporal, "a time"),
    (pa.types.is_boolean, "true or false"),
    (pa.types.is_decimal, "a decimal number"),
    (pa.types.is_floating, "a number"),
    (pa.types.is_integer, "a number"),
)
MOST_DIGITS: Final = 76
"""Of a decimal."""


def said(kind: pa.DataType) -> str:
    """A type, as a person calls it."""
    return next((name for holds, name in NAMES if holds(kind)), "of a type that this import does not read")


def plain(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """The same values in one array that is no dictionary, view, run-end encoding or extension; a UUID is its text."""
    values = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    kind = values.type
    if pa.types.is_dictionary(kind):
        return plain(values.dictionary_decode())
    if pa.types.is_run_end_encoded(kind):
        return plain(pc.run_end_decode(values))
    if isinstance(kind, pa.BaseExtensionType):
        if kind.extension_name == "arrow.uuid":
            texts = [None if b is None else str(uuid.UUID(bytes=b)) for b in values.storage.to_pylist()]
            return pa.array(texts, pa.string())
        return plain(values.storage)
    if pa.types.is_string_view(kind) or pa.types.is_large_string(kind):
        return values.cast(pa.string())
    if pa.types.is_binary_view(kind):
        return values.cast(pa.binary())
    if pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
        return pa.array(values.to_pylist(), pa.large_list(kind.value_type))
    return values


def whole_decimals(values: pa.Array) -> tuple[pa.Array, pa.Array]:
    """`(text of the whole decimals, null elsewhere; whether a value is a fraction)`."""
    scale = values.type.scale
    if scale <= 0:
        return values.cast(pa.decimal256(MOST_DIGITS, 0)).cast(pa.string()), pa.array([False] * len(values))
    text = values.cast(pa.string())
    whole = pc.match_substring_regex(text, r"^-?[0-9]+(\.0*)?$")
    # A decimal of many zeros is written with an exponent: 0E-20 is nothing.
    zero = pc.match_substring_regex(text, r"^-?0E-[0-9]+$")
    digits = pc.if_else(zero, "0", pc.replace_substring_regex(text, r"\.0*$", ""))
    return pc.if_else(pc.or_(whole, zero), digits, None), pc.invert(pc.fill_null(pc.or_(whole, zero), True))
