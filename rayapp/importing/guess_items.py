"""The [items] of a first domain file: which columns are text, categories or numbers, and which names the item."""

import json
import re
from pathlib import Path
from typing import Final

import pandas as pd
import pyarrow as pa

from rayapp.contracts.config import RESERVED_NAMES
from rayapp.importing.domains.layout import NULL_VALUES
from rayapp.importing.guess_columns import (
    AVAILABLE,
    CREATED,
    MOSTLY,
    NAMES,
    bare,
    find_name,
    is_flag,
    is_list,
    quoted,
    sample,
    time_guess,
    words,
)

MAX_CATEGORIES: Final = 1000
LONGEST_CATEGORY: Final = 40
SEPARATORS: Final = ("|", ";", ",")
AMOUNT: Final = re.compile(r"^\s*[$€£¥]?\s*-?[0-9][0-9,.]*\s*[$€£¥%]?\s*$")
"""A number as people write it: of some, the import will leave the value empty and say so."""
DASHES: Final = ("-", "–", "—", "")
TITLES: Final = ("title", "name", "headline", "producttitle", "productname", "itemname", "subject")
NO_FILE: Final = [
    "# Say here what your item files hold; the item's text is what people see.",
    "[items]",
    'title = "title"',
    'text = ["title"]',
]


def guess_items(path: Path | None, item_column: str) -> tuple[list[str], list[str]]:
    """`(the lines, what is left out and why)`."""
    if path is None:
        return NO_FILE, []
    given = sample(path)
    table = given.table
    same = item_column in table.column_names
    id_column = item_column if same else find_name((*NAMES["item_id"], "id"), table) or item_column
    columns, left_out = {"item_id": quoted(id_column)}, []
    since = find_name(CREATED, table)
    if since is not None and (guess := time_guess(since, table[since])).share >= MOSTLY:
        columns["created_at"] = guess.toml
    available = find_name(AVAILABLE, table)
    if available is not None and (bare(available) == "available" or is_flag(table[available])):
        columns["available"] = quoted(available)
    taken = {id_column, *([since] if "created_at" in columns else []), *([available] if "available" in columns else [])}
    groups: dict[str, list[str]] = {"text": [], "categories": [], "numbers": []}
    for name in table.column_names:
        if name in taken:
            continue
        if name in RESERVED_NAMES:
            left_out.append(f"{name} (a name of ours: give it another one by `columns`)")
            continue
        kind, said, separator = _attribute(name, table[name])
        if kind is None:
            left_out.append(f"{name} ({said})")
            continue
        groups[kind].append(name)
        if separator:
            columns[name] = f"{{ column = {quoted(name)}, separator = {quoted(separator)} }}"
    titles = sorted(groups["text"], key=lambda name: TITLES.index(bare(name)) if bare(name) in TITLES else len(TITLES))
    title = next(iter([*titles, *groups["categories"]]), None)
    lines = ["[items]"]
    if title is None:
        title = "label" if "label" not in table.column_names else "item_label"
        groups["text"], columns[title] = [title], quoted(id_column)
        lines = ["# No column is a text or a category: people see the id.", *lines]
    lines += [f"title = {quoted(title)}", *given.written]
    lines += [f"{kind} = {json.dumps(names, ensure_ascii=False)}" for kind, names in groups.items() if names]
    named = ", ".join(f"{name if name.isidentifier() else quoted(name)} = {value}" for name, value in columns.items())
    return [*lines, f"columns = {{ {named} }}"], left_out


def _attribute(name: str, column: pa.ChunkedArray) -> tuple[str | None, str, str | None]:
    """`(text, categories or numbers; else why it is none; what stands between several categories)`."""
    kind = column.type
    if is_list(kind):
        if pa.types.is_floating(kind.value_type):
            return None, "a list of numbers; if it is the item's vector, say vector in `columns`", None
        single = pa.types.is_string(kind.value_type) or pa.types.is_integer(kind.value_type)
        return ("categories", "", None) if single else (None, "a list of what is no text", None)
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return None, "a time", None
    if pa.types.is_nested(kind):
        return None, "an object", None
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    if number:
        return ("categories" if name.lower().endswith("_id") else "numbers"), "", None
    values = [v for v in words(column) if v]
    if not values:
        return None, "empty in the sample", None
    if name.lower().endswith("_id"):
        return "categories", "", None
    if given := [v for v in values if v.strip() not in (*NULL_VALUES, *DASHES)]:
        number = pd.to_numeric(pd.Series(given, dtype=object), errors="coerce").notna().to_numpy()
        if sum(n or AMOUNT.match(v) is not None for n, v in zip(number, given, strict=True)) >= MOSTLY * len(given):
            return "numbers", "", None
    for separator in SEPARATORS:
        parts = [part.strip() for value in values for part in value.split(separator)]
        if sum(separator in v for v in values) > len(values) / 2 and _are_categories(parts):
            return "categories", "", separator
    few = len(set(values)) <= min(MAX_CATEGORIES, max(len(values) // 2, 1))
    return ("categories" if few else "text"), "", None


def _are_categories(parts: list[str]) -> bool:
    short = max(map(len, parts)) <= LONGEST_CATEGORY
    return short and len(set(parts)) <= min(MAX_CATEGORIES, max(len(parts) // 4, 1))
