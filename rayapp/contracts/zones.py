"""Local time: what the clocks of a time zone showed at moments of UTC, daylight saving included.

The changes of a zone's clocks are gathered once a process (some 30 ms); a moment is then one binary search among them.

Shapes: R moments, S changes of the clocks, P = S + 1 periods between them.
"""

import functools
from bisect import bisect_left
from datetime import datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
UTC: Final = "UTC"
YEAR_2100_S: Final = 4_102_444_800
STEP_S: Final = 6 * 24 * 60 * 60
"""Since 1970 no zone has changed its clocks twice within six days."""


def is_zone(name: str) -> bool:
    """Whether there is a time zone of that IANA name."""
    try:
        ZoneInfo(name)
    except (KeyError, OSError, ValueError):  # unknown; a folder of zones; no name at all
        return False
    return True


def local_ms(timestamp_ms_R: Ints, zone: str) -> Ints:
    """The moments as the zone's clocks showed them: milliseconds since these showed 1 January 1970.

    Before 1970 the clocks are those of 1970, from 2100 on those of the end of 2099.
    """
    change_ms_S, offset_ms_P = _periods(zone)
    return timestamp_ms_R + offset_ms_P[change_ms_S.searchsorted(timestamp_ms_R, side="right")]


@functools.cache
def _periods(name: str) -> tuple[Ints, Ints]:
    """When the clocks changed, from 1970 to 2100, and how far ahead of UTC they were in each period between."""
    zone = ZoneInfo(name)

    def offset_s(at_s: int) -> int:
        offset = datetime.fromtimestamp(at_s, zone).utcoffset() or timedelta()
        return int(offset.total_seconds())

    change_s: list[int] = []
    offsets_s = [offset_s(0)]
    for since_s in range(0, YEAR_2100_S, STEP_S):
        after_s = offset_s(since_s + STEP_S)
        if after_s != offsets_s[-1]:
            step = range(since_s, since_s + STEP_S)
            change_s.append(since_s + bisect_left(step, True, key=lambda at_s: offset_s(at_s) == after_s))
            offsets_s.append(after_s)
    return np.array(change_s, np.int64) * 1000, np.array(offsets_s, np.int64) * 1000
