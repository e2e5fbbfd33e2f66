"""A raw column of moments -> milliseconds since 1970, with a reason for every value that can't be.

A moment that names no zone is read by the clocks of the layout's `zone`, or as UTC, and then that is said.

Shapes: N rows of a chunk.
"""

import time
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rayapp.contracts.zones import UTC
from rayapp.importing.columns import RowCheck, masked, numbers, texts
from rayapp.importing.domains.layout import MS_PER_UNIT, TimeColumn, TimeUnit
from rayapp.importing.plain_types import plain

FUTURE_MS: Final = 5 * 60 * 1000
"""Clocks differ by minutes; an event further in the future is a mistake."""
FARTHEST_ZONE_MS: Final = 15 * 60 * 60 * 1000
"""No clock is further ahead of UTC."""
NAMED_UTC: Final = r"^(.*[0-9])\s*(UTC|utc|GMT|[zZ])\s*$"
NAMED_OFFSET: Final = r"[T ][0-9]{2}.*[+-][0-9]{2}(:?[0-9]{2})?\s*$"
HAS_CLOCK: Final = r"[0-9][T ][0-9]"
ASSUMED: Final = "names no zone and was read as UTC (a `zone` in the domain file says otherwise)"
OF_CLOCKS_MS: Final = 8e12
"""Some 250 years: no clock showed what is further from 1970."""
MS_PER_ARROW: Final = {"s": 1000.0, "ms": 1.0, "us": 1e-3, "ns": 1e-6}


@dataclass(frozen=True, slots=True)
class _Read:
    """What the values say, before it is checked."""

    ms_N: NDArray[np.float64]
    missing_N: NDArray[np.bool_]
    naive_N: NDArray[np.bool_]
    """Values with a clock's time and without a zone."""
    unit: TimeUnit | None
    """Of numbers."""


def moments(
    raw: pa.ChunkedArray,
    column: TimeColumn,
    field: str,
    check: RowCheck,
    *,
    earliest_ms: int,
    now_ms: int,
    may_miss: bool = False,
    unreadable: RowCheck | None = None,
) -> NDArray[np.int64]:
    """Milliseconds since 1970; 0 in rejected rows and, with `may_miss`, in missing ones.

    Columns of a timestamp type need neither unit nor format. Values that can't be read go to `unreadable` where that is
    another check, and are missing.
    """
    values, odd = plain(raw), unreadable or check
    kind = values.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        read = _typed(values, column.zone)
    elif column.format is not None or column.unit is TimeUnit.ISO:
        read = _written(raw, column, field, odd)
    else:
        number_N, missing_N = numbers(raw, field, odd)
        ms_N = number_N * MS_PER_UNIT[column.unit]
        read = _Read(ms_N, missing_N, np.zeros(len(values), bool), column.unit)
    ms_N = read.ms_N
    if may_miss:
        ms_N = np.where(read.missing_N | ~odd.good_N, max(earliest_ms, 0), ms_N)
    else:
        check.fail(read.missing_N, field, "is missing", raw)
    assumed_N = read.naive_N & (column.zone is None)
    if count := int((assumed_N & check.good_N).sum()):
        check.notes[f"{field} {ASSUMED}"] += count
    early_N, late_N = ms_N < earliest_ms, ms_N > now_ms + FUTURE_MS
    for bad_N, said in ((early_N, f"is before {_day(earliest_ms)}"), (late_N, "is in the future")):
        for hinted in _other_units(read.unit) if bad_N.any() else ():
            as_hinted_N = ms_N / MS_PER_UNIT[read.unit or column.unit] * MS_PER_UNIT[hinted]
            plausible_N = bad_N & (as_hinted_N >= earliest_ms) & (as_hinted_N <= now_ms + FUTURE_MS)
            check.fail(plausible_N, field, f'{said}; unit = "{hinted}" would fit', raw)
        by_zone_N = (ms_N > now_ms) & (ms_N < now_ms + FARTHEST_ZONE_MS)
        check.fail(bad_N & assumed_N & by_zone_N, field, f"{said}; it {ASSUMED}", raw)
        check.fail(bad_N, field, said, raw)
    return np.where(check.good_N, np.round(ms_N), 0).astype(np.int64)


