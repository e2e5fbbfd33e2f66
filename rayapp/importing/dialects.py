"""How a text file is written: encoding, what parts its columns, what encloses and what escapes its values.

What a layout does not name is recognised from the beginning of the file: another dialect than the usual one is taken
only where it reads more rows of the sample whole.
"""

import codecs
import csv
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

SAMPLE_BYTES: Final = 1 << 20
SAMPLE_LINES: Final = 3000
USUAL_QUOTE: Final = '"'
DELIMITERS: Final = (",", ";", "\t", "|", "\x01")
UTF8: Final = "utf-8"
HALF: Final = "\udcff"
"""Stands for bytes that are no text; it has no UTF-8 of its own, so it can't pass for text later."""
BYTE_ORDER_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
OTHER_ENCODING: Final = "cp1252"
"""What a file that is not UTF-8 most often is."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """What a layout names of it; None: as the file's ending and its beginning say."""

    delimiter: str | None = None
    quote: str | None = None
    """"": no value is enclosed."""
    escape: str | None = None
    """"": a quote inside quotes is doubled."""
    encoding: str | None = None
    blanks: bool = False
    """Whether blanks after a delimiter belong to no value; recognised from the header, never named."""

    def reader(self, lines: Iterator[str]) -> Any:
        """Python's reader of records, strict about quotes."""
        return csv.reader(
            lines,
            delimiter=self.delimiter or ",",
            quotechar=self.quote or None,
            quoting=csv.QUOTE_MINIMAL if self.quote else csv.QUOTE_NONE,
            escapechar=self.escape or None,
            doublequote=not self.escape,
            skipinitialspace=self.blanks,
            strict=True,
        )


class ByteSource(Protocol):
    """What `decoded` reads from."""

    def read(self, size: int, /) -> bytes: ...


def is_encoding(name: str) -> bool:
    """Whether Python knows it as an encoding of text."""
    try:
        "a".encode(name)  # of no text any name would do
    except (LookupError, ValueError):
        return False
    return True


def encoding_of(head: bytes, named: str | None) -> str:
    """The named one, or the byte order mark's, or UTF-8."""
    marked = next((name for mark, name in BYTE_ORDER_MARKS if head.startswith(mark)), None)
    if named is None or codecs.lookup(named).name == UTF8:
        return marked or UTF8
    return named


def decoded(source: ByteSource, named: str | None, size: int) -> Iterator[bytes]:
    """Blocks of UTF-8 of a file in any encoding, without a byte order mark. Bytes that are no text become ones that
    are not UTF-8 either, and so cost their row."""
    head = source.read(size)
    encoding = encoding_of(head, named)
    if codecs.lookup(encoding).name == UTF8 or encoding == "utf-8-sig":
        yield head.removeprefix(codecs.BOM_UTF8)
        while block := source.read(size):
            yield block
        return
    codecs.register_error("half", _half)
    decoder = codecs.getincrementaldecoder(encoding)("half")
    text = decoder.decode(head).removeprefix("\ufeff")
    yield text.encode(UTF8, "surrogatepass")
    while block := source.read(size):
        yield decoder.decode(block).encode(UTF8, "surrogatepass")
    yield decoder.decode(b"", final=True).encode(UTF8, "surrogatepass")


