"""A raw column of a file -> a typed one, with a reason for every value that can't be: the checks of the import.

Shapes: N rows of a chunk.
"""

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rayapp.contracts.schema import MAX_ID_BYTES, id_problem
from rayapp.importing.domains.layout import MS_PER_UNIT, NULL_VALUES, TimeUnit

FUTURE_MS: Final = 5 * 60 * 1000
"""Clocks differ by minutes; an event further in the future is a mistake."""
EXACT_WHOLE: Final = {16: 2.0**11, 32: 2.0**24, 64: 2.0**53}
"""Bits of a float -> whole numbers beyond this are not all told apart."""
WHOLE_FLOAT: Final = r"^-?[0-9]+\.0+$"
ROUNDED: Final = r"^-?[0-9](\.[0-9]+)?[eE]\+[0-9]+$"


class RowCheck:
    """Which rows of a chunk are good, and the first reason against each that is not."""

    def __init__(self, num_rows: int) -> None:
        self.good_N: NDArray[np.bool_] = np.ones(num_rows, bool)
        self.rejected: list[tuple[int, str, str, str]] = []
        """(row of the chunk, field, reason, the value as text)"""
        self.notes: Counter[str] = Counter()
        """What was read otherwise than it is written -> how many values."""

    def fail(self, bad_N: NDArray[np.bool_], field: str, reason: str, raw: pa.ChunkedArray) -> None:
        """Rejects the rows of `bad_N` that are still good."""
        bad_N = bad_N & self.good_N
        if not bad_N.any():
            return
        for row in np.flatnonzero(bad_N):
            self.rejected.append((int(row), field, reason, shown(raw[int(row)])))
        self.good_N &= ~bad_N


def shown(value: pa.Scalar) -> str:
    """A value for people: at most 80 characters, nothing unprintable."""
    try:
        plain = value.as_py()
    except (UnicodeDecodeError, ValueError):  # text that is no UTF-8, a date beyond Python's
        plain = value.cast(pa.binary()).as_py() if pa.types.is_string(value.type) else str(value)
    text = plain.decode(errors="backslashreplace") if isinstance(plain, bytes) else "" if plain is None else str(plain)
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:80])


def ids(
    raw: pa.ChunkedArray,
    field: str,
    check: RowCheck,
    null_values: Sequence[str] = NULL_VALUES,
    *,
    untyped: bool | None = None,
) -> pa.DictionaryArray:
    """Ids, dictionary-encoded: each distinct value is looked at once.

    Whole numbers become their digits, so an export with integer ids and one with text agree. `untyped`: the values are
    those of a CSV file, as `id_texts` reads them; unless told, bytes are.
    """
    coded = id_texts(raw, field, check, null_values, untyped=untyped).dictionary_encode()
    index_N = pc.fill_null(coded.indices, -1).to_numpy(zero_copy_only=False)
    check.fail(index_N < 0, field, "is missing", raw)
    _check_ids(coded.dictionary, index_N, field, raw, check)
    return coded


def unique_ids(
    raw: pa.ChunkedArray,
    field: str,
    check: RowCheck,
    null_values: Sequence[str] = NULL_VALUES,
    *,
    may_miss: bool = False,
) -> pa.Array:
    """Ids of which most are distinct: event ids and request ids, as text; null where one `may_miss`."""
    text = id_texts(raw, field, check, null_values)
    if not may_miss:
        check.fail(_numpy(pc.is_null(text)), field, "is missing", raw)
    _check_ids(text, np.arange(len(text)), field, raw, check)
    return text


