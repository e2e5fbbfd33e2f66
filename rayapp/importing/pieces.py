"""What reading a file is made of: the pieces of a file, chunks of raw rows with their numbers, rows not taken."""

import gzip
import lzma
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rayapp.importing.dialects import Dialect

CHUNK_ROWS: Final = 262_144
TEXT_BLOCK_BYTES: Final = 16 << 20
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
    dialect: Dialect = field(default_factory=Dialect)
    """How a CSV file is written; of the others the encoding alone."""
    folders: tuple[tuple[str, str], ...] = ()
    """Columns that stand in the path, as `action=view`: name and value."""


Chunk = tuple[pa.Table, NDArray[np.int64]]
"""Raw rows as the file has them, and the number of each in the file."""

READ_ERRORS: Final = (OSError, EOFError, ValueError, RecursionError, MemoryError, pa.ArrowException, zlib.error)
"""What reading a damaged file raises."""


def whole_file(path: Path, reason: str) -> RejectedRow:
    return RejectedRow(str(path), NO_ROW, "", reason)


def why_unreadable(error: BaseException, kind: str) -> str:
    """A library's error in a person's words; the libraries' own say nothing about the file."""
    if isinstance(error, FileProblem):
        return str(error)
    if isinstance(error, MemoryError):
        return "it does not fit into memory; split it, or write a JSON array as NDJSON"
    if isinstance(error, OSError) and error.errno:
        return (error.strerror or "the system can't read it").lower()
    if isinstance(error, EOFError | gzip.BadGzipFile | zlib.error | lzma.LZMAError):
        return "its compressed data end too soon or are damaged"
    if kind == "parquet":
        return "it is no Parquet file, or a part of it is missing or damaged"
    return "its data are damaged, or compressed otherwise than its ending says"


class FileProblem(ValueError):
    """What is wrong with a file as a whole, in words."""
