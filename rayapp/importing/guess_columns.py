"""A sample of a team's own files, and which column of it is what: by its name and by its values."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from rayapp.importing.columns import FLAG_WORDS, RowCheck, texts
from rayapp.importing.dialects import SAMPLE_BYTES, Dialect, recognised_encoding
from rayapp.importing.domains.layout import MS_PER_UNIT, TimeColumn, TimeUnit
from rayapp.importing.files import RejectedRow, expand, folder_columns, open_file, plan, read_piece
from rayapp.importing.plain_types import plain
from rayapp.importing.times import moments
from rayapp.root.publish import PublishError

SAMPLE_ROWS: Final = 50_000
SAMPLE_FILES: Final = 50
NAMES: Final = {
    "user_id": (
        *("userid", "user", "uid", "memberid", "customerid", "customer", "visitorid", "visitor", "clientid"),
        *("accountid", "profileid", "readerid", "listenerid", "viewerid", "buyerid", "personid", "candidateid"),
        *("subscriberid", "userpseudoid", "distinctid", "anonymousid", "deviceid", "cookieid", "sessionid"),
    ),
    "item_id": (
        *("itemid", "item", "iid", "videoid", "productid", "product", "sku", "skuid", "asin", "articleid", "movieid"),
        *("pinid", "trackid", "songid", "jobid", "postid", "newsid", "contentid", "documentid", "bookid", "listingid"),
        *("offerid", "courseid", "recipeid", "episodeid", "showid", "goodsid", "variantid", "adid", "objectid"),
    ),
    "timestamp": (
        *("timestamp", "timestampms", "time", "timems", "ts", "eventtime", "eventtimestamp", "datetime", "occurredat"),
        *("happenedat", "createdat", "loggedat", "playedat", "viewedat", "clickedat", "shownat", "servedat"),
        *("servertime", "clienttime", "unixtime", "eventdate", "orderdate", "purchasedate", "date", "day", "dt", "at"),
    ),
    "action": (
        *("action", "event", "eventtype", "eventname", "actiontype", "type", "behavior", "behaviour", "behaviortype"),
        *("interaction", "interactiontype", "activity", "activitytype", "verb"),
    ),
    "event_id": ("eventid",),
    "request_id": ("requestid", "impressionid", "listid", "slateid", "recommendationid", "searchid", "queryid", "rid"),
    "received_at": ("receivedat", "receivedatms", "ingestedat", "loadedat"),
    "position": ("position", "rank", "slot"),
    "surface": ("surface", "placement"),
}
"""Field -> what columns of it are called, without case and signs, the likeliest first."""
CREATED: Final = (
    *("createdat", "createdatms", "created", "published", "publishedat", "publishtime", "publishdate", "releasedate"),
    *("released", "uploadedat", "uploadtime", "launchdate", "postedat", "dateadded", "addedat", "availablefrom"),
)
AVAILABLE: Final = ("available", "isavailable", "instock", "isactive", "active", "enabled")
YEARS: Final = (2000, 2100)
MOSTLY: Final = 0.9
FORMATS: Final = (
    *("%Y/%m/%d %H:%M:%S", "%Y/%m/%d %H:%M", "%Y/%m/%d", "%d/%m/%Y %H:%M:%S", "%m/%d/%Y %H:%M:%S", "%d/%m/%Y %H:%M"),
    *("%m/%d/%Y %H:%M", "%m/%d/%Y %I:%M:%S %p", "%m/%d/%Y %I:%M %p", "%d/%m/%Y", "%m/%d/%Y", "%d.%m.%Y %H:%M:%S"),
    *("%d.%m.%Y %H:%M", "%d.%m.%Y", "%d-%m-%Y %H:%M:%S", "%d-%m-%Y %H:%M", "%d-%m-%Y", "%Y.%m.%d %H:%M:%S"),
    *("%Y%m%d%H%M%S", "%Y%m%d", "%d/%b/%Y:%H:%M:%S %z", "%a %b %d %H:%M:%S %z %Y", "%a, %d %b %Y %H:%M:%S %z"),
    *("%d %b %Y %H:%M:%S", "%d %b %Y", "%b %d, %Y %I:%M:%S %p", "%b %d, %Y", "%d-%b-%Y %H:%M:%S", "%d-%b-%Y"),
)
DAY_OR_MONTH: Final = ("%d/%m", "%m/%d")


@dataclass(frozen=True, slots=True)
class Sample:
    """Rows of a file, or of some files of a directory."""

    path: Path
    table: pa.Table
    written: list[str]
    """Lines of a layout that say how the text is written, where it is not the usual way."""


def sample(path: Path) -> Sample:
    """Columns of folders count too.

    Raises:
        PublishError: nothing can be read.
    """
    files, written = expand([path]), list[str]()
    rejected: list[RejectedRow] = []
    parts: list[pa.Table] = []
    some = np.random.default_rng(0).permutation(len(files))[:SAMPLE_FILES]
    for file in (files[n] for n in sorted(some)):
        pieces, broken = plan(file, None, "", dialect=named_dialect(file))
        rejected += broken
        for piece in pieces[:1]:
            for got in read_piece(piece):
                if isinstance(got, list):
                    rejected += got
                    continue
                table = got[0].slice(0, SAMPLE_ROWS // len(some) + 1)
                for name, value in folder_columns(file).items():
                    if name not in table.column_names:
                        table = table.append_column(name, pa.array([value.encode()] * len(table), pa.binary()))
                parts.append(table)
                written = written or _written(piece.dialect, piece.kind, file)
                break
    if not parts:
        raise PublishError(f"{path}: {rejected[0].reason if rejected else 'the file is empty'}")
    try:
        return Sample(path, pa.concat_tables(parts, promote_options="permissive"), written)
    except (pa.ArrowInvalid, pa.ArrowTypeError):  # files of different shapes: the first speaks for itself
        return Sample(path, parts[0], written)


def named_dialect(file: Path) -> Dialect:
    """What the import will not recognise by itself and a layout has to name: the encoding."""
    if file.suffix == ".parquet":
        return Dialect()
    try:
        with open_file(file) as source:
            return Dialect(encoding=recognised_encoding(source.read(SAMPLE_BYTES)))
    except OSError:
        return Dialect()


def _written(dialect: Dialect, kind: str, file: Path) -> list[str]:
    lines = []
    usual = "\t" if ".tsv" in file.suffixes else ","
    if kind != "parquet" and dialect.encoding:
        lines.append(f"encoding = {quoted(dialect.encoding)} # check that letters with accents look right")
    if kind == "csv" and dialect.delimiter not in (None, usual):
        lines.append(f"delimiter = {quoted(dialect.delimiter or '')}")
    if kind == "csv" and dialect.escape:
        lines.append(f"escape = {quoted(dialect.escape)}")
    return lines


def bare(name: str) -> str:
    """A column's name without case and signs: `Customer ID` is `customerid`."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def find(field: str, table: pa.Table, named: Mapping[str, str]) -> str | None:
    """The column of a field: the named one, else by what it is called."""
    if field in named:
        if named[field] not in table.column_names:
            raise PublishError(f"there is no column {named[field]!r}; the file has {', '.join(table.column_names)}")
        return named[field]
    return find_name(NAMES[field], table)


