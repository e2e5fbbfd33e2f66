"""CSV and TSV files in any dialect, block by block: all columns as bytes, for a file of text has no types.

Arrow reads a block that it can take whole; where a line spoils it, or quotes enclose line breaks, Python's `csv` reads
it record by record, so that a broken line costs itself.
"""

import io
import re
from collections.abc import Iterator, Sequence
from typing import Final

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

LONGEST_RECORD_BYTES: Final = 4 * TEXT_BLOCK_BYTES
"""With more text after a quote that nothing closes, the quote is a mistake."""


def csv_header(source: ByteSource, named: Dialect, usual_delimiter: str) -> tuple[list[str], Dialect]:
    """`(names of the columns, without blanks around them; the file's dialect)`.

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
    names = [name.strip() for name in found]
    if len(set(names)) != len(names):
        raise FileProblem(f"the header names a column twice: {', '.join(names)}")
    return names, dialect


def _newline(text: str) -> str:
    return "\n" if "\n" in text or "\r" not in text else "\r"


def read_csv(piece: Piece, source: ByteSource) -> Iterator[Chunk | list[RejectedRow]]:
    """Chunks of the piece's columns, and the lines that are no records."""
    names: list[str] = []
    at = 0
    for read in _blocks(decoded(source, piece.dialect.encoding, TEXT_BLOCK_BYTES), piece.dialect):
        names, rest = (names, read) if names else _without_header(read, piece.dialect)
        block = _nulls_emptied(rest, piece.dialect)
        table = _by_arrow(block, names, piece)
        if table is not None:
            if table.num_rows:
                yield table, np.arange(at + 1, at + 1 + table.num_rows)
            at += table.num_rows
            continue
        rows, number, broken, num_records = _by_record(block, names, piece, at)
        if broken:
            yield broken
        if len(number):
            yield rows, number
        at += num_records


def _blocks(parts: Iterator[bytes], dialect: Dialect) -> Iterator[bytes]:
    """Blocks that end with a record, as far as can be seen by counting quotes."""
    quote, rest, newline = (dialect.quote or "").encode(), b"", b""
    for part in parts:
        rest += part
        if not newline:
            newline = _newline(rest[:TEXT_BLOCK_BYTES].decode("latin-1")).encode()
        cut = _cut(rest, quote, newline)
        if cut == 0 and len(rest) > LONGEST_RECORD_BYTES:
            cut = rest.rfind(newline) + 1
        if cut:
            yield rest[:cut]
            rest = rest[cut:]
    if rest:
        yield rest


def _cut(text: bytes, quote: bytes, newline: bytes) -> int:
    """The place after the last line break that stands outside of quotes."""
    if not quote or quote not in text:
        return text.rfind(newline) + 1
    byte_N = np.frombuffer(text, np.uint8)
    break_B = np.flatnonzero(byte_N == newline[0])
    quote_Q = np.flatnonzero(byte_N == quote[0])
    outside_B = np.searchsorted(quote_Q, break_B) % 2 == 0
    return int(break_B[outside_B][-1]) + 1 if outside_B.any() else 0


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
    return [name.strip() for name in found], block[size:]


def _nulls_emptied(block: bytes, dialect: Dialect) -> bytes:
    """MySQL and Postgres write a missing value as `\\N`, which an escape would make an N of."""
    if dialect.escape != "\\" or b"\\N" not in block:
        return block
    ends = re.escape((dialect.delimiter or ",").encode())
    return re.sub(rb"(?m)(^|(?<=" + ends + rb"))\\N(?=" + ends + rb"|\r?$)", b"", block)


def _by_arrow(block: bytes, names: Sequence[str], piece: Piece) -> pa.Table | None:
    """The block's rows; None where it is not one whole record a line, or the dialect is none of Arrow's."""
    dialect = piece.dialect
    if dialect.blanks or (dialect.quote and not dialect.escape and b'\\"' in block):
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


def _num_lines(block: bytes) -> int:
    """Lines that are not empty."""
    byte_N = np.frombuffer(block, np.uint8)
    breaks_N = (byte_N == 0x0A) | (byte_N == 0x0D)
    return int((~breaks_N & np.r_[True, breaks_N[:-1]]).sum())


def _by_record(
    block: bytes, names: Sequence[str], piece: Piece, at: int
) -> tuple[pa.Table, NDArray[np.int64], list[RejectedRow], int]:
    """`(rows, their numbers, broken lines, number of both)`."""
    place = [names.index(name) for name in piece.columns]
    kept: list[list[str]] = []
    numbers: list[int] = []
    broken: list[RejectedRow] = []
    number = at
    for number, record in enumerate(records(_lines(block), piece.dialect, len(names)), at + 1):
        if isinstance(record, Broken):
            text = record.text[:80].encode(UTF8, "surrogateescape").decode(errors="replace").strip("\r\n")
            broken.append(RejectedRow(piece.path, number, "", record.reason, text))
        else:
            kept.append(record)
            numbers.append(number)
    columns = {name: _bytes([row[k] for row in kept]) for name, k in zip(piece.columns, place, strict=True)}
    return pa.table(columns), np.array(numbers, np.int64), broken, number - at


def _bytes(values: list[str]) -> pa.Array:
    given = [value or None for value in values]
    try:
        return pa.array(given, pa.string()).cast(pa.binary())
    except UnicodeEncodeError:
        return pa.array([None if v is None else v.encode(UTF8, "surrogateescape") for v in given], pa.binary())
