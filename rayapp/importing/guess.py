"""A first domain file from a sample of a team's own files: guesses by name and by value, to be read and corrected.

What can't be guessed is asked for by the option that names it; nothing is made up silently.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from rayapp.contracts.config import RESERVED_NAMES
from rayapp.importing.columns import RowCheck, texts
from rayapp.importing.domains.layout import MS_PER_UNIT, TimeUnit
from rayapp.importing.files import RejectedRow, expand, plan, read_piece
from rayapp.importing.guess_times import LogColumns, read_log, time_lines
from rayapp.root.publish import PublishError

SAMPLE_ROWS: Final = 50_000
NAMES: Final = {
    "user_id": ("user_id", "userid", "user", "uid", "member_id", "customer_id", "visitorid", "session_id"),
    "item_id": ("item_id", "itemid", "item", "iid", "video_id", "product_id", "article_id", "movie_id", "pin_id"),
    "timestamp": ("timestamp", "timestamp_ms", "time", "time_ms", "ts", "event_time", "created_at", "date"),
    "action": ("action", "event", "event_type", "action_type", "type", "behavior", "behaviour"),
    "event_id": ("event_id",),
    "request_id": ("request_id", "impression_id"),
    "received_at": ("received_at", "received_at_ms"),
}
TIMES: Final = ("timestamp", "received_at")
LISTS: Final = ("item_ids", "items", "item_list")
CREATED: Final = ("created_at", "created_at_ms")
SEPARATORS: Final = (",", "|", ";", " ")
NEGATIVE: Final = ("hide", "dislike", "hate", "block", "report", "skip", "unfollow", "remove")
NEUTRAL: Final = ("click", "view", "open", "impression", "show", "play")
OUTSIDE: Final = ("impression", "show", "shown", "exposure")
YEARS: Final = (2000, 2100)
MAX_CATEGORIES: Final = 1000
MAX_ACTIONS: Final = 50


def guess_domain(
    event_path: Path, item_path: Path | None, named: Mapping[str, str], request_path: Path | None = None
) -> str:
    """The text of a domain file. `named` says the columns that the caller knows.

    Raises:
        PublishError: a file can't be read, or a needed column can't be told.
    """
    events = _sample(event_path)
    found = _found(events, event_path, named)
    actions = _actions(events[found["action"]], event_path, found["action"])
    lists = None if request_path is None else _lists(request_path, named, found["item_id"])
    lines = [
        f"# A first guess from {event_path.name}. Check every line; docs/data.md explains them.",
        f"name = {_quoted(event_path.stem.split('.')[0] or 'mine')}",
        f"positive_head = {_quoted(_positive(actions)[0])}",
        *_times(event_path, _log_columns(events, found), request_path, lists),
        'time_mask = "0s"',
        'time_zone = "UTC" # whose hour and day of the week models read: the name of a zone, like "Europe/Berlin"',
        "",
        *_vocabulary(actions),
        *_items(item_path, found["item_id"]),
        *("", "[[events]]", *_layout(events, found)),
    ]
    shown = [a for a in actions if a.lower() in OUTSIDE]
    if lists is not None:
        lines += ["", "[[requests]] # the lists that were shown", *lists.layout]
    elif shown and "request_id" in found:
        lines += ["", "[[requests]] # the lists that were shown, from the impressions among the events"]
        lines += _layout(events, {field: found[field] for field in ("request_id", "user_id", "item_id", "timestamp")})
        lines.append(f"only = {{ column = {_quoted(found['action'])}, is = {json.dumps(shown)} }}")
    return "\n".join(lines) + "\n"


def _found(events: pa.Table, path: Path, named: Mapping[str, str]) -> dict[str, str]:
    """Field -> its column, of those that the events have."""
    found = {field: name for field in NAMES if (name := _find(field, events, named))}
    missing = [field for field in ("user_id", "item_id", "timestamp", "action") if field not in found]
    if missing:
        options = {"user_id": "--user", "item_id": "--item", "timestamp": "--time", "action": "--action"}
        raise PublishError(
            f"{path}: no column looks like {' or '.join(missing)}; it has {', '.join(events.column_names)}. "
            f"Name it with {', '.join(options[m] for m in missing)}. A file without a column of actions, with a 0/1 "
            "column for each instead, is read by `flags`: see the built-in kuairand.toml and docs/data.md"
        )
    return found


def _vocabulary(actions: Sequence[str]) -> list[str]:
    """The actions and the heads."""
    lines, positive = [], _positive(actions)
    for n, action in enumerate(actions):
        lines += ["[[actions]]", f"name = {_quoted(action)}", f'kind = "{_kind(action)}" # positive, negative, neutral']
        lines += ["in_sequence = false"] if action.lower() in OUTSIDE else []
        lines += [f"priority = {n}", ""]
    for head in (*positive, *(a for a in actions if a not in positive and a not in OUTSIDE)):
        utility = -1.0 if _kind(head) == "negative" else 1.0 if _kind(head) == "positive" else 0.2
        lines += ["[[heads]]", f"name = {_quoted(head)}", f"utility = {utility}", ""]
    return lines


def _positive(actions: Sequence[str]) -> list[str]:
    return [a for a in actions if _kind(a) == "positive"] or [actions[0]]


def _layout(table: pa.Table, found: Mapping[str, str]) -> list[str]:
    """The columns of a layout, times with their unit."""
    times = {field: found[field] for field in TIMES if field in found}
    return [
        *(f"{field} = {_quoted(name)}" for field, name in found.items() if field not in times),
        *(f'{f} = {{ column = {_quoted(name)}, unit = "{_unit(table[name])}" }}' for f, name in times.items()),
    ]


@dataclass(frozen=True, slots=True)
class _Lists:
    """Files of shown lists: their layout, and what `read_log` reads of them."""

    layout: list[str]
    columns: LogColumns


def _lists(path: Path, named: Mapping[str, str], item_column: str) -> _Lists:
    """A list a row where a column holds lists of ids, else an impression a row."""
    table = _sample(path)
    here = {field: name for field, name in named.items() if name in table.column_names}
    found = {f: name for f in ("request_id", "user_id", "timestamp", "item_id") if (name := _find(f, table, here))}
    if listed := _list_column(table, item_column):
        found["item_id"] = listed
    if missing := {"user_id", "timestamp", "item_id"} - set(found):
        raise PublishError(
            f"{path}: no column looks like {' or '.join(sorted(missing))}; it has {', '.join(table.column_names)}. "
            "Name it with --user, --item or --time; or leave --requests out and write [[requests]] yourself "
            "(docs/data.md)"
        )
    columns = _log_columns(table, found, _separator(table[listed]) if listed else None)
    layout = _layout(table, {field: name for field, name in found.items() if field != "item_id" or not listed})
    if listed:
        split = f", separator = {_quoted(columns.separator)}" if columns.separator else ""
        layout.append(f"item_ids = {{ column = {_quoted(listed)}{split} }}")
    return _Lists(layout, columns)


def _list_column(table: pa.Table, item_column: str) -> str | None:
    """By its type; where all is text by its name, and by what stands between the ids."""
    called = [name for name in table.column_names if name.lower() in {f"{item_column.lower()}s", *LISTS}]
    typed = [name for name in (*called, *table.column_names) if _is_list(table[name].type)]
    return next(iter([*typed, *(name for name in called if _separator(table[name]))]), None)


def _separator(column: pa.ChunkedArray) -> str | None:
    """What stands between the ids of a list that is text."""
    if _is_list(column.type):
        return None
    values = [v for v in _text(column) if v]
    return next((s for s in SEPARATORS if sum(s in v for v in values) > len(values) / 2), None)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _log_columns(table: pa.Table, found: Mapping[str, str], separator: str | None = None) -> LogColumns:
    return LogColumns(
        user=found["user_id"],
        item=found["item_id"],
        timestamp=found["timestamp"],
        unit=TimeUnit(_unit(table[found["timestamp"]])),
        request=found.get("request_id"),
        action=found.get("action"),
        separator=separator,
    )


def _times(events: Path, columns: LogColumns, requests: Path | None, lists: _Lists | None) -> list[str]:
    rows = read_log(events, columns)
    is_shown = rows["action"].str.lower().isin(OUTSIDE)
    shown = rows[is_shown] if requests is None or lists is None else read_log(requests, lists.columns)
    return time_lines(rows[~is_shown], shown)


def _sample(path: Path) -> pa.Table:
    rejected: list[RejectedRow] = []
    for file in expand([path]):
        pieces, broken = plan(file, None, "")
        rejected += broken
        for piece in pieces:
            for got in read_piece(piece):
                if not isinstance(got, list):
                    return got[0].slice(0, SAMPLE_ROWS)
                rejected += got
    raise PublishError(f"{path}: {rejected[0].reason if rejected else 'the file is empty'}")


def _find(field: str, table: pa.Table, named: Mapping[str, str]) -> str | None:
    if field in named:
        if named[field] not in table.column_names:
            raise PublishError(f"there is no column {named[field]!r}; the file has {', '.join(table.column_names)}")
        return named[field]
    lower = {name.lower(): name for name in table.column_names}
    return next((lower[name] for name in NAMES[field] if name in lower), None)


def _actions(column: pa.ChunkedArray, path: Path, name: str) -> list[str]:
    """The words of the column, most frequent first."""
    words = Counter(w for w in _text(column) if w)
    if not 0 < len(words) <= MAX_ACTIONS:
        raise PublishError(
            f"{path}: column {name!r} holds {len(words)} different values; actions are few. Name another"
        )
    return [word for word, _ in words.most_common()]


def _text(column: pa.ChunkedArray) -> list[str | None]:
    values: list[str | None] = texts(column, "", RowCheck(len(column))).to_pylist()
    return values


def _kind(action: str) -> str:
    word = action.lower()
    if any(n in word for n in NEGATIVE):
        return "negative"
    return "neutral" if word in NEUTRAL or any(n in word for n in OUTSIDE) else "positive"


def _unit(column: pa.ChunkedArray) -> str:
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        number = pd.to_numeric(pd.Series(_text(column), dtype=object), errors="coerce")
        if number.isna().mean() > 0.5:
            return "iso"
    else:
        number = pd.Series(pc.fill_null(column, 0).to_numpy())
    middle = float(np.nanmedian(number.to_numpy(np.float64)))
    for unit, ms in MS_PER_UNIT.items():
        if YEARS[0] <= 1970 + middle * ms / (365.25 * 86_400_000) < YEARS[1]:
            return str(unit)
    return str(TimeUnit.MILLISECONDS)


def _items(path: Path | None, item_column: str) -> list[str]:
    if path is None:
        return [
            "# Say here what your item files hold; the item's text is what people see.",
            "[items]",
            'title = "title"',
            'text = ["title"]',
        ]
    table = _sample(path)
    id_column = item_column if item_column in table.column_names else (_find("item_id", table, {}) or item_column)
    groups: dict[str, list[str]] = {"text": [], "categories": [], "numbers": []}
    for name in table.column_names:
        if name == id_column or name in RESERVED_NAMES:
            continue
        kind = "categories" if name.lower().endswith("_id") else _attribute_kind(table[name])
        if kind:
            groups[kind].append(name)
    texts_first = sorted(groups["text"], key=lambda name: name.lower() not in {"title", "name", "headline"})
    title = next(iter([*texts_first, *groups["categories"]]), None)
    if title is None:
        raise PublishError(f"{path}: no column of text or categories that could name an item")
    lines = ["[items]", f"title = {_quoted(title)}"]
    lines += [f"{kind} = {json.dumps(names)}" for kind, names in groups.items() if names]
    since = next((name for name in table.column_names if name.lower() in CREATED), None)
    created = f', created_at = {{ column = {_quoted(since)}, unit = "{_unit(table[since])}" }}' if since else ""
    return [*lines, f"columns = {{ item_id = {_quoted(id_column)}{created} }}"]


def _attribute_kind(column: pa.ChunkedArray) -> str | None:
    """`None`: a column that is none of the three, such as a list of numbers."""
    kind = column.type
    if _is_list(kind):
        return "categories" if pa.types.is_string(kind.value_type) else None
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return None
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return "numbers"
    values = [v for v in _text(column) if v]
    if values and pd.to_numeric(pd.Series(values), errors="coerce").notna().all():
        return "numbers"
    distinct = len(set(values))
    return "categories" if distinct <= min(MAX_CATEGORIES, max(len(values) // 2, 1)) else "text"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
