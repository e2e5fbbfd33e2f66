"""CSV and TSV files in any dialect, block by block: all columns as bytes, for a file of text has no types.

Arrow reads a block that it can take whole; where a line spoils it, or quotes enclose line breaks, Python's `csv` reads
it record by record, so that a broken line costs itself.
"""

import io
import re
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

from rayapp.importing.dialects import (
    SAMPLE_BYTES,
    UTF8,
    Broken,
    ByteSource,
    Dialect,
    decoded,
    lines_of,
    recognise,
    records,
)
from rayapp.importing.pieces import TEXT_BLOCK_BYTES, Chunk, FileProblem, Piece, RejectedRow


def csv_header(source: ByteSource, named: Dialect, usual_delimiter: str) -> tuple[list[str], Dialect]:
    """`(names of the columns that have one, without blanks around them; the file's dialect)`.

    Raises:
        FileProblem: a name stands there twice.
    """
    head = next(decoded(source, named.encoding, SAMPLE_BYTES), b"")
    sample = head.decode(UTF8, errors="replace")
    if len(head) >= SAMPLE_BYTES:  # the last line may be cut
        sample = sample[: sample.rfind(_newline(sample)) + 1] or sample
    dialect = recognise(sample, named, usual_delimiter)
    found = next(records(lines_of(sample), dialect), [])
    if isinstance(found, Broken):
        raise FileProblem(f"the header can't be read: {found.reason}")
    names = [name.strip() for name in found if name.strip()]
    if len(set(names)) != len(names):
        raise FileProblem(f"the header names a column twice: {', '.join(names)}")
    return names, dialect


def _newline(text: str) -> str:
    return "\n" if "\n" in text or "\r" not in text else "\r"


def read_csv(piece: Piece, source: ByteSource) -> Iterator[Chunk | list[RejectedRow]]:
    """Chunks of the piece's columns, and the lines that are no records."""
    names: list[str] = []
    at, rest = 0, b""
    for part, is_end in _marked(decoded(source, piece.dialect.encoding, TEXT_BLOCK_BYTES)):
        rest += part
        cut = len(rest) if is_end else rest.rfind(_newline(rest[:SAMPLE_BYTES].decode("latin-1")).encode()) + 1
        block, rest = rest[:cut], rest[cut:]
        if not names:
            names, block = _without_header(block, piece.dialect)
        block = _nulls_emptied(block, piece.dialect)
        table = _by_arrow(block, names, piece)
        if table is not None:
            if table.num_rows:
                yield table, np.arange(at + 1, at + 1 + table.num_rows)
            at += table.num_rows
            continue
        rows, number, broken, behind = _by_record(block, names, piece, at, is_end=is_end)
        if broken:
            yield broken
        if len(number):
            yield rows, number
        at += len(number) + len(broken)
        rest = behind + rest