def _half(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return HALF, error.end


def recognised_encoding(head: bytes) -> str | None:
    """What `init-domain` writes: nothing for UTF-8."""
    marked = encoding_of(head, None)
    if marked != UTF8:
        return None if marked == "utf-8-sig" else marked
    try:
        codecs.getincrementaldecoder(UTF8)().decode(head)
    except UnicodeDecodeError:
        return OTHER_ENCODING
    return None


def recognise(sample: str, named: Dialect, usual_delimiter: str) -> Dialect:
    """The dialect of a file that begins so: what is named stays, and the rest is the usual unless another one reads
    more rows of the sample whole."""
    usual = Dialect(
        delimiter=named.delimiter or usual_delimiter,
        quote=USUAL_QUOTE if named.quote is None else named.quote,
        escape=named.escape or "",
        encoding=named.encoding,
    )
    header, _, _ = sample.partition("\n")
    delimiters = [usual.delimiter, *(d for d in DELIMITERS if d in header and named.delimiter is None)]
    may_escape = named.escape is None and usual.quote and f"\\{usual.quote}" in sample
    escapes = ["", "\\"] if may_escape else [usual.escape]
    candidates = [replace(usual, delimiter=d, escape=e) for d in dict.fromkeys(delimiters) for e in escapes]
    candidates = [replace(c, blanks=_blank_after(header, c)) for c in candidates]
    lines = lines_of(sample)[:SAMPLE_LINES]
    best, most = candidates[0], _fit(lines, candidates[0])
    for candidate in candidates[1:]:
        if most[:2] == (True, 1.0):
            break
        if (fit := _fit(lines, candidate)) > most:
            best, most = candidate, fit
    return best


def _fit(lines: list[str], dialect: Dialect) -> tuple[bool, float, int]:
    """Whether there is more than one column, the share of whole rows, and the number of columns."""
    found = list(records(lines, dialect, is_end=len(lines) < SAMPLE_LINES))
    width = len(found[0]) if found and not isinstance(found[0], Broken) else 0
    whole = sum(not isinstance(record, Broken) and len(record) == width for record in found[1:])
    return width > 1, whole / len(found[1:]) if found[1:] else float(width > 0), width


def _blank_after(header: str, dialect: Dialect) -> bool:
    """Whether the header has a blank after every delimiter."""
    names = header.split(dialect.delimiter or ",")
    return len(names) > 1 and dialect.delimiter != " " and all(name.startswith(" ") for name in names[1:])


def lines_of(text: str) -> list[str]:
    """Lines with their breaks, which are those of text files and none of the others that Unicode knows."""
    if "\n" not in text and "\r" in text:
        text = text.replace("\r", "\n")
    if text.isascii() and not any(c in text for c in "\x0b\x0c\x1c\x1d\x1e"):
        return text.splitlines(keepends=True)
    return list(io.StringIO(text, newline="\n"))


@dataclass(frozen=True, slots=True)
class Broken:
    """A line that is no record."""

    reason: str
    text: str


MAX_RECORD_LINES: Final = 1000
OPEN: Final = "unexpected end of data"
"""What `csv` says where a quote is still open behind the last line."""


def records(
    lines: list[str],
    dialect: Dialect,
    width: int | None = None,
    told: Callable[[int], object] = lambda _lines: None,
    *,
    is_end: bool = True,
) -> Iterator[list[str] | Broken]:
    """The records of some lines; a record with another number of columns than `width` is broken.

    Where a quote that is not closed has swallowed lines, only the first of them is broken and reading goes on with the
    next. Empty lines are none. `told` hears how many lines are done with, before each record. Without `is_end`, a
    record that the last line does not end is left for when there is more.
    """
    at = 0
    while at < len(lines):
        feed = _Feed(lines, at)
        reader = dialect.reader(feed)
        while True:
            begun = feed.at
            feed.limit = begun + MAX_RECORD_LINES
            try:
                record = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if OPEN in str(error) and feed.at < feed.limit and not is_end:
                    return
                at = begun + 1
                told(at)
                yield Broken(_reason(error, dialect), lines[begun])
                break
            swallowed = feed.at > begun + 1
            broken = bool(record) and width is not None and len(record) != width
            told(begun + 1 if broken else feed.at)
            if broken:
                yield Broken(f"the line has {len(record)} columns, the header {width}", lines[begun])
            elif record:
                yield record
            if broken and swallowed:
                at = begun + 1
                break


def _reason(error: csv.Error, dialect: Dialect) -> str:
    said = str(error)
    nothing = 'say quote = "" where the file encloses nothing'
    if "expected after" in said:
        hint = "" if dialect.escape else ', say escape = "\\\\" where the file writes \\"'
        return f"a quote stands inside a quoted value: double it{hint}, or {nothing}"
    if "field larger" in said:
        return f"a value is longer than {csv.field_size_limit():,} characters"
    return f"a quote is opened and not closed; {nothing}"


class _Feed:
    """Lines from one on, as an iterator that knows where it is."""

    def __init__(self, lines: list[str], at: int) -> None:
        self._lines, self.at, self.limit = lines, at, 0

    def __iter__(self) -> "_Feed":
        return self

    def __next__(self) -> str:
        if self.at >= min(self.limit, len(self._lines)):
            raise StopIteration
        self.at += 1
        return self._lines[self.at - 1]
