"""First half of an import: files are read, checked and laid down by bucket in a staging area.

A staged file is Arrow IPC with one record batch per bucket, so the second half reads a bucket out of every file with
one seek each, and no shuffle has to hold the log in memory.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from rayapp.contracts.hashing import hash64_column
from rayapp.contracts.json_values import to_json
from rayapp.importing.columns import RowCheck
from rayapp.importing.files import NO_ROW, Chunk, Piece, RejectedRow, read_piece
from rayapp.root.logs import take

TASK_BYTES: Final = 64 << 20
"""Pieces are grouped into tasks of about this size, so that ten thousand small files are not ten thousand tasks."""
STAGE_ROWS: Final = 500_000

Reader = Callable[[pa.Table, int], tuple[pa.Table, RowCheck]]
"""(raw rows, number of the layout) -> (good rows, what is wrong with the others)"""

SOURCE_FIELDS: Final = [pa.field("source_file", pa.int32()), pa.field("source_row", pa.int64())]


@dataclass(frozen=True, slots=True)
class Staging:
    """One import's place for half-done work."""

    directory: Path
    num_buckets: int


@dataclass(slots=True)
class Notes:
    """What was read otherwise than it is written, or left empty: how many values, and one of them."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, RejectedRow] = field(default_factory=dict)

    def __iadd__(self, other: "Notes") -> "Notes":
        self.counts += other.counts
        self.examples = other.examples | self.examples
        return self


def group(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """Pieces in their order, in groups of about TASK_BYTES."""
    tasks: list[list[Piece]] = []
    size = TASK_BYTES
    for piece in pieces:
        if size + piece.size > TASK_BYTES:
            tasks.append([])
            size = 0
        tasks[-1].append(piece)
        size += piece.size
    return tasks


def read_checked(
    pieces: Sequence[Piece], reader: Reader, notes: Notes
) -> Iterator[tuple[Piece, pa.Table | None, list[RejectedRow]]]:
    """Good rows with `source_row`, and the rejections, chunk by chunk; `notes` counts what was read otherwise than it
    is written."""
    for piece in pieces:
        for got in read_piece(piece):
            if isinstance(got, list):
                yield piece, None, got
            else:
                yield piece, *_check(piece, got, reader, notes)


def _check(piece: Piece, chunk: Chunk, reader: Reader, notes: Notes) -> tuple[pa.Table, list[RejectedRow]]:
    raw, number_N = chunk
    rows, check = reader(raw, piece.layout)
    for said, (n, value) in check.examples.items():
        notes.examples.setdefault(said, RejectedRow(piece.path, int(number_N[n]), "", said, value))
    notes.counts += check.notes
    rejected = [RejectedRow(piece.path, int(number_N[n]), *rest) for n, *rest in check.rejected]
    return rows.append_column(SOURCE_FIELDS[1], pa.array(number_N[check.good_N])), rejected


def stage_task(
    staging: Staging, kind: str, number: int, pieces: Sequence[Piece], files: Sequence[str], reader: Reader
) -> dict[str, Any]:
    """Reads and checks the pieces of one task, writes its staged files; returns counts, and one row of each reason."""
    file_number = {path: n for n, path in enumerate(files)}
    pending: list[pa.Table] = []
    staged: list[str] = []
    read = rejected_rows = 0
    notes = Notes()
    with QuarantineFile(staging.directory / f"rejected-{kind}-{number:05d}.ndjson") as quarantine:
        for piece, rows, rejected in read_checked(pieces, reader, notes):
            quarantine.write(rejected)
            lost = sum(r.row != NO_ROW for r in rejected)
            rejected_rows += lost
            read += lost
            if rows is None or not rows.num_rows:
                continue
            read += rows.num_rows
            source = pa.array(np.full(rows.num_rows, file_number[piece.path], np.int32))
            pending.append(rows.append_column(SOURCE_FIELDS[0], source))
            if sum(t.num_rows for t in pending) >= STAGE_ROWS:
                staged.append(_write(staging, kind, number, len(staged), pa.concat_tables(pending)))
                pending = []
        if pending:
            staged.append(_write(staging, kind, number, len(staged), pa.concat_tables(pending)))
    return {"read": read, "rejected": rejected_rows, **quarantine.result, "notes": to_json(notes), "staged": staged}


def _write(staging: Staging, kind: str, task: int, n: int, rows: pa.Table) -> str:
    bucket = (hash64_column(rows["user_id"]) % np.uint64(staging.num_buckets)).astype(
        np.uint16
    )  # so small that sorting is one pass
    order = np.argsort(bucket, kind="stable")
    bounds = np.searchsorted(bucket[order], np.arange(staging.num_buckets + 1))
    rows = take(rows, order).combine_chunks()
    name = f"{kind}-{task:05d}-{n:03d}.arrow"
    temporary = staging.directory / f".{name}"
    with (
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, rows.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer,
    ):
        for a, b in pairwise(bounds):
            batches = rows.slice(a, b - a).to_batches()
            writer.write_batch(batches[0] if batches else pa.RecordBatch.from_pylist([], schema=rows.schema))
    temporary.replace(staging.directory / name)
    return name


def read_staged(staging: Staging, names: Sequence[str], bucket: int) -> list[pa.Table]:
    """One bucket's rows out of each staged file."""
    tables = []
    for name in names:
        with pa.OSFile(str(staging.directory / name), "rb") as source:
            batch = pa.ipc.open_file(source).get_batch(bucket)
        if batch.num_rows:
            tables.append(pa.Table.from_batches([batch]))
    return tables


class QuarantineFile:
    """NDJSON of rejections, written while the rows stream by; counts the reasons."""

    def __init__(self, path: Path) -> None:
        self._path, self._temporary = path, path.with_name(f".{path.name}")
        self.reasons: Counter[str] = Counter()
        self.examples: dict[str, RejectedRow] = {}

    def __enter__(self) -> "QuarantineFile":
        self._file = self._temporary.open("w", encoding="utf-8")
        return self

    def write(self, rejected: Sequence[RejectedRow]) -> None:
        for rejection in rejected:
            whole = rejection.row == NO_ROW
            reason = rejection.reason if whole else f"{rejection.field} {rejection.reason}".strip()
            self.reasons[reason] += 1
            self.examples.setdefault(reason, rejection)
            line = {k: v for k, v in to_json(rejection).items() if not (whole and k in {"row", "field", "value"})}
            self._file.write(json.dumps(line) + "\n")

    @property
    def result(self) -> dict[str, Any]:
        """What a task hands back of it."""
        return {"reasons": self.reasons, "examples": {said: to_json(row) for said, row in self.examples.items()}}

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._temporary.replace(self._path)