def _marked(parts: Iterator[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Each part, and an empty one at the end."""
    yield from ((part, False) for part in parts)
    yield b"", True


def _lines(block: bytes) -> list[str]:
    return lines_of(block.decode(UTF8, "surrogateescape"))


def _without_header(block: bytes, dialect: Dialect) -> tuple[list[str], bytes]:
    """`(names of the columns, what is behind them)`."""
    lines, behind = _lines(block[:SAMPLE_BYTES]), 0

    def told(num_lines: int) -> None:
        nonlocal behind
        behind = num_lines

    found = next(records(lines, dialect, told=told), None)
    if found is None or isinstance(found, Broken):
        return [], b""
    size = len("".join(lines[:behind]).encode(UTF8, "surrogateescape"))
    return [name.strip().encode(UTF8, "surrogateescape").decode(errors="replace") for name in found], block[size:]


def _nulls_emptied(block: bytes, dialect: Dialect) -> bytes:
    """MySQL and Postgres write a missing value as `\\N`, which an escape would make an N of."""
    if dialect.escape != "\\" or b"\\N" not in block:
        return block
    ends = re.escape((dialect.delimiter or ",").encode())
    return re.sub(rb"(?m)(^|(?<=" + ends + rb"))\\N(?=" + ends + rb"|\r?$)", b"", block)


def _by_arrow(block: bytes, names: Sequence[str], piece: Piece) -> pa.Table | None:
    """The block's rows; None where it is not one whole record a line, or the dialect is none of Arrow's."""
    dialect = piece.dialect
    if dialect.blanks or _has_odd_quote(block, dialect):
        return None
    if not block.strip(b"\r\n"):
        return pa.table({name: pa.nulls(0, pa.binary()) for name in piece.columns})
    try:
        table = pyarrow.csv.read_csv(
            io.BytesIO(block),
            read_options=pyarrow.csv.ReadOptions(
                use_threads=False, block_size=max(len(block), 1), column_names=list(names)
            ),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=dialect.delimiter or ",",
                quote_char=dialect.quote or False,
                escape_char=dialect.escape or False,
                double_quote=not dialect.escape,
                newlines_in_values=True,
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types={name: pa.binary() for name in piece.columns},
                include_columns=list(piece.columns),
                strings_can_be_null=True,
                null_values=[""],
                quoted_strings_can_be_null=True,
            ),
        )
    except pa.ArrowInvalid:
        return None
    return table if table.num_rows == _num_lines(block) else None


def _has_odd_quote(block: bytes, dialect: Dialect) -> bool:
    """Whether something follows a quoted value; Arrow would read on over it."""
    quote, delimiter = (re.escape((text or "").encode()) for text in (dialect.quote, dialect.delimiter))
    if not quote or dialect.escape or quote not in block:
        return False
    other = rb"[^" + quote + rb"]"
    quoted = rb"(?:^|[\r\n]|" + delimiter + rb")" + quote + rb"(?:" + other + rb"++|" + quote + quote + rb")*+" + quote
    return re.search(quoted + rb"(?!" + delimiter + rb"|[\r\n]|\Z)", block) is not None


def _num_lines(block: bytes) -> int:
    """Lines that are not empty."""
    byte_N = np.frombuffer(block, np.uint8)
    breaks_N = (byte_N == 0x0A) | (byte_N == 0x0D)
    return int((~breaks_N & np.r_[True, breaks_N[:-1]]).sum())


def _by_record(
    block: bytes, names: Sequence[str], piece: Piece, at: int, *, is_end: bool
) -> tuple[pa.Table, NDArray[np.int64], list[RejectedRow], bytes]:
    """`(rows, their numbers, broken lines, what is behind the last record that ends)`."""
    place = [names.index(name) for name in piece.columns]
    lines, behind = _lines(block), 0
    kept: list[list[str]] = []
    numbers: list[int] = []
    broken: list[RejectedRow] = []

    def told(num_lines: int) -> None:
        nonlocal behind
        behind = num_lines

    for number, record in enumerate(records(lines, piece.dialect, len(names), told, is_end=is_end), at + 1):
        if isinstance(record, Broken):
            text = record.text[:80].encode(UTF8, "surrogateescape").decode(errors="replace").strip("\r\n")
            broken.append(RejectedRow(piece.path, number, "", record.reason, text))
        else:
            kept.append(record)
            numbers.append(number)
    columns = {name: _bytes([row[k] for row in kept]) for name, k in zip(piece.columns, place, strict=True)}
    rest = "".join(lines[behind:]).encode(UTF8, "surrogateescape")
    return pa.table(columns), np.array(numbers, np.int64), broken, rest


def _bytes(values: list[str]) -> pa.Array:
    given = [value or None for value in values]
    try:
        return pa.array(given, pa.string()).cast(pa.binary())
    except UnicodeEncodeError:
        return pa.array([None if v is None else v.encode(UTF8, "surrogateescape") for v in given], pa.binary())