def find_name(names: Sequence[str], table: pa.Table) -> str | None:
    """The first of some bare names that the table has."""
    by_bare = {bare(name): name for name in reversed(table.column_names)}
    return next((by_bare[name] for name in names if name in by_bare), None)


def words(column: pa.ChunkedArray) -> list[str | None]:
    """The values as text."""
    values: list[str | None] = texts(column, "", RowCheck(len(column))).to_pylist()
    return values


def is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def is_flag(column: pa.ChunkedArray) -> bool:
    """Whether all values are 0 and 1, or true and false, and both occur."""
    if is_list(column.type):
        return False
    known = {word: number for number, some in FLAG_WORDS.items() for word in (number, *some)}
    known |= {"1.0": "1", "0.0": "0"}
    found = {known.get(value.lower()) for value in words(column) if value}
    return found == {"0", "1"}


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class TimeGuess:
    """How a column writes moments."""

    column: TimeColumn
    share: float
    """Of the sample's values that can be read so."""
    said: str = ""
    """What to check."""

    @property
    def toml(self) -> str:
        name = quoted(self.column.column.names[0])
        if self.column.format is not None:
            return f"{{ column = {name}, format = {quoted(self.column.format)} }}"
        return f'{{ column = {name}, unit = "{self.column.unit}" }}'

    def line(self, field: str) -> str:
        return f"{field} = {self.toml}{f' # {self.said}' if self.said else ''}"


def time_guess(name: str, raw: pa.ChunkedArray) -> TimeGuess:
    """A unit of numbers whose years are plausible, ISO 8601, or a format."""
    column = plain(raw)
    unit = _unit(column)
    if unit is not None:
        return TimeGuess(_column(name, unit=unit), 1.0)
    values = column.slice(0, 1000)
    tried = [_tried(name, values, unit=TimeUnit.ISO)]
    if tried[0].share < MOSTLY:
        tried += [_tried(name, values, form=form) for form in FORMATS]
    best = max(tried, key=lambda guess: guess.share)
    also = next((g for g in tried if g is not best and g.share == best.share > 0 and _other_order(g, best)), None)
    if also is not None:
        said = f"or {also.column.format}: the sample doesn't tell the day from the month"
        return TimeGuess(best.column, best.share, said)
    if best.share == 0 and not _has_text(column):
        return TimeGuess(_column(name, unit=TimeUnit.MILLISECONDS), 0.0)
    return best


def _other_order(one: TimeGuess, other: TimeGuess) -> bool:
    first, second = one.column.format or "", other.column.format or ""
    return first != second and bare(first).replace("d", "m") == bare(second).replace("d", "m")


def _has_text(column: pa.Array) -> bool:
    return not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type))


def _unit(column: pa.Array) -> TimeUnit | None:
    """None: the values are no numbers, or of no plausible time."""
    if _has_text(column):
        number = pd.to_numeric(pd.Series(words(column), dtype=object), errors="coerce")
        if not len(number) or number.isna().mean() > 0.5:
            return None
    else:
        number = pd.Series(pc.fill_null(column, 0).to_numpy(zero_copy_only=False))
    middle = float(np.nanmedian(number.to_numpy(np.float64)))
    for unit, ms in MS_PER_UNIT.items():
        if YEARS[0] <= 1970 + middle * ms / (365.25 * 86_400_000) < YEARS[1]:
            return unit
    return None


def _column(name: str, unit: TimeUnit = TimeUnit.MILLISECONDS, form: str | None = None) -> TimeColumn:
    more = {"format": form} if form is not None else {"unit": unit}
    return TimeColumn.model_validate({"column": name, **more})


def _tried(name: str, values: pa.Array, unit: TimeUnit = TimeUnit.ISO, form: str | None = None) -> TimeGuess:
    column, check = _column(name, unit, form), RowCheck(len(values))
    moments(values, column, "", check, earliest_ms=np.iinfo(np.int64).min // 2, now_ms=2**53, may_miss=True)
    given = len(values) - values.null_count
    unreadable = sum(reason != "is missing" for _, _, reason, _ in check.rejected)
    said = 'no zone is named: UTC, unless you add zone = "…"' if check.notes else ""
    return TimeGuess(column, max(given - unreadable, 0) / given if given else 0.0, said)
