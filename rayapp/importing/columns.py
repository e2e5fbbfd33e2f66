"""A raw column of a file -> a typed one, with a reason for every value that can't be: the checks of the import.

Shapes: N rows of a chunk.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rayapp.contracts.schema import MAX_ID_BYTES, id_problem
from rayapp.importing.domains.layout import NULL_VALUES
from rayapp.importing.list_texts import list_of
from rayapp.importing.plain_types import plain, said, whole_decimals

EXACT_WHOLE: Final = {16: 2.0**11, 32: 2.0**24, 64: 2.0**53}
"""Bits of a float -> whole numbers beyond this are not all told apart."""
WHOLE_FLOAT: Final = r"^-?[0-9]+\.0+$"
ROUNDED: Final = r"^-?[0-9](\.[0-9]+)?[eE]\+[0-9]+$"


SEVERAL: Final = r"""^(\[.*[,'"].*\]|\[[-0-9.]*\]|\{\s*["'].*:.*\})$"""
"""A list or an object as a program writes it."""
LIST_TEXT: Final = r"^\s*\["
FLAG_WORDS: Final = {"1": ("true", "t", "yes", "y"), "0": ("false", "f", "no", "n")}
NUMERIC: Final = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_null)


class RowCheck:
    """Which rows of a chunk are good, and the first reason against each that is not."""

    def __init__(self, num_rows: int, null_values: Sequence[str] = NULL_VALUES) -> None:
        self.good_N: NDArray[np.bool_] = np.ones(num_rows, bool)
        self.null_values = null_values
        """Words that a file without types has for what is missing."""
        self.rejected: list[tuple[int, str, str, str]] = []
        """(row of the chunk, field, reason, the value as text)"""
        self.notes: Counter[str] = Counter()
        """What was read otherwise than it is written, or left empty -> how many values."""
        self.examples: dict[str, tuple[int, str]] = {}
        """Note -> (row of the chunk, the value as text) of one of them."""

    def fail(self, bad_N: NDArray[np.bool_], field: str, reason: str, raw: pa.ChunkedArray) -> None:
        """Rejects the rows of `bad_N` that are still good."""
        bad_N = bad_N & self.good_N
        if not bad_N.any():
            return
        for row in np.flatnonzero(bad_N):
            self.rejected.append((int(row), field, reason, shown(raw[int(row)])))
        self.good_N &= ~bad_N

    def inside(self, num_values: int) -> "RowCheck":
        """A check of other values, which costs no row of this one."""
        return RowCheck(num_values, self.null_values)

    def lose(self, inside: "RowCheck", rows: NDArray[np.int64] | None = None) -> None:
        """Values that `inside` rejected are left empty and counted, and their rows stay. `rows` of this check, where
        those of `inside` are others."""
        for place, field, reason, value in inside.rejected:
            row = place if rows is None else int(rows[place])
            if self.good_N[row]:
                self.note(f"{field} {reason}; left empty", row, value)
        self.notes += inside.notes

    def note(self, said: str, row: int, value: str) -> None:
        self.notes[said] += 1
        self.examples.setdefault(said, (row, value))


def shown(value: pa.Scalar) -> str:
    """A value for people: at most 80 characters, nothing unprintable."""
    try:
        found = value.as_py()
    except UnicodeDecodeError:
        found = value.cast(pa.binary()).as_py()
    except (ValueError, OverflowError):  # a time beyond Python's
        found = value.cast(pa.int64()).as_py() if pa.types.is_temporal(value.type) else "a value that can't be shown"
    text = found.decode(errors="backslashreplace") if isinstance(found, bytes) else "" if found is None else str(found)
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:80])


def ids(
    raw: pa.ChunkedArray | pa.Array, field: str, check: RowCheck, *, untyped: bool | None = None
) -> pa.DictionaryArray:
    """Ids, dictionary-encoded: each distinct value is looked at once.

    Whole numbers become their digits, so an export with integer ids and one with text agree. `untyped`: the values are
    those of a CSV file, as `id_texts` reads them; unless told, bytes are.
    """
    coded = id_texts(raw, field, check, untyped=untyped).dictionary_encode()
    index_N = pc.fill_null(coded.indices, -1).to_numpy(zero_copy_only=False)
    check.fail(index_N < 0, field, "is missing", raw)
    _check_ids(coded.dictionary, index_N, field, raw, check)
    return coded


def unique_ids(raw: pa.ChunkedArray, field: str, check: RowCheck, *, may_miss: bool = False) -> pa.Array:
    """Ids of which most are distinct: event ids and request ids, as text; null where one `may_miss`."""
    text = id_texts(raw, field, check)
    if not may_miss:
        check.fail(masked(pc.is_null(text)), field, "is missing", raw)
    _check_ids(text, np.arange(len(text)), field, raw, check)
    return text


def id_texts(raw: pa.ChunkedArray | pa.Array, field: str, check: RowCheck, *, untyped: bool | None = None) -> pa.Array:
    """Text of ids. A CSV file has no types, so there a word of the check's `null_values` is a missing id, and `12.0`,
    which is how pandas writes the number 12 once a value of the column is missing, is 12; digits lost to `1.2e+08` are
    refused."""
    text = texts(raw, field, check)
    if not (is_untyped(raw) if untyped is None else untyped):
        return text
    text = _without_null_words(text, check)
    if pc.any(pc.match_substring(text, ".")).as_py():
        float_N = pc.fill_null(pc.match_substring_regex(text, WHOLE_FLOAT), False)
        if count := pc.sum(float_N).as_py():
            check.notes[f"{field} written like 12.0, read as 12"] += count
            text = pc.if_else(float_N, pc.replace_substring_regex(text, r"\.0+$", ""), text)
    if pc.any(pc.match_substring(text, "+")).as_py():
        rounded_N = masked(pc.fill_null(pc.match_substring_regex(text, ROUNDED), False))
        check.fail(rounded_N, field, "is a rounded number: write ids as whole numbers or text", raw)
    return text


def _without_null_words(text: pa.Array, check: RowCheck) -> pa.Array:
    return pc.if_else(pc.is_in(text, value_set=pa.array(check.null_values, pa.string())), None, text)


def _check_ids(
    values: pa.Array, index_N: NDArray[Any], field: str, raw: pa.ChunkedArray | pa.Array, check: RowCheck
) -> None:
    size = pc.fill_null(pc.binary_length(values), 1).to_numpy(zero_copy_only=False)
    suspect = (size == 0) | (size > MAX_ID_BYTES)
    if _may_hold_controls(values):  # \x{..} because RE2 reads UTF-8
        control = pc.match_substring_regex(values, "[\\x{00}-\\x{1f}\\x{7f}-\\x{9f}]")
        suspect |= masked(pc.fill_null(control, False))
    suspect |= (
        masked(pc.fill_null(pc.match_substring_regex(values, SEVERAL), False)) if _may_be_several(values) else False
    )
    if not suspect.any():
        return
    problems: dict[str, list[int]] = {}
    for place in np.flatnonzero(suspect):
        value = values[int(place)].as_py()
        problem = id_problem(value)
        if problem and len(value.encode()) > MAX_ID_BYTES:
            problem = f"is longer than {MAX_ID_BYTES} bytes"  # one reason for all lengths
        elif problem is None and re.match(SEVERAL, value):
            problem = "is a list or an object written as text, and not one id"
        if problem:
            problems.setdefault(problem, []).append(int(place))
    for problem, places in problems.items():
        check.fail(np.isin(index_N, places), field, problem, raw)


def _may_be_several(values: pa.Array) -> bool:
    first = pc.utf8_slice_codeunits(values, 0, 1)
    return bool(pc.any(pc.is_in(first, value_set=pa.array(["[", "{"]))).as_py())


def _may_hold_controls(values: pa.Array) -> bool:
    """A look at the bytes alone: a control character, or the byte that the controls from U+0080 begin with."""
    data = values.buffers()[2]
    if data is None:
        return False
    bytes_N = np.frombuffer(data, np.uint8)
    return bool((bytes_N < 0x20).any() or (bytes_N == 0x7F).any() or (bytes_N == 0xC2).any())


def texts(raw: pa.ChunkedArray | pa.Array, field: str, check: RowCheck) -> pa.Array:
    """Text of text, bytes, UUIDs and whole numbers; null where a value is missing or is none of these."""
    column = plain(raw)
    kind = column.type
    if pa.types.is_string(kind) or _is_binary(kind):
        return _utf8(column, field, raw, check)
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind):
        return column.cast(pa.string())
    if pa.types.is_decimal(kind):
        text, fraction = whole_decimals(column)
        check.fail(masked(fraction), field, "is a fraction", raw)
        return text
    if pa.types.is_floating(kind):  # what pandas makes of whole numbers when one is missing
        bits = kind.bit_width
        column = column.cast(pa.float64())
        number_N = pc.fill_null(column, np.nan).to_numpy(zero_copy_only=False).astype(np.float64)
        with np.errstate(invalid="ignore"):
            odd_N = ~np.isnan(number_N) & ((number_N != np.floor(number_N)) | (np.abs(number_N) > EXACT_WHOLE[bits]))
        narrow = "" if bits == 64 else f" in float{bits}"
        check.fail(odd_N, field, f"is a fraction, or too large to be exact{narrow}", raw)
        whole_N = np.where(odd_N | np.isnan(number_N), 0, number_N).astype(np.int64)
        return pa.array(whole_N, mask=odd_N | np.isnan(number_N)).cast(pa.string())
    check.fail(masked(pc.is_valid(column)), field, f"is {said(kind)}, not text or a whole number", raw)
    return pa.nulls(len(column), pa.string())


def is_untyped(raw: pa.ChunkedArray | pa.Array) -> bool:
    """Whether the values come from a file that has no types: a CSV's columns are read as bytes."""
    return _is_binary(raw.type) or pa.types.is_binary_view(raw.type)


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _utf8(column: pa.Array, field: str, raw: pa.ChunkedArray, check: RowCheck) -> pa.Array:
    try:
        if _is_binary(column.type):
            return column.cast(pa.string())
        column.validate(full=True)
        return column.cast(pa.string())
    except pa.ArrowInvalid:
        values: list[str | None] = []
        bad_N = np.zeros(len(column), bool)
        for row, value in enumerate(column.cast(pa.binary()).to_pylist()):
            try:
                values.append(None if value is None else value.decode())
            except UnicodeDecodeError:
                bad_N[row] = True
                values.append(None)
        check.fail(bad_N, field, "is not valid UTF-8", raw)
        return pa.array(values, pa.string())