def id_texts(
    raw: pa.ChunkedArray, field: str, check: RowCheck, null_values: Sequence[str], *, untyped: bool | None = None
) -> pa.Array:
    """Text of ids. A CSV file has no types, so there a word of `null_values` is a missing id, and `12.0`, which is how
    pandas writes the number 12 once a value of the column is missing, is 12; digits lost to `1.2e+08` are refused."""
    text = texts(raw, field, check)
    if not (is_untyped(raw) if untyped is None else untyped):
        return text
    text = pc.if_else(pc.is_in(text, value_set=pa.array(null_values, pa.string())), None, text)
    if pc.any(pc.match_substring(text, ".")).as_py():
        float_N = pc.fill_null(pc.match_substring_regex(text, WHOLE_FLOAT), False)
        if count := pc.sum(float_N).as_py():
            check.notes[f"{field} written like 12.0, read as 12"] += count
            text = pc.if_else(float_N, pc.replace_substring_regex(text, r"\.0+$", ""), text)
    if pc.any(pc.match_substring(text, "+")).as_py():
        rounded_N = _numpy(pc.fill_null(pc.match_substring_regex(text, ROUNDED), False))
        check.fail(rounded_N, field, "is a rounded number: write ids as whole numbers or text", raw)
    return text


def _check_ids(values: pa.Array, index_N: NDArray[Any], field: str, raw: pa.ChunkedArray, check: RowCheck) -> None:
    size = pc.fill_null(pc.binary_length(values), 1).to_numpy(zero_copy_only=False)
    suspect = (size == 0) | (size > MAX_ID_BYTES)
    if _may_hold_controls(values):  # \x{..} because RE2 reads UTF-8
        control = pc.match_substring_regex(values, "[\\x{00}-\\x{1f}\\x{7f}-\\x{9f}]")
        suspect |= _numpy(pc.fill_null(control, False))
    if not suspect.any():
        return
    problems: dict[str, list[int]] = {}
    for place in np.flatnonzero(suspect):
        value = values[int(place)].as_py()
        problem = id_problem(value)
        if problem and len(value.encode()) > MAX_ID_BYTES:
            problem = f"is longer than {MAX_ID_BYTES} bytes"  # one reason for all lengths
        if problem:
            problems.setdefault(problem, []).append(int(place))
    for problem, places in problems.items():
        check.fail(np.isin(index_N, places), field, problem, raw)


def _may_hold_controls(values: pa.Array) -> bool:
    """A look at the bytes alone: a control character, or the byte that the controls from U+0080 begin with."""
    data = values.buffers()[2]
    if data is None:
        return False
    bytes_N = np.frombuffer(data, np.uint8)
    return bool((bytes_N < 0x20).any() or (bytes_N == 0x7F).any() or (bytes_N == 0xC2).any())


def texts(raw: pa.ChunkedArray, field: str, check: RowCheck) -> pa.Array:
    """Text of text, bytes and whole numbers; null where a value is missing or is none of these."""
    column = raw.combine_chunks() if isinstance(raw, pa.ChunkedArray) else raw
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or _is_binary(kind):
        return _utf8(column, field, raw, check)
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind):
        return column.cast(pa.string())
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
    check.fail(_numpy(pc.is_valid(column)), field, f"is {kind}, not text or a whole number", raw)
    return pa.nulls(len(column), pa.string())


def is_untyped(raw: pa.ChunkedArray | pa.Array) -> bool:
    """Whether the values come from a file that has no types: a CSV's columns are read as bytes."""
    return _is_binary(raw.type)


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


