"""Reading a team's files: Parquet, CSV and NDJSON, in pieces that Ray Data spreads, each row with its number.

A file that can't be read, or a line in it, is told as a `RejectedRow`; what is readable beside it is read. Text files
are read by one task each (a quoted line break may stand anywhere), Parquet by row group.
"""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rayapp.importing.domains.layout import FileLayout
from rayapp.root.publish import PublishError

FORMATS: Final = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".ndjson": "ndjson",
    ".jsonl": "ndjson",
    ".json": "ndjson",
}
COMPRESSIONS: Final = {".gz": "gzip", ".zst": "zstd"}
CHUNK_ROWS: Final = 262_144
TEXT_BLOCK_BYTES: Final = 16 << 20
SAMPLE_LINES: Final = 1000
NO_ROW: Final = -1
"""Row number of a rejection that is about a whole file."""


@dataclass(frozen=True, slots=True)
class RejectedRow:
    """A row that was not taken, or a whole file (`row` NO_ROW). Rows count from 1, a header not among them."""

    file: str
    row: int
    field: str
    reason: str
    value: str = ""


@dataclass(frozen=True, slots=True)
class Piece:
    """What one call reads: a text file, or a row group of a Parquet file."""

    path: str
    kind: str
    size: int
    columns: tuple[str, ...]
    layout: int
    row_group: int = 0
    first_row: int = 0


Chunk = tuple[pa.Table, NDArray[np.int64]]
"""Raw rows as the file has them, and the number of each in the file."""


def expand(paths: Sequence[Path]) -> list[Path]:
    """Files, and for each directory the files below it that we can read, in a stable order.

    Raises:
        PublishError: a path that does not exist, or a directory without any data file.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(
                p for p in path.rglob("*") if p.is_file() and _format(p) and not p.name.startswith((".", "_"))
            )
            if not inside:
                raise PublishError(f"{path} holds no data file ({', '.join(FORMATS)}, also .gz and .zst)")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise PublishError(f"{path} does not exist")
    return list(dict.fromkeys(found))


def plan(path: Path, layouts: Sequence[FileLayout] | None, said: str) -> tuple[list[Piece], list[RejectedRow]]:
    """The pieces of one file, with the first layout it fits; or why it can't be read. `said` names the layouts.

    Without layouts all columns are read.
    """
    kind = _format(path)
    if kind is None:
        return [], [_whole(path, f"the file's ending is none of {', '.join(FORMATS)} (also with .gz or .zst)")]
    try:
        footer = pq.ParquetFile(path) if kind == "parquet" else None
        present = frozenset(footer.schema_arrow.names) if footer else _text_columns(path, kind)
    except (OSError, pa.ArrowException, ValueError, csv.Error, EOFError) as error:
        return [], [_whole(path, f"the file can't be read: {_short(error)}")]
    if not present:
        return [], [_whole(path, "the file is empty")]
    chosen = _choose(present, layouts, said)
    if isinstance(chosen, str):
        return [], [_whole(path, chosen)]
    number, columns = chosen
    if footer is None:
        return [Piece(str(path), kind, path.stat().st_size, columns, number)], []
    pieces, first = [], 0
    for group in range(footer.num_row_groups):
        meta = footer.metadata.row_group(group)
        pieces.append(Piece(str(path), kind, meta.total_byte_size, columns, number, group, first))
        first += meta.num_rows
    return pieces, []


def _choose(
    present: frozenset[str], layouts: Sequence[FileLayout] | None, said: str
) -> tuple[int, tuple[str, ...]] | str:
    """`(number of the first layout that fits, the columns to read)`, or why none fits."""
    if layouts is None:
        return 0, tuple(sorted(present))
    lacks = []
    for number, layout in enumerate(layouts):
        missing = [str(column) for column in layout.required() if column.find(present) is None]
        if not missing:
            wanted = [column.find(present) for column in (*layout.required(), *layout.optional())]
            return number, tuple(dict.fromkeys(name for name in wanted if name))
        lacks.append(f"{said} {number + 1} lacks {', '.join(missing)}")
    return f"no layout fits: {'; '.join(lacks)}; the file has {', '.join(sorted(present))}"


def read_piece(piece: Piece) -> Iterator[Chunk | list[RejectedRow]]:
    """Chunks of at most CHUNK_ROWS rows or some MB of text, and the lines that could not be taken."""
    path, last = Path(piece.path), piece.first_row
    reader = {"parquet": _read_parquet, "ndjson": _read_ndjson}.get(piece.kind, _read_csv)
    try:
        for got in reader(piece, path):
            if not isinstance(got, list):
                last = max(last, int(got[1][-1]))
            yield got
    except (OSError, pa.ArrowException, EOFError, ValueError) as error:
        where = f"after row {last} " if last else ""
        yield [_whole(path, f"the file can't be read {where}({_short(error)})")]


def _format(path: Path) -> str | None:
    suffixes = path.suffixes[:-1] if path.suffix in COMPRESSIONS else path.suffixes
    return FORMATS.get(suffixes[-1].lower()) if suffixes else None


def _whole(path: Path, reason: str) -> RejectedRow:
    return RejectedRow(str(path), NO_ROW, "", reason)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _open(path: Path) -> pa.NativeFile:
    return pa.input_stream(str(path), compression=COMPRESSIONS.get(path.suffix))


def _read_parquet(piece: Piece, path: Path) -> Iterator[Chunk]:
    at = piece.first_row
    file = pq.ParquetFile(path)
    for batch in file.iter_batches(CHUNK_ROWS, row_groups=[piece.row_group], columns=list(piece.columns)):
        if batch.num_rows:
            yield pa.Table.from_batches([batch]), np.arange(at + 1, at + 1 + batch.num_rows)
        at += batch.num_rows


def _text_columns(path: Path, kind: str) -> frozenset[str]:
    """A header's names, or the keys of the first lines."""
    with _open(path) as file:
        head = file.read(1 << 20).decode("utf-8-sig", errors="replace")
    if kind == "ndjson":
        keys: set[str] = set()
        for line in head.splitlines()[:SAMPLE_LINES]:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            keys |= row.keys() if isinstance(row, dict) else set()
        return frozenset(keys)
    names = next(csv.reader(io.StringIO(head), delimiter=_delimiter(kind)), [])
    if len(set(names)) != len(names):
        raise ValueError(f"the header names a column twice: {', '.join(names)}")
    return frozenset(names)