def _typed(values: pa.Array, zone: str | None) -> _Read:
    """Of columns of a type for moments."""
    kind, missing_N = values.type, masked(pc.is_null(values))
    if pa.types.is_date32(kind):
        count, per = values.cast(pa.int32()), 86_400_000.0
    elif pa.types.is_date64(kind):
        count, per = values.cast(pa.int64()), 1.0
    else:
        count, per = values.cast(pa.int64()), MS_PER_ARROW[kind.unit]
    ms_N = pc.fill_null(count, 0).to_numpy(zero_copy_only=False).astype(np.float64) * per
    has_zone = pa.types.is_timestamp(kind) and kind.tz is not None
    naive_N = np.full(len(values), not has_zone) & ~missing_N
    clock_N = naive_N if pa.types.is_timestamp(kind) else np.zeros(len(values), bool)
    return _Read(_by_clocks(ms_N, naive_N, zone), missing_N, clock_N, None)


def _written(raw: pa.ChunkedArray, column: TimeColumn, field: str, check: RowCheck) -> _Read:
    """Of text."""
    text = texts(raw, field, check)
    missing_N = masked(pc.is_null(text))
    if column.format is None:
        said, form = "is not an ISO 8601 time; `format` in the domain file names another way to write it", "ISO8601"
        utc_N = masked(pc.fill_null(pc.match_substring_regex(text, NAMED_UTC), False))
        zoned_N = utc_N | masked(pc.fill_null(pc.match_substring_regex(text, NAMED_OFFSET), False))
        clock_N = masked(pc.fill_null(pc.match_substring_regex(text, HAS_CLOCK), False))
        if utc_N.any():
            text = pc.replace_substring_regex(text, NAMED_UTC, r"\1")
    else:
        said, form = f'is not written as format = "{column.format}" says', column.format
        zoned_N = np.full(len(text), "%z" in form or "%Z" in form)
        clock_N = np.full(len(text), any(part in form for part in ("%H", "%I", "%T", "%X", "%c")))
    stamps = pd.to_datetime(pd.Series(text.to_numpy(zero_copy_only=False)), errors="coerce", utc=True, format=form)
    odd_N = stamps.isna().to_numpy() & ~missing_N
    check.fail(odd_N, field, said, raw)
    ms_N = stamps.dt.as_unit("ms").astype("int64").to_numpy().astype(np.float64)
    ms_N = np.where(stamps.isna().to_numpy(), 0, ms_N)
    naive_N = ~zoned_N & ~missing_N & ~odd_N
    return _Read(_by_clocks(ms_N, naive_N, column.zone), missing_N, naive_N & clock_N, None)


def _by_clocks(ms_N: NDArray[np.float64], naive_N: NDArray[np.bool_], zone: str | None) -> NDArray[np.float64]:
    """What a zone's clocks showed -> UTC. An hour that the clocks showed twice is the first one, and one that they
    left out is the moment when they were put forward."""
    local_N = naive_N & (np.abs(ms_N) < OF_CLOCKS_MS)
    if zone is None or zone == UTC or not local_N.any():
        return ms_N
    wall = pd.Series(np.where(local_N, ms_N, 0).round().astype(np.int64).astype("datetime64[ms]"))
    first: Any = np.ones(len(wall), bool)
    utc = wall.dt.tz_localize(zone, ambiguous=first, nonexistent="shift_forward").dt.tz_convert(UTC)
    return np.where(local_N, utc.dt.as_unit("ms").astype("int64").to_numpy(), ms_N)


def _other_units(unit: TimeUnit | None) -> list[TimeUnit]:
    return [u for u in MS_PER_UNIT if u is not unit] if unit else []


def _day(ms: int) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(ms / 1000))
