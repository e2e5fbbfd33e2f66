"""NDJSON, and files that are one JSON array: what a value is, the file says and no guess does.

Arrow reads a block of lines that it can take whole; where a line spoils it, Python's `json` reads line by line.
"""

import io
import json
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.json

from rayapp.importing.dialects import SAMPLE_BYTES, UTF8, ByteSource, decoded
from rayapp.importing.pieces import CHUNK_ROWS, TEXT_BLOCK_BYTES, Chunk, FileProblem, Piece, RejectedRow

SAMPLE_LINES: Final = 1000
NEXT_OBJECT: Final = re.compile(r"(?:\}\s*,|,\s*\n)\s*(?=\{)")
BETWEEN: Final = re.compile(r"[\s,]*")
NO_OBJECT: Final = "the line is not a JSON object"
EXACT: Final = 2.0**53
_Read = tuple[dict[str, Any] | str, str | bytes]
"""An object, or why it is none; and its text."""
KINDS: Final = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


def json_keys(source: ByteSource, encoding: str | None) -> frozenset[str]:
    """The keys of the first objects.

    Raises:
        FileProblem: there is something, and no object among it.
    """
    head = next(decoded(source, encoding, SAMPLE_BYTES), b"")
    keys = frozenset(key for row in _first_rows(head) for key in row)
    if not keys and head.strip(b" \t\r\n[]"):
        raise FileProblem("no line at its beginning is a JSON object; write an object a line, or one array of objects")
    return keys


def _first_rows(head: bytes) -> list[dict[str, Any]]:
    if is_array(head):
        found: Iterator[_Read] = _elements(head.decode(UTF8, errors="replace"))
    else:
        found = ((_row(line), "") for line in head.split(b"\n"))
    return [row for row, _ in islice(found, SAMPLE_LINES) if isinstance(row, dict)]


def is_array(head: bytes) -> bool:
    """Whether a file that begins so is one array of objects."""
    text = head[:SAMPLE_BYTES].lstrip()
    return text[:1] == b"[" and text[1:].lstrip()[:1] in (b"{", b"]", b"")


def read_json(piece: Piece, source: ByteSource) -> Iterator[Chunk | list[RejectedRow]]:
    """Chunks of the piece's columns, and what is no object."""
    at, rest = 0, b""
    blocks = decoded(source, piece.dialect.encoding, TEXT_BLOCK_BYTES)
    types: dict[str, pa.DataType] | None = None
    for block in blocks:
        if types is None:
            if is_array(block):
                yield from _array(piece, b"".join((block, *blocks)))
                return
            types = _types(_first_rows(block[:SAMPLE_BYTES]), piece.columns)
        rest += block
        cut = rest.rfind(b"\n") + 1
        lines, rest = rest[:cut], rest[cut:]
        if lines.strip():
            yield from _lines(piece, lines, at, types)
        at += lines.count(b"\n")
    if rest.strip():
        yield from _lines(piece, rest, at, types or {})


def _types(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> dict[str, pa.DataType]:
    """The Arrow type of the columns of which the first rows have one kind of value."""
    found: dict[str, pa.DataType] = {}
    for name in columns:
        values = [row[name] for row in rows if row.get(name) is not None]
        inside = [v for value in values if isinstance(value, list) for v in value if v is not None]
        if not values:  # typed once there is one
            found[name] = pa.string()
        kinds, kinds_inside = {type(v) for v in values}, {type(v) for v in inside}
        if len(kinds) == 1 and (kind := KINDS.get(next(iter(kinds)))) is not None:
            found[name] = kind
        elif kinds == {list} and len(kinds_inside) == 1 and (kind := KINDS.get(next(iter(kinds_inside)))) is not None:
            found[name] = pa.list_(kind)
    return found


def _lines(piece: Piece, lines: bytes, at: int, types: dict[str, pa.DataType]) -> Iterator[Chunk | list[RejectedRow]]:
    num_lines = lines.count(b"\n") + (not lines.endswith(b"\n"))
    table = _by_arrow(piece, lines, types)
    if table is not None and table.num_rows == num_lines:
        yield table, np.arange(at + 1, at + 1 + num_lines)
        return
    found = ((number, (_row(line), line)) for number, line in enumerate(lines.split(b"\n"), at + 1) if line.strip())
    yield from _chunk(piece, found)


def _by_arrow(piece: Piece, lines: bytes, types: dict[str, pa.DataType]) -> pa.Table | None:
    """The block's rows; None where a value is of another type than those before it, or something is no JSON."""
    if len(types) < len(piece.columns):
        return None
    try:
        lines.decode()
        table = pyarrow.json.read_json(
            io.BytesIO(lines),
            read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=len(lines)),
            parse_options=pyarrow.json.ParseOptions(
                explicit_schema=pa.schema([(name, types[name]) for name in piece.columns]),
                unexpected_field_behavior="ignore",
            ),
        )
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError):
        return None
    return table.select(list(piece.columns))


