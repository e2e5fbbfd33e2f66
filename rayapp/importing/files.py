"""Reading a team's files: Parquet, CSV, NDJSON, JSON arrays, in pieces that Ray Data spreads, each row with its number.

A file that can't be read, or a line in it, is told as a `RejectedRow`; what is readable beside it is read. Text files
are read by one task each (a quoted line break may stand anywhere), Parquet by row group.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayapp.importing.csv_files import csv_header, read_csv
from rayapp.importing.dialects import Dialect
from rayapp.importing.domains.layout import FileLayout
from rayapp.importing.json_files import json_keys, read_json
from rayapp.importing.pieces import (
    CHUNK_ROWS,
    NO_ROW,
    READ_ERRORS,
    Chunk,
    FileProblem,
    Piece,
    RejectedRow,
    whole_file,
    why_unreadable,
)
from rayapp.root.publish import PublishError

__all__ = ["NO_ROW", "Chunk", "Piece", "RejectedRow", "expand", "plan", "read_piece"]

FORMATS: Final = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".ndjson": "json",
    ".jsonl": "json",
    ".json": "json",
}
COMPRESSIONS: Final = {".gz": "gzip", ".zst": "zstd"}
LONGEST_NAMES: Final = 1000
EMPTY: Final = "the file is empty"
NO_VALUE: Final = "__HIVE_DEFAULT_PARTITION__"
"""How a folder is called where the value is missing."""


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


def plan(
    path: Path, layouts: Sequence[FileLayout] | None, said: str, *, dialect: Dialect | None = None
) -> tuple[list[Piece], list[RejectedRow]]:
    """The pieces of one file, with the first layout it fits; or why it can't be read. `said` names the layouts.

    Without layouts all columns of the file itself are read, and no folder's; `dialect` says how it is written.
    """
    kind = _format(path)
    if kind is None:
        return [], [whole_file(path, f"the file's ending is none of {', '.join(FORMATS)} (also with .gz or .zst)")]
    try:
        footer = pq.ParquetFile(path) if kind == "parquet" else None
        chosen = _choose(path, kind, layouts, said, dialect or Dialect(), footer)
    except READ_ERRORS as error:
        return [], [whole_file(path, f"the file can't be read: {why_unreadable(error, kind)}")]
    return ([], [whole_file(path, chosen)]) if isinstance(chosen, str) else (_pieces(path, chosen, footer), [])


def _choose(
    path: Path,
    kind: str,
    layouts: Sequence[FileLayout] | None,
    said: str,
    dialect: Dialect,
    footer: pq.ParquetFile | None,
) -> Piece | str:
    """The whole file as a piece, by the first layout that fits, or why none fits."""
    if layouts is None:
        present, written = _columns(path, kind, dialect, footer)
        piece = Piece(str(path), kind, 0, tuple(sorted(present)), 0, dialect=written)
        return piece if present else EMPTY
    folders = folder_columns(path)
    read = {named: _columns(path, kind, named, footer) for named in dict.fromkeys(one.dialect for one in layouts)}
    lacks = []
    for number, layout in enumerate(layouts):
        present, written = read[layout.dialect]
        if not present:
            return EMPTY
        everywhere = present | folders.keys()
        missing = [str(column) for column in layout.required() if column.find(everywhere) is None]
        if missing:
            lacks.append(f"{said} {number + 1} lacks {', '.join(missing)}")
            continue
        wanted = [column.find(everywhere) for column in (*layout.required(), *layout.optional())]
        names = tuple(dict.fromkeys(name for name in wanted if name))
        own = tuple(name for name in names if name in present)
        outside = tuple((name, folders[name]) for name in names if name not in present)
        return Piece(str(path), kind, 0, own, number, dialect=written, folders=outside)
    has = "".join(c if c.isprintable() else "·" for c in ", ".join(sorted(everywhere))[:LONGEST_NAMES])
    return f"no layout fits: {'; '.join(lacks)}; the file has {has}"


def _columns(path: Path, kind: str, named: Dialect, footer: pq.ParquetFile | None) -> tuple[frozenset[str], Dialect]:
    if footer:
        names = footer.schema_arrow.names
        if len(set(names)) != len(names):
            raise FileProblem(f"it names a column twice: {', '.join(names)}")
        return frozenset(names), named
    with open_file(path) as source:
        if kind == "json":
            return json_keys(source, named.encoding), named
        header, written = csv_header(source, named, "\t" if kind == "tsv" else ",")
        return frozenset(header), written


def _pieces(path: Path, piece: Piece, footer: pq.ParquetFile | None) -> list[Piece]:
    if footer is None:
        return [replace(piece, size=path.stat().st_size)]
    pieces, first = [], 0
    for group in range(footer.num_row_groups):
        meta = footer.metadata.row_group(group)
        pieces.append(replace(piece, size=meta.total_byte_size, row_group=group, first_row=first))
        first += meta.num_rows
    return pieces


def folder_columns(path: Path) -> dict[str, str]:
    """Columns that stand in the path, as Hive and Spark write them: `dt=2026-11-01/action=view/part-0.parquet`."""
    named = (part.partition("=") for part in path.parts[:-1] if "=" in part)
    return {name: unquote(value) for name, _, value in named if name}


def read_piece(piece: Piece) -> Iterator[Chunk | list[RejectedRow]]:
    """Chunks of at most CHUNK_ROWS rows or some MB of text, and the lines that could not be taken."""
    path, last = Path(piece.path), piece.first_row
    try:
        for got in _read(piece, path):
            if isinstance(got, list):
                yield got
                continue
            last = max(last, int(got[1][-1]))
            yield _with_folders(got[0], piece), got[1]
    except READ_ERRORS as error:
        where = f"after row {last} " if last else ""
        yield [whole_file(path, f"the file can't be read {where}({why_unreadable(error, piece.kind)})")]


def _read(piece: Piece, path: Path) -> Iterator[Chunk | list[RejectedRow]]:
    if piece.kind == "parquet":
        yield from _read_parquet(piece, path)
        return
    with open_file(path) as source:
        yield from (read_json if piece.kind == "json" else read_csv)(piece, source)


def _with_folders(table: pa.Table, piece: Piece) -> pa.Table:
    """A folder's value has no type, as a CSV file's: bytes."""
    for name, value in piece.folders:
        scalar = pa.scalar(None if value == NO_VALUE else value.encode(), pa.binary())
        table = table.append_column(name, pa.repeat(scalar, table.num_rows))
    return table


def _format(path: Path) -> str | None:
    suffixes = path.suffixes[:-1] if path.suffix in COMPRESSIONS else path.suffixes
    return FORMATS.get(suffixes[-1].lower()) if suffixes else None


def open_file(path: Path) -> Any:
    return pa.input_stream(str(path), compression=COMPRESSIONS.get(path.suffix))


def _read_parquet(piece: Piece, path: Path) -> Iterator[Chunk]:
    at = piece.first_row
    file = pq.ParquetFile(path)
    for batch in file.iter_batches(CHUNK_ROWS, row_groups=[piece.row_group], columns=list(piece.columns)):
        if batch.num_rows:
            yield pa.Table.from_batches([batch]), np.arange(at + 1, at + 1 + batch.num_rows)
        at += batch.num_rows
