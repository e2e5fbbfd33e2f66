"""What a team's own log says of time: how long after a list its actions come, and how long items live.

The first domain file proposes `attribution`, `half_lives` and `flag_delay` from it, each with the figure that it
follows from; where there is too little to tell, it takes the usual value and says so.

Shapes: N rows of a file, W waits, I items.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from rayapp.contracts.config import DAY_MS, HOUR_MS, MINUTE_MS
from rayapp.contracts.hashing import hash64_column
from rayapp.contracts.tables import UNIT_MS, duration_ms
from rayapp.importing.columns import RowCheck, lists, texts
from rayapp.importing.domains.layout import TimeColumn
from rayapp.importing.files import expand, folder_columns, plan, read_piece
from rayapp.importing.guess_columns import named_dialect
from rayapp.importing.times import moments
from rayapp.root.publish import PublishError

MAX_ROWS: Final = 2_000_000
"""Rows that are read of a log: seconds, and days of most logs."""
FEWEST: Final = 100
"""Waits from which their last hundredth can be told."""
FEWEST_ITEMS: Final = 20
FEWEST_ON_ITEM: Final = 5
"""Actions from which the life of an item can be told."""
PAUSE_MS: Final = 30 * MINUTE_MS
"""A longer one ends a visit."""
ATTRIBUTIONS: Final = ("1h", "2h", "6h", "12h", "24h", "2d", "3d", "7d", "14d", "30d")
FLAG_DELAYS: Final = ("10m", "30m", *ATTRIBUTIONS)
USUAL_ATTRIBUTION: Final = "24h"
USUAL_FLAG_DELAY: Final = "10m"
USUAL_HALF_LIVES: Final = '["1h", "24h", "7d", "never"]'
HALF_LIVES: Final = (
    (6 * HOUR_MS, '["10m", "1h", "6h", "never"]'),
    (3 * DAY_MS, '["1h", "6h", "24h", "never"]'),
    (30 * DAY_MS, USUAL_HALF_LIVES),
)
"""Items that live shorter than this -> what their statistics fade with."""
LONG_HALF_LIVES: Final = '["1d", "7d", "30d", "never"]'
AS_LONG_AS_THE_LOG: Final = 0.6
"""An item that is acted on evenly has four fifths of its actions in four fifths of the log."""
NO_REQUEST: Final = np.uint64(0)
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class LogColumns:
    """Where a file keeps what is needed here."""

    user: str
    item: str
    """Of one item, or of a list of them."""
    timestamp: TimeColumn
    request: str | None = None
    action: str | None = None
    separator: str | None = None
    """Between the items of a list that is text."""

    @property
    def names(self) -> tuple[str, ...]:
        time = self.timestamp.column.names[0]
        return tuple(n for n in (self.user, self.item, time, self.request, self.action) if n)


def read_log(path: Path, columns: LogColumns) -> pd.DataFrame:
    """At most MAX_ROWS rows of a file or directory, in its order; a row for each item of a list.

    Columns `user`, `item` and `request` (hashes; NO_REQUEST where a row names none), `ms` since 1970, and `action`, a
    text, None where the file has none. Rows without a time are left out.
    """
    parts, rows = [], 0
    for table in _tables(path, columns.names):
        parts.append(_frame(table, columns))
        rows += len(parts[-1])
        if rows >= MAX_ROWS:
            break
    if not parts:
        raise PublishError(f"{path}: no row can be read with the columns {', '.join(columns.names)}")
    return pd.concat(parts, ignore_index=True)[:MAX_ROWS]


def _tables(path: Path, names: tuple[str, ...]) -> Iterator[pa.Table]:
    for file in expand([path]):
        folders = folder_columns(file)
        for piece in plan(file, None, "", dialect=named_dialect(file))[0]:
            own = tuple(name for name in names if name in piece.columns)
            outside = tuple((name, folders[name]) for name in names if name not in own and name in folders)
            if len(own) + len(outside) < len(names):  # of another shape
                continue
            for got in read_piece(replace(piece, columns=own, folders=outside)):
                if not isinstance(got, list):
                    yield got[0]


def _frame(table: pa.Table, columns: LogColumns) -> pd.DataFrame:
    check = RowCheck(table.num_rows)
    ms_N = moments(table[columns.timestamp.column.names[0]], columns.timestamp, "", check, earliest_ms=1, now_ms=2**53)
    item_M, offsets = lists(table[columns.item], columns.separator, "", check)
    row_M = np.repeat(np.arange(table.num_rows), np.diff(offsets))
    request_N = np.full(table.num_rows, NO_REQUEST)
    if columns.request:
        request = texts(table[columns.request], "", check)
        request_N = np.where(request.is_valid().to_numpy(zero_copy_only=False), hash64_column(request), NO_REQUEST)
    action = texts(table[columns.action], "", check) if columns.action else pa.nulls(table.num_rows, pa.string())
    values = {
        "user": hash64_column(texts(table[columns.user], "", check))[row_M],
        "item": hash64_column(texts(item_M, "", RowCheck(len(item_M)))),
        "ms": ms_N[row_M],
        "request": request_N[row_M],
        "action": action.to_numpy(zero_copy_only=False)[row_M],
    }
    kept_M = check.good_N[row_M]
    return pd.DataFrame({name: value_M[kept_M] for name, value_M in values.items()})


def time_lines(actions: pd.DataFrame, shown: pd.DataFrame) -> list[str]:
    """`attribution`, `half_lives` and `flag_delay` as lines of a domain file, each with its reason.

    `actions` and `shown` are rows of `read_log`: what was done, and what was shown (empty where the files don't say).
    """
    wait_W, since = _waits(actions, shown)
    attribution, why = _within(0.99, wait_W, since, ATTRIBUTIONS, USUAL_ATTRIBUTION)
    half_lives, lives = _half_lives(actions)
    flag_delay, delays = _within(0.9, wait_W, since, FLAG_DELAYS, USUAL_FLAG_DELAY)
    return [
        f'attribution = "{attribution}" # an action counts for a shown list when it follows within this time; {why}',
        f"half_lives = {half_lives} # how fast statistics fade; {lives}",
        f'flag_delay = "{flag_delay}" # 0/1 labels of a list count for statistics so long after it was shown; {delays}',
    ]


def _within(share: float, wait_W: Ints, since: str, written: Sequence[str], usual: str) -> tuple[str, str]:
    """The first of some durations within which this share of the waits was over, and the figure it follows from."""
    if len(wait_W) < FEWEST:
        return usual, f"the usual: {len(wait_W)} actions to go by {since} are too few to tell"
    wait_ms = float(np.quantile(wait_W, share))
    if not wait_ms:
        return usual, "the usual: the times of the file are too coarse to tell"
    value = next((text for text in written if duration_ms(text) >= wait_ms), written[-1])
    return value, f"here {share:.0%} of {len(wait_W):,} actions came within {_about(wait_ms)} {since}"


def _half_lives(actions: pd.DataFrame) -> tuple[str, str]:
    """From the middle item's life: the time in which four fifths of its actions fall."""
    ms_by_item = actions.groupby("item")["ms"]
    often = actions[ms_by_item.transform("size") >= FEWEST_ON_ITEM].groupby("item")["ms"]
    if often.ngroups < FEWEST_ITEMS:
        return USUAL_HALF_LIVES, f"the usual: {often.ngroups} items with {FEWEST_ON_ITEM} actions are too few to tell"
    life_I = (often.quantile(0.9) - often.quantile(0.1)).to_numpy()
    life_ms, span_ms = float(np.median(life_I)), float(np.ptp(np.quantile(actions["ms"], [0.005, 0.995])))
    if life_ms > AS_LONG_AS_THE_LOG * span_ms and span_ms < HALF_LIVES[-1][0]:
        return USUAL_HALF_LIVES, f"the usual: items live longer than the {_about(span_ms)} that were read"
    value = next((text for below_ms, text in HALF_LIVES if life_ms < below_ms), LONG_HALF_LIVES)
    return value, f"here 80% of an item's actions fall within {_about(life_ms)} (middle of {len(life_I):,} items)"


def _waits(actions: pd.DataFrame, shown: pd.DataFrame) -> tuple[Ints, str]:
    """How many ms each action came after what it followed, and what that was: the first of four ways that tells enough
    waits, the surest first."""
    ways = (
        (_after_named_list, "of their list"),
        (_after_showing, "of the latest list with the item"),
        (_after_first_on_list, "of the first on the same list"),
    )
    for way, since in ways:
        wait_W = way(actions, shown)
        if len(wait_W) >= FEWEST:
            return wait_W, since
    return _after_first_of_visit(actions), "of the first of a visit"


def _after_named_list(actions: pd.DataFrame, shown: pd.DataFrame) -> Ints:
    shown_ms = shown[shown["request"] != NO_REQUEST].groupby("request")["ms"].min()
    wait = (actions["ms"] - actions["request"].map(shown_ms)).dropna()
    return wait[wait >= 0].to_numpy(np.int64)


def _after_showing(actions: pd.DataFrame, shown: pd.DataFrame) -> Ints:
    latest = shown[["user", "item", "ms"]].assign(shown_ms=shown["ms"]).sort_values("ms")
    joined = pd.merge_asof(actions.sort_values("ms")[["user", "item", "ms"]], latest, on="ms", by=["user", "item"])
    return (joined["ms"] - joined["shown_ms"]).dropna().to_numpy(np.int64)


def _after_first_on_list(actions: pd.DataFrame, _shown: pd.DataFrame) -> Ints:
    named = actions[actions["request"] != NO_REQUEST]
    return _after_first(named["ms"], named["request"])


def _after_first_of_visit(actions: pd.DataFrame) -> Ints:
    """A visit is what a user did without a pause of PAUSE_MS."""
    actions = actions.sort_values(["user", "ms"])
    begins = (actions["user"] != actions["user"].shift()) | (actions["ms"].diff() > PAUSE_MS)
    return _after_first(actions["ms"], begins.cumsum())


def _after_first(ms: pd.Series, group: pd.Series) -> Ints:
    """Of all but the first row of each group."""
    ms = ms.sort_values()
    grouped = ms.groupby(group)
    return (ms - grouped.transform("min"))[grouped.cumcount() > 0].to_numpy(np.int64)


def _about(milliseconds: float) -> str:
    """As a domain file writes durations, with two digits or so."""
    unit = next((unit for unit in ("d", "h", "m") if milliseconds >= 2 * UNIT_MS[unit]), "s")
    return f"{milliseconds / UNIT_MS[unit]:.0f}{unit}"
