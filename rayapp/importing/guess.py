"""A first domain file from a sample of a team's own files: guesses by name and by value, to be read and corrected.

What can't be guessed is asked for by the option that names it; nothing is made up silently.
"""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from rayapp.importing.columns import RowCheck, texts
from rayapp.importing.domains.layout import MS_PER_UNIT, TimeUnit
from rayapp.importing.files import plan, read_piece
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
NEGATIVE: Final = ("hide", "dislike", "hate", "block", "report", "skip", "unfollow", "remove")
NEUTRAL: Final = ("click", "view", "open", "impression", "show", "play")
OUTSIDE: Final = ("impression", "show", "shown", "exposure")
YEARS: Final = (2000, 2100)
MAX_CATEGORIES: Final = 1000
MAX_ACTIONS: Final = 50


def guess_domain(event_path: Path, item_path: Path | None, named: Mapping[str, str]) -> str:
    """The text of a domain file. `named` says the columns that the caller knows.

    Raises:
        PublishError: a file can't be read, or a needed column can't be told.
    """
    events = _sample(event_path)
    column = {field: _find(field, events, named) for field in NAMES}
    missing = [field for field in ("user_id", "item_id", "timestamp", "action") if column[field] is None]
    if missing:
        options = {"user_id": "--user", "item_id": "--item", "timestamp": "--time", "action": "--action"}
        raise PublishError(
            f"{event_path}: no column looks like {' or '.join(missing)}; it has {', '.join(events.column_names)}. "
            f"Name it with {', '.join(options[m] for m in missing)}. A file without a column of actions, with a 0/1 "
            "column for each instead, is read by `flags`: see the built-in kuairand.toml and docs/data.md"
        )
    actions = _actions(events[str(column["action"])], event_path, str(column["action"]))
    positive = [a for a in actions if _kind(a) == "positive"] or [actions[0]]
    head_names = [*positive, *(a for a in actions if _kind(a) != "positive" and a not in OUTSIDE)]
    lines = [
        f"# A first guess from {event_path.name}. Check every line; docs/data.md explains them.",
        f"name = {_quoted(event_path.stem.split('.')[0] or 'mine')}",
        f"positive_head = {_quoted(positive[0])}",
        'attribution = "24h" # an action counts for a shown list when it follows within this time',
        'time_mask = "0s"',
        "",
    ]
    for n, action in enumerate(actions):
        lines += ["[[actions]]", f"name = {_quoted(action)}", f'kind = "{_kind(action)}" # positive, negative, neutral']
        lines += ["in_sequence = false"] if action.lower() in OUTSIDE else []
        lines += [f"priority = {n}", ""]
    for head in dict.fromkeys(h for h in head_names if h not in positive or h in actions):
        utility = -1.0 if _kind(head) == "negative" else 1.0 if _kind(head) == "positive" else 0.2
        lines += ["[[heads]]", f"name = {_quoted(head)}", f"utility = {utility}", ""]
    lines += _items(item_path, str(column["item_id"]))
    lines += ["", "[[events]]"]
    for field in ("event_id", "user_id", "item_id", "action", "request_id"):
        if column[field]:
            lines.append(f"{field} = {_quoted(str(column[field]))}")
    for field in ("timestamp", "received_at"):
        if name := column[field]:
            lines.append(f'{field} = {{ column = {_quoted(name)}, unit = "{_unit(events[name])}" }}')
    time = str(column["timestamp"])
    shown = [a for a in actions if a.lower() in OUTSIDE]
    if shown and column["request_id"]:
        lines += ["", "[[requests]] # the lists that were shown, from the impressions among the events"]
        lines += [f"{field} = {_quoted(str(column[field]))}" for field in ("request_id", "user_id", "item_id")]
        lines.append(f'timestamp = {{ column = {_quoted(time)}, unit = "{_unit(events[time])}" }}')
        lines.append(f"only = {{ column = {_quoted(str(column['action']))}, is = {json.dumps(shown)} }}")
    return "\n".join(lines) + "\n"


def _sample(path: Path) -> pa.Table:
    pieces, rejected = plan(path, None, "")
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
        if name == id_column:
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
    return [*lines, f"columns = {{ item_id = {_quoted(id_column)} }}"]


def _attribute_kind(column: pa.ChunkedArray) -> str | None:
    """`None`: a column that is none of the three, such as a list of numbers."""
    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
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