def numbers(
    raw: pa.ChunkedArray | pa.Array, field: str, check: RowCheck
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """`(value_N, missing_N)`; text is read as a number. 0 where there is none; not finite is rejected."""
    column = plain(raw)
    kind = column.type
    if pa.types.is_decimal(kind):
        column = column.cast(pa.float64())
    elif not any(holds(kind) for holds in NUMERIC):
        text = texts(column, field, check)
        missing_N = masked(pc.is_null(text))
        parsed = pd.to_numeric(pd.Series(text.to_numpy(zero_copy_only=False), dtype=object), errors="coerce")
        value_N = np.where(missing_N, 0.0, parsed.to_numpy(np.float64))
        check.fail(np.isnan(value_N), field, "is not a number", raw)
        check.fail(~np.isfinite(value_N), field, "is not a finite number", raw)
        return np.where(np.isfinite(value_N), value_N, 0.0), missing_N
    missing_N = masked(pc.is_null(column))
    value_N = pc.fill_null(column.cast(pa.float64(), safe=False), 0.0).to_numpy(zero_copy_only=False).astype(np.float64)
    check.fail(~np.isfinite(value_N), field, "is not a finite number", raw)
    return np.where(np.isfinite(value_N), value_N, 0.0), missing_N


def flags(raw: pa.ChunkedArray | pa.Array, field: str, check: RowCheck) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """`(set_N, missing_N)` of a column of 0/1, or of true and false in words; missing is not set."""
    column = plain(raw)
    if pa.types.is_string(column.type) or _is_binary(column.type):
        text = _utf8(column, field, raw, check)
        text = _without_null_words(text, check) if is_untyped(raw) else text
        word = pc.utf8_lower(pc.utf8_trim_whitespace(text))
        for number, words in FLAG_WORDS.items():
            text = pc.if_else(pc.fill_null(pc.is_in(word, value_set=pa.array(words)), False), number, text)
        missing_N = masked(pc.is_null(text))
        number_N = pd.to_numeric(pd.Series(text.to_numpy(zero_copy_only=False), dtype=object), errors="coerce")
        value_N = np.where(missing_N, 0.0, number_N.to_numpy(np.float64))
    else:
        if pa.types.is_floating(column.type):  # NaN is how pandas writes a missing value
            column = pc.if_else(pc.is_nan(column), None, column)
        value_N, missing_N = numbers(column, field, check)
    check.fail((value_N != 0) & (value_N != 1), field, "is neither 0 nor 1", raw)
    return np.asarray(value_N == 1), missing_N


def lists(
    raw: pa.ChunkedArray, separator: str | None, field: str, check: RowCheck, *, strict: bool = False
) -> tuple[pa.Array, NDArray[np.int64]]:
    """`(values laid end to end as they are, N + 1 offsets)` of lists, of text split at `separator`, or of scalars.

    Text that is a list as JSON or Python writes it, `["a", "b"]`, is that list; `strict` rejects text that only begins
    like one.
    """
    column = plain(raw)
    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        size_N = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
        return plain(pc.list_flatten(column)), np.r_[0, np.cumsum(size_N)].astype(np.int64)
    text = texts(column, field, check)
    if pc.any(pc.match_substring_regex(text, LIST_TEXT)).as_py():
        return _written_lists(text, separator, field, check, strict=strict)
    if separator is None:
        offsets = np.r_[0, np.cumsum(masked(pc.is_valid(text)))]
        return text.drop_null(), offsets.astype(np.int64)
    split = pc.split_pattern(text, separator)
    size_N = pc.fill_null(pc.list_value_length(split), 0).to_numpy(zero_copy_only=False)
    return pc.utf8_trim_whitespace(pc.list_flatten(split)), np.r_[0, np.cumsum(size_N)].astype(np.int64)


def _written_lists(
    text: pa.Array, separator: str | None, field: str, check: RowCheck, *, strict: bool
) -> tuple[pa.Array, NDArray[np.int64]]:
    """As `lists`, of text of which some values are lists as a program writes them."""
    found: list[list[str | None]] = []
    odd_N = np.zeros(len(text), bool)
    for row, value in enumerate(text.to_pylist()):
        listed = list_of(value) if value is not None else []
        if listed is None:
            odd_N[row] = strict and value.lstrip().startswith("[")
            listed = [v.strip() for v in value.split(separator)] if separator else [value]
        found.append([] if odd_N[row] else listed)
    check.fail(odd_N, field, "begins like a list and can't be read as one", text)
    return pa.array([v for some in found for v in some], pa.string()), np.r_[0, np.cumsum([len(f) for f in found])]


def masked(flags_N: pa.ChunkedArray | pa.Array) -> NDArray[np.bool_]:
    """An Arrow column of true and false without nulls."""
    if isinstance(flags_N, pa.ChunkedArray):
        flags_N = flags_N.combine_chunks()
    values: NDArray[np.bool_] = flags_N.to_numpy(zero_copy_only=False).astype(bool)
    return values