def _delimiter(kind: str) -> str:
    return "\t" if kind == "tsv" else ","


def _read_csv(piece: Piece, path: Path) -> Iterator[Chunk | list[RejectedRow]]:
    """All columns as bytes: what a value means is decided row by row, not by a guess about the first block."""
    broken: list[RejectedRow] = []

    def skip(row: Any) -> str:
        said = f"has {row.actual_columns} columns, the header {row.expected_columns}"
        # pyarrow counts lines with the header, from 1.
        broken.append(RejectedRow(str(path), row.number - 1, "", f"the line {said}", str(row.text)[:80]))
        return "skip"

    with _open(path) as file:
        try:
            reader = pyarrow.csv.open_csv(
                file,
                read_options=pyarrow.csv.ReadOptions(use_threads=False, block_size=TEXT_BLOCK_BYTES),
                parse_options=pyarrow.csv.ParseOptions(
                    delimiter=_delimiter(piece.kind), newlines_in_values=True, invalid_row_handler=skip
                ),
                convert_options=pyarrow.csv.ConvertOptions(
                    column_types={name: pa.binary() for name in piece.columns},
                    include_columns=list(piece.columns),
                    strings_can_be_null=True,
                    null_values=[""],
                    quoted_strings_can_be_null=True,
                ),
            )
        except pa.ArrowInvalid as error:
            if "Empty CSV" in str(error):
                return
            raise
        read, told = 0, 0
        for batch in reader:
            if batch.num_rows:
                # The n-th good row stands behind the broken ones before it.
                number = np.arange(read + 1, read + 1 + batch.num_rows)
                for rejection in sorted(broken, key=lambda r: r.row):
                    number[number >= rejection.row] += 1
                yield pa.Table.from_batches([batch]), number
            read += batch.num_rows
            if len(broken) > told:
                yield broken[told:]
                told = len(broken)
    if len(broken) > told:
        yield broken[told:]


def _read_ndjson(piece: Piece, path: Path) -> Iterator[Chunk | list[RejectedRow]]:
    at, rest = 0, b""
    with _open(path) as file:
        while block := file.read(TEXT_BLOCK_BYTES):
            rest += block
            cut = rest.rfind(b"\n") + 1
            lines, rest = rest[:cut], rest[cut:]
            if lines.strip():
                yield from _json_block(piece, lines, at)
            at += lines.count(b"\n")
    if rest.strip():
        yield from _json_block(piece, rest, at)


def _json_block(piece: Piece, lines: bytes, at: int) -> Iterator[Chunk | list[RejectedRow]]:
    """Arrow's parser for a block that it can take whole; line by line where one line spoils it."""
    try:
        lines.decode()
        table = pyarrow.json.read_json(io.BytesIO(lines), read_options=pyarrow.json.ReadOptions(use_threads=False))
        if table.num_rows == lines.count(b"\n") + (not lines.endswith(b"\n")):
            yield _with_columns(table, piece.columns), np.arange(at + 1, at + 1 + table.num_rows)
            return
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError):
        pass
    rows, numbers, broken = [], [], []
    for number, line in enumerate(lines.splitlines(), at + 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode())
            if not isinstance(row, dict):
                raise TypeError("it is no object")
        except (ValueError, TypeError) as error:
            text = line[:80].decode(errors="replace")
            broken.append(RejectedRow(piece.path, number, "", f"the line is not a JSON object: {_reason(error)}", text))
            continue
        rows.append(row)
        numbers.append(number)
    if broken:
        yield broken
    if rows:
        columns = {name: _column(rows, name) for name in piece.columns}
        yield pa.table(columns), np.array(numbers, np.int64)


def _reason(error: Exception) -> str:
    return "invalid UTF-8" if isinstance(error, UnicodeDecodeError) else str(error).split(":")[0]


def _column(rows: list[dict[str, Any]], name: str) -> pa.Array:
    """One key of every row; where the rows disagree on its type, as text."""
    values = [row.get(name) for row in rows]
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([v if v is None or isinstance(v, str) else json.dumps(v) for v in values])


def _with_columns(table: pa.Table, names: Sequence[str]) -> pa.Table:
    rows = table.num_rows
    return pa.table({n: table[n] if n in table.column_names else pa.nulls(rows) for n in names})