def moments(
    raw: pa.ChunkedArray,
    unit: TimeUnit,
    field: str,
    check: RowCheck,
    *,
    earliest_ms: int,
    now_ms: int,
    may_miss: bool = False,
) -> NDArray[np.int64]:
    """Milliseconds since 1970; 0 in rejected rows and, with `may_miss`, in missing ones.

    Columns of a timestamp type need no unit.
    """
    kind = raw.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        stamp = raw.cast(pa.timestamp("ns" if kind == pa.timestamp("ns") else "us", getattr(kind, "tz", None)))
        value_N = pc.fill_null(stamp.cast(pa.int64()), 0).to_numpy().astype(np.float64)
        ms_N = value_N * (1e-6 if kind == pa.timestamp("ns") else 1e-3)
        missing_N, read_as = _numpy(pc.is_null(raw)), None
    elif unit is TimeUnit.ISO:
        text = texts(raw, field, check)
        stamps = pd.to_datetime(
            pd.Series(text.to_numpy(zero_copy_only=False)), errors="coerce", utc=True, format="ISO8601"
        )
        missing_N, read_as = _numpy(pc.is_null(text)), None
        ms_N = stamps.dt.as_unit("ms").astype("int64").to_numpy().astype(np.float64)
        check.fail(stamps.isna().to_numpy() & ~missing_N, field, "is not an ISO 8601 time", raw)
        ms_N = np.where(stamps.isna().to_numpy(), 0, ms_N)
    else:
        number_N, missing_N = numbers(raw, field, check)
        ms_N, read_as = number_N * MS_PER_UNIT[unit], unit
    if may_miss:
        ms_N = np.where(missing_N, max(earliest_ms, 0), ms_N)
    else:
        check.fail(missing_N, field, "is missing", raw)
    early_N, late_N = ms_N < earliest_ms, ms_N > now_ms + FUTURE_MS
    for bad_N, said in ((early_N, f"is before {_day(earliest_ms)}"), (late_N, "is in the future")):
        for hinted in _other_units(read_as) if bad_N.any() else ():
            as_hinted_N = ms_N / MS_PER_UNIT[read_as or unit] * MS_PER_UNIT[hinted]
            plausible_N = bad_N & (as_hinted_N >= earliest_ms) & (as_hinted_N <= now_ms + FUTURE_MS)
            check.fail(plausible_N, field, f'{said}; unit = "{hinted}" would fit', raw)
        check.fail(bad_N, field, said, raw)
    return np.where(check.good_N, np.round(ms_N), 0).astype(np.int64)


def _other_units(unit: TimeUnit | None) -> list[TimeUnit]:
    return [u for u in MS_PER_UNIT if u is not unit] if unit else []


def _day(ms: int) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(ms / 1000))


def numbers(raw: pa.ChunkedArray, field: str, check: RowCheck) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """`(value_N, missing_N)`; text is read as a number. 0 where there is none; not finite is rejected."""
    kind = raw.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind):
        missing_N = _numpy(pc.is_null(raw))
        filled = pc.fill_null(raw.cast(pa.float64(), safe=False), 0.0)
        value_N = filled.to_numpy().astype(np.float64)
    else:
        text = texts(raw, field, check)
        missing_N = _numpy(pc.is_null(text))
        parsed = pd.to_numeric(pd.Series(text.to_numpy(zero_copy_only=False), dtype=object), errors="coerce")
        value_N = np.where(missing_N, 0.0, parsed.to_numpy(np.float64))
        check.fail(np.isnan(value_N), field, "is not a number", raw)
    check.fail(~np.isfinite(value_N), field, "is not a finite number", raw)
    return np.where(np.isfinite(value_N), value_N, 0.0), missing_N


def flags(raw: pa.ChunkedArray, field: str, check: RowCheck) -> NDArray[np.bool_]:
    """A 0/1 column; missing is 0."""
    value_N, _ = numbers(raw, field, check)
    check.fail((value_N != 0) & (value_N != 1), field, "is neither 0 nor 1", raw)
    return np.asarray(value_N == 1)


def lists(
    raw: pa.ChunkedArray, separator: str | None, field: str, check: RowCheck
) -> tuple[pa.Array, NDArray[np.int64]]:
    """`(values laid end to end as they are, N + 1 offsets)` of lists, of text split at `separator`, or of scalars."""
    column = raw.combine_chunks() if isinstance(raw, pa.ChunkedArray) else raw
    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        size_N = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
        return pc.list_flatten(column), np.r_[0, np.cumsum(size_N)].astype(np.int64)
    text = texts(raw, field, check)
    if separator is None:
        offsets = np.r_[0, np.cumsum(_numpy(pc.is_valid(text)))]
        return text.drop_null(), offsets.astype(np.int64)
    split = pc.split_pattern(text, separator)
    size_N = pc.fill_null(pc.list_value_length(split), 0).to_numpy(zero_copy_only=False)
    return pc.utf8_trim_whitespace(pc.list_flatten(split)), np.r_[0, np.cumsum(size_N)].astype(np.int64)


def _numpy(flags_N: pa.ChunkedArray | pa.Array) -> NDArray[np.bool_]:
    if isinstance(flags_N, pa.ChunkedArray):
        flags_N = flags_N.combine_chunks()
    values: NDArray[np.bool_] = flags_N.to_numpy(zero_copy_only=False).astype(bool)
    return values