def _array(piece: Piece, text: bytes) -> Iterator[Chunk | list[RejectedRow]]:
    elements = enumerate(_elements(text.decode(UTF8, errors="surrogateescape")), 1)
    while some := list(islice(elements, CHUNK_ROWS)):
        yield from _chunk(piece, iter(some))


def _elements(text: str) -> Iterator["_Read"]:
    """The objects of an array; behind one that is broken, reading goes on with the next that begins."""
    decoder = json.JSONDecoder()
    at = text.index("[") + 1
    while True:
        between = BETWEEN.match(text, at)
        at = between.end() if between else at
        if at >= len(text) or text[at] == "]":
            return
        try:
            value, end = decoder.raw_decode(text, at)
            yield _checked(value, text[at:end]), text[at:end]
        except (ValueError, RecursionError) as error:
            following = NEXT_OBJECT.search(text, at)
            end = following.end() if following else len(text)
            yield _reason(error), text[at:end]
        at = end


def _row(line: bytes) -> dict[str, Any] | str:
    """The object that a line is, or why it is none."""
    try:
        text = line.decode()
        return _checked(json.loads(text), text)
    except (ValueError, RecursionError) as error:
        return _reason(error)


def _checked(value: Any, text: str) -> dict[str, Any] | str:
    if not isinstance(value, dict):
        return f"{NO_OBJECT}: it is a single value or a list"
    if "\\u" in text or not text.isascii():
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return f"{NO_OBJECT}: it holds half of a character (a lone surrogate)"
    return value


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"{NO_OBJECT}: invalid UTF-8"
    if isinstance(error, RecursionError):
        return f"{NO_OBJECT}: it is nested too deep"
    return f"{NO_OBJECT}: a comma, a quote or a bracket is missing or is one too many"


def _chunk(piece: Piece, read: Iterator[tuple[int, "_Read"]]) -> Iterator[Chunk | list[RejectedRow]]:
    rows, numbers, broken = [], [], []
    for number, (row, text) in read:
        if isinstance(row, dict):
            rows.append(row)
            numbers.append(number)
        else:
            start = text[:80] if isinstance(text, bytes) else text[:80].encode(UTF8, "surrogateescape")
            broken.append(RejectedRow(piece.path, number, "", row, start.decode(errors="replace")))
    if broken:
        yield broken
    if rows:
        yield pa.table({name: _column(rows, name) for name in piece.columns}), np.array(numbers, np.int64)


def _column(rows: list[dict[str, Any]], name: str) -> pa.Array:
    """One key of every row; where the rows disagree on its type, as text."""
    values = [row.get(name) for row in rows]
    if len({type(v) for v in values if v is not None}) < 2:
        try:
            return pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
            pass
    return pa.array([v if v is None or isinstance(v, str) else _text(v) for v in values], pa.string())


def _text(value: Any) -> str:
    if isinstance(value, float) and value.is_integer() and abs(value) < EXACT:
        value = int(value)  # one id in `12` and `12.0`
    return json.dumps(value)
