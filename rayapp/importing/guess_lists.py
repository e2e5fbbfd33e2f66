"""Files of shown lists: a list a row, an impression a row, or impressions among the events."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from rayapp.importing.guess_columns import Sample, bare, find, is_list, quoted, sample, time_guess, words
from rayapp.importing.guess_times import LogColumns
from rayapp.importing.list_texts import list_of
from rayapp.root.publish import PublishError

LISTS: Final = (
    *("itemids", "items", "itemlist", "productids", "products", "skus", "articleids", "articles", "videoids"),
    *("movieids", "trackids", "jobids", "postids", "newsids", "contentids", "impressions", "shown", "shownitems"),
    *("slate", "recommendations", "recommended", "results", "candidates", "list"),
)
SEPARATORS: Final = (",", "|", ";", " ")
TIMES: Final = ("timestamp", "received_at")


@dataclass(frozen=True, slots=True)
class Layout:
    """Lines of a layout, the columns that they name, and what `read_log` reads of them."""

    lines: list[str]
    columns: LogColumns
    left_out: list[str]


def layout_lines(given: Sample, found: Mapping[str, str]) -> list[str]:
    """Of the columns found; times with their unit or format."""
    lines = [f"{field} = {quoted(name)}" for field, name in found.items() if field not in TIMES]
    times = [time_guess(found[f], given.table[found[f]]).line(f) for f in TIMES if f in found]
    return [*given.written, *lines, *times]


def log_columns(table: pa.Table, found: Mapping[str, str], separator: str | None = None) -> LogColumns:
    return LogColumns(
        user=found["user_id"],
        item=found["item_id"],
        timestamp=time_guess(found["timestamp"], table[found["timestamp"]]).column,
        request=found.get("request_id"),
        action=found.get("action"),
        separator=separator,
    )


def guess_lists(path: Path, named: Mapping[str, str], item_column: str) -> Layout:
    """A list a row where a column holds lists of ids, else an impression a row."""
    given = sample(path)
    table = given.table
    here = {field: name for field, name in named.items() if name in table.column_names}
    fields = ("request_id", "user_id", "timestamp", "item_id", "surface", "position")
    found = {field: name for field in fields if (name := find(field, table, here))}
    if listed := _list_column(table, item_column):
        found["item_id"] = listed
        found.pop("position", None)
    if missing := {"user_id", "timestamp", "item_id"} - set(found):
        raise PublishError(
            f"{path}: no column looks like {' or '.join(sorted(missing))}; it has {', '.join(table.column_names)}. "
            "Name it with --user, --item or --time; or leave --requests out and write [[requests]] yourself "
            "(docs/data.md)"
        )
    columns = log_columns(table, found, _separator(table[listed]) if listed else None)
    lines = layout_lines(given, {field: name for field, name in found.items() if field != "item_id" or not listed})
    if listed:
        split = f", separator = {quoted(columns.separator)}" if columns.separator else ""
        lines.append(f"item_ids = {{ column = {quoted(listed)}{split} }}")
    left = [name for name in table.column_names if name not in found.values()]
    return Layout(lines, columns, left)


def _list_column(table: pa.Table, item_column: str) -> str | None:
    """By its type; where all is text by its name, and by what stands between the ids."""
    called = [name for name in table.column_names if bare(name) in {f"{bare(item_column)}s", *LISTS}]
    typed = [name for name in (*called, *table.column_names) if _of_ids(table[name])]
    written = [name for name in called if not is_list(table[name].type) and _is_written(table[name])]
    return next(iter([*typed, *written]), None)


def _of_ids(column: pa.ChunkedArray) -> bool:
    """Whether values are lists of what may be ids: 0 and 1 alone are labels."""
    kind = column.type
    if not is_list(kind) or not (pa.types.is_string(kind.value_type) or pa.types.is_integer(kind.value_type)):
        return False
    return not {str(value) for value in pc.unique(pc.list_flatten(column)).to_pylist()} <= {"0", "1", "None"}


def _is_written(column: pa.ChunkedArray) -> bool:
    return _separator(column) is not None or _as_program(column)


def _as_program(column: pa.ChunkedArray) -> bool:
    """Whether most values are lists as JSON or Python writes them."""
    values = [v for v in words(column.slice(0, 1000)) if v]
    return sum(list_of(v) is not None for v in values) > len(values) / 2


def _separator(column: pa.ChunkedArray) -> str | None:
    """What stands between the ids of a list that is text."""
    if is_list(column.type) or _as_program(column):
        return None
    values = [v for v in words(column) if v]
    return next((s for s in SEPARATORS if sum(s in v for v in values) > len(values) / 2), None)
