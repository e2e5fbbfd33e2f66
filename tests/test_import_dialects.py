"""One log, written as different programs write it, is one log: every dialect and format stores the same rows."""

import csv
import datetime
import gzip
import io
import json
import re
import tempfile
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from urllib.parse import quote
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayapp.importing.dialects import Dialect, lines_of, records
from rayapp.importing.domains.parse import DomainError, parse_domain
from rayapp.importing.files import RejectedRow, expand, plan, read_piece
from rayapp.importing.rows import Clock, entity_rows, event_rows, list_rows
from rayapp.importing.staging import Notes, read_checked
from tests.conftest import T0

DOMAIN_TOML = """
name = "shop"
positive_head = "buy"
actions = [{ name = "view", kind = "neutral" }, { name = "buy", kind = "positive" }]
heads = [{ name = "buy" }]

[items]
title = "title"
text = ["title"]
numbers = ["price"]
columns = { created_at = { column = "since", unit = "iso" } }
#ITEMS

[[events]]
user_id = "user"
item_id = "item"
action = "action"
timestamp = #TIME
surface = "page"
#EVENTS

[[requests]]
user_id = "user"
item_ids = "shown"
timestamp = "at"
"""
ISO = '{ column = "at", unit = "iso" }'
CLOCK = Clock(946_684_800_000, T0 + 400 * 86_400_000)
KATHMANDU = ZoneInfo("Asia/Kathmandu")


@dataclass(frozen=True)
class Row:
    user: int
    item: str
    action: str
    second: int
    page: str | None

    @property
    def moment(self) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(self.second, datetime.UTC)


def domain(time: str = ISO, events: str = "", items: str = "") -> str:
    return DOMAIN_TOML.replace("#TIME", time).replace("#EVENTS", events).replace("#ITEMS", items)


def read(path: Path, text: str, kind: str = "events") -> tuple[list[dict[str, object]], list[RejectedRow], Notes]:
    """What an import makes of a file or directory."""
    file = parse_domain(text)
    layouts = {"events": file.events, "requests": file.requests, "items": (file.items,)}[kind]

    def reader(raw: pa.Table, n: int) -> object:
        if kind == "items":
            return entity_rows(raw, layouts[n], file.domain.attributes, CLOCK, users=False)
        return (event_rows if kind == "events" else list_rows)(raw, layouts[n], file.domain, CLOCK)

    rows, rejected, notes = [], [], Notes()
    for one in expand([path]):
        pieces, why = plan(one, layouts, "layout")
        rejected += why
        for _, table, some in read_checked(pieces, reader, notes):
            rejected += some
            rows += table.to_pylist() if table is not None else []
    return rows, rejected, notes


def cells(rows: Sequence[Row]) -> list[list[str]]:
    body = [[str(r.user), r.item, r.action, r.moment.isoformat(), r.page or ""] for r in rows]
    return [["user", "item", "action", "at", "page"], *body]


def as_csv(table: list[list[str]], **how: object) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, **how).writerows(table)  # type: ignore[arg-type]
    return text.getvalue()


def plain_csv(directory: Path, rows: Sequence[Row]) -> str:
    (directory / "log.csv").write_text(as_csv(cells(rows)), newline="")
    return domain()


def semicolons(directory: Path, rows: Sequence[Row]) -> str:
    (directory / "log.csv").write_text(as_csv(cells(rows), delimiter=";", lineterminator="\n"), newline="")
    return domain()


def tabs_and_zipped(directory: Path, rows: Sequence[Row]) -> str:
    text = as_csv(cells(rows), delimiter="\t", quoting=csv.QUOTE_ALL)
    (directory / "log.tsv.gz").write_bytes(gzip.compress(text.encode("utf-8-sig")))
    return domain()


def escapes(directory: Path, rows: Sequence[Row]) -> str:
    """As MySQL and Redshift unload."""
    table = cells(rows)
    text = as_csv(table, delimiter="|", quoting=csv.QUOTE_ALL, doublequote=False, escapechar="\\")
    (directory / "log.csv").write_text(text, newline="")
    return domain(events='delimiter = "|"\nescape = "\\\\"')


def blanks_after_commas(directory: Path, rows: Sequence[Row]) -> str:
    lines = [", ".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in cells(rows)[1:]]
    (directory / "log.csv").write_text("user, item, action, at, page\n" + "\n".join(lines) + "\n", newline="")
    return domain()


def another_encoding(directory: Path, rows: Sequence[Row]) -> str:
    (directory / "log.csv").write_bytes(as_csv(cells(rows), quotechar="'").encode("cp1252"))
    return domain(events='encoding = "cp1252"\nquote = "\'"')


def utf_16(directory: Path, rows: Sequence[Row]) -> str:
    (directory / "log.csv").write_bytes(as_csv(cells(rows), delimiter="\t").encode("utf-16"))
    return domain()


def pandas_floats(directory: Path, rows: Sequence[Row]) -> str:
    table = [[f"{r.user}.0", r.item, r.action, r.moment.strftime("%Y-%m-%d %H:%M:%S UTC"), r.page or ""] for r in rows]
    (directory / "log.csv").write_text(as_csv([cells(rows)[0], *table]), newline="")
    return domain()


def local_times(directory: Path, rows: Sequence[Row]) -> str:
    table = [[*c[:3], r.moment.astimezone(KATHMANDU).strftime("%d.%m.%Y %H:%M:%S"), c[4]] for r, c in
             zip(rows, cells(rows)[1:], strict=True)]  # fmt: skip
    (directory / "log.csv").write_text(as_csv([cells(rows)[0], *table]), newline="")
    return domain('{ column = "at", format = "%d.%m.%Y %H:%M:%S", zone = "Asia/Kathmandu" }')


def columns(rows: Sequence[Row]) -> dict[str, pa.Array]:
    return {
        "user": pa.array([r.user for r in rows], pa.int64()),
        "item": pa.array([r.item for r in rows]),
        "action": pa.array([r.action for r in rows]),
        "at": pa.array([r.moment for r in rows], pa.timestamp("us", "UTC")),
        "page": pa.array([r.page for r in rows], pa.string()),
    }


def plain_parquet(directory: Path, rows: Sequence[Row]) -> str:
    pq.write_table(pa.table(columns(rows)), directory / "log.parquet", row_group_size=3)
    return domain()


def warehouse_parquet(directory: Path, rows: Sequence[Row]) -> str:
    """Decimals, dictionaries and views; nanoseconds."""
    table = columns(rows) | {
        "user": pa.array([Decimal(r.user) for r in rows], pa.decimal128(38, 0)),
        "item": pa.array([r.item for r in rows], pa.string_view()),
        "action": pa.array([r.action for r in rows]).dictionary_encode(),
        "at": pa.array([Decimal(r.second) for r in rows], pa.decimal128(20, 2)),
        "page": pa.array([r.page for r in rows], pa.large_string()).dictionary_encode(),
    }
    pq.write_table(pa.table(table), directory / "log.parquet")
    return domain('{ column = "at", unit = "s" }')


def folders(directory: Path, rows: Sequence[Row]) -> str:
    for action in {r.action for r in rows}:
        (directory / f"action={quote(action)}").mkdir()
        table = pa.table(columns([r for r in rows if r.action == action])).drop_columns(["action"])
        pq.write_table(table, directory / f"action={action}" / "part-0.parquet")
    return domain()


def objects(rows: Sequence[Row]) -> list[dict[str, object]]:
    return [
        dict(zip(cells(rows)[0], [r.user, r.item, r.action, r.moment.isoformat(), r.page], strict=True)) for r in rows
    ]


def ndjson(directory: Path, rows: Sequence[Row]) -> str:
    (directory / "log.ndjson").write_text("".join(json.dumps(o) + "\n" for o in objects(rows)))
    return domain()


def json_array(directory: Path, rows: Sequence[Row]) -> str:
    (directory / "log.json").write_text(json.dumps(objects(rows), ensure_ascii=False, indent=1), encoding="utf-8")
    return domain()


def json_with_two_kinds_of_ids(directory: Path, rows: Sequence[Row]) -> str:
    lines = [o | {"user": str(o["user"])} if n % 2 else o for n, o in enumerate(objects(rows))]
    (directory / "log.jsonl").write_text("".join(json.dumps(o) + "\n" for o in lines))
    return domain()


Way = Callable[[Path, Sequence[Row]], str]
WAYS: list[Way] = [
    *(plain_csv, semicolons, tabs_and_zipped, escapes, blanks_after_commas, another_encoding, utf_16, pandas_floats),
    *(local_times, plain_parquet, warehouse_parquet, folders, ndjson, json_array, json_with_two_kinds_of_ids),
]
LETTERS = st.sampled_from("abÄéß€ ,;|\t\"'\\.0'")
ROWS = st.lists(
    st.builds(
        Row,
        user=st.integers(0, 2**53 - 1),
        item=st.text(st.sampled_from("abÄéß€ ,;|\"'\\.0'"), max_size=8).map(lambda text: f"i{text}z"),
        action=st.sampled_from(["view", "buy"]),
        second=st.integers(T0 // 1000, T0 // 1000 + 300 * 86_400),
        page=st.none() | st.text(st.one_of(LETTERS, st.just("\n")), max_size=8).map(lambda text: f"p{text}q"),
    ),
    min_size=1,
    max_size=12,
)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@settings(max_examples=40, deadline=None)
@given(rows=ROWS)
def test_however_a_log_is_written_it_is_the_same_log(
    way: Callable[[Path, Sequence[Row]], str], rows: list[Row]
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        found, rejected, _ = read(Path(directory), way(Path(directory), rows))
    assert not rejected
    expected = [(str(r.user), r.item, r.action, r.second * 1000, r.page) for r in rows]
    kept = [tuple(f[name] for name in ("user_id", "item_id", "action", "timestamp_ms", "surface")) for f in found]
    assert sorted(kept, key=repr) == sorted(expected, key=repr)


ROW = f"1,a,buy,{T0 // 1000},p"
SECONDS = domain('{ column = "at", unit = "s" }')


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('1,"a,buy,5,p', "a quote is opened and not closed"),
        ('1,"a"b,buy,5,p', "a quote stands inside a quoted value"),
        ("1,a,buy,5", "the line has 4 columns, the header 5"),
        ("1,a,buy,5,p,q", "the line has 6 columns, the header 5"),
    ],
)
@pytest.mark.parametrize("place", [0, 20, 40])
def test_a_broken_line_costs_itself(tmp_path: Path, line: str, reason: str, place: int) -> None:
    lines = [ROW.replace("1,a", f"{n},a{n}") for n in range(40)]
    lines.insert(place, line)
    (tmp_path / "log.csv").write_text("user,item,action,at,page\n" + "\n".join(lines) + "\n")
    rows, rejected, _ = read(tmp_path / "log.csv", SECONDS)
    assert [r["item_id"] for r in rows] == [f"a{n}" for n in range(40)]
    assert [r.row for r in rejected] == [place + 1]
    assert reason in rejected[0].reason
    assert rejected[0].value == line


def test_where_nothing_is_enclosed_a_quote_is_a_letter(tmp_path: Path) -> None:
    lines = ["user\titem\taction\tat\tpage", f'1\t"a\tbuy\t{T0 // 1000}\t12" pipe', f'2\tb"\tbuy\t{T0 // 1000}\t"x"']
    (tmp_path / "log.tsv").write_text("\n".join(lines) + "\n")
    rows, rejected, _ = read(tmp_path / "log.tsv", domain('{ column = "at", unit = "s" }', 'quote = ""'))
    assert [(r["item_id"], r["surface"]) for r in rows] == [('"a', '12" pipe'), ('b"', '"x"')]
    assert not rejected
    _, (refused,), _ = read(tmp_path / "log.tsv", SECONDS)
    assert (refused.row, 'quote = ""' in refused.reason) == (1, True)


def test_blocks_end_where_records_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Line breaks in quotes at any place of a block, and a quote that nothing closes."""
    monkeypatch.setattr("rayapp.importing.csv_files.TEXT_BLOCK_BYTES", 64)
    monkeypatch.setattr("rayapp.importing.dialects.MAX_RECORD_LINES", 20)
    lines = [f'{n},a{n},buy,{T0 // 1000},"p\n\n{n}"' for n in range(50)]
    lines.insert(25, '7,"a,buy,5,p')
    (tmp_path / "log.csv").write_text("user,item,action,at,page\n" + "\n".join(lines) + "\n")
    rows, rejected, _ = read(tmp_path / "log.csv", SECONDS)
    assert [(r["item_id"], r["surface"]) for r in rows] == [(f"a{n}", f"p\n\n{n}") for n in range(50)]
    assert [r.row for r in rejected] == [26]


@given(st.lists(st.text(st.sampled_from('a,"\n\\ '), max_size=12), max_size=8))
def test_reading_records_ends_and_loses_no_line_in_silence(texts: list[str]) -> None:
    lines = lines_of("\n".join(texts))
    found = list(records(lines, Dialect(delimiter=",", quote='"'), 2))
    assert len(found) <= len(lines)
    assert bool(found) == any(line.strip("\r\n") for line in lines)


@pytest.mark.parametrize(
    "line",
    [
        '{"user": "u\\ud83d", "item": "a", "action": "buy", "at": 1}',
        '{"user": "u", "item": "a", "action": "buy", "at": ',
        "7",
        "[" * 100_000,
        '{"user": "\udcff"}',
    ],
    ids=["lone surrogate", "cut", "no object", "nested", "not UTF-8"],
)
@pytest.mark.parametrize("ending", ["ndjson", "json"])
def test_a_broken_object_costs_itself(tmp_path: Path, line: str, ending: str) -> None:
    good = [
        json.dumps({"user": n, "item": f"2026-05-{n:02}", "action": "buy", "at": T0 // 1000, "page": "p"})
        for n in range(9)
    ]
    lines = [*good[:4], line, *good[4:]]
    whole = "\n".join(lines) if ending == "ndjson" else "[" + ",\n".join(lines) + "]"
    path = tmp_path / f"log.{ending}"
    path.write_bytes(whole.encode("utf-8", "surrogateescape"))
    rows, rejected, _ = read(path, SECONDS)
    assert [r.row for r in rejected] == [5]
    assert "the line is not a JSON object" in rejected[0].reason
    assert [r["item_id"] for r in rows] == [f"2026-05-{n:02}" for n in range(9)]


def test_ids_of_other_types_are_read_or_refused_in_words(tmp_path: Path) -> None:
    names = [uuid.UUID(int=n) for n in range(3)]
    rows = [Row(1, "a", "buy", T0 // 1000, None)] * 3
    table = columns(rows) | {"user": pa.array([n.bytes for n in names], pa.uuid())}
    pq.write_table(pa.table(table), tmp_path / "uuid.parquet")
    assert [r["user_id"] for r in read(tmp_path / "uuid.parquet", domain())[0]] == [str(n) for n in names]
    cents = pa.array([Decimal("12.00"), Decimal("12.50"), None], pa.decimal128(10, 2))
    pq.write_table(pa.table(table | {"user": cents}), tmp_path / "decimal.parquet")
    found, rejected, _ = read(tmp_path / "decimal.parquet", domain())
    assert [r["user_id"] for r in found] == ["12"]
    assert [(r.row, r.reason, r.value) for r in rejected] == [(2, "is a fraction", "12.50"), (3, "is missing", "")]
    nested = pa.array([{"id": 1}] * 3)
    pq.write_table(pa.table(table | {"user": nested}), tmp_path / "object.parquet")
    assert {r.reason for r in read(tmp_path / "object.parquet", domain())[1]} == {
        "is an object, not text or a whole number"
    }
    lists = pa.array(["['a', 'b']", '{"a": "b"}', "[x]"])
    pq.write_table(pa.table(table | {"user": lists}), tmp_path / "lists.parquet")
    found, rejected, _ = read(tmp_path / "lists.parquet", domain())
    assert [r["user_id"] for r in found] == ["[x]"]
    assert {r.reason for r in rejected} == {"is a list or an object written as text, and not one id"}


def test_lists_as_programs_write_them(tmp_path: Path) -> None:
    shown = ["['a', 'b']", '["a", 7, 8.0]', "[1, 2]", "c", "['a' 'b']", "[1 2", "[[1], 2]", "[]"]
    pq.write_table(pa.table({"user": ["u"] * 8, "at": [T0] * 8, "shown": shown}), tmp_path / "shown.parquet")
    rows, rejected, _ = read(tmp_path / "shown.parquet", domain(), "requests")
    assert [r["item_ids"] for r in rows] == [["a", "b"], ["a", "7", "8"], ["1", "2"], ["c"]]
    assert [(r.row, r.reason) for r in rejected] == [
        *((n, "begins like a list and can't be read as one") for n in (5, 6, 7)),
        (8, "is an empty list"),
    ]


def test_an_attribute_that_cannot_be_read_costs_its_value(tmp_path: Path) -> None:
    prices = ["1.5", "$19.99", "1,234.50", "N/A", "", "inf"]
    lines = [f'{n},T{n},"{price}",2026-01-01' for n, price in enumerate(prices)] + ["9,T9,2,0000-00-00"]
    (tmp_path / "items.csv").write_text("item_id,title,price,since\n" + "\n".join(lines) + "\n")
    rows, rejected, notes = read(tmp_path / "items.csv", domain(), "items")
    assert not rejected
    assert [r["price"] for r in rows] == [1.5, None, None, None, None, None, 2.0]
    assert rows[6]["created_at_ms"] == 0
    counts = {said: (n, notes.examples[said].row, notes.examples[said].value) for said, n in notes.counts.items()}
    unread = "created_at is not an ISO 8601 time; `format` in the domain file names another way to write it; left empty"
    assert counts == {
        "price is not a number; left empty": (3, 2, "$19.99"),
        "price is not a finite number; left empty": (1, 6, "inf"),
        unread: (1, 7, "0000-00-00"),
    }


@pytest.mark.parametrize("ending", ["csv", "ndjson"])
def test_a_vector_that_cannot_be_read_costs_itself(tmp_path: Path, ending: str) -> None:
    text = domain().replace("columns = {", 'columns = { vector = "embedding",')
    vectors: list[object] = [[0.5, 1], None, ["x", 1], "soon"]
    rows = [{"item_id": n, "title": "t", "price": 1, "since": None, "embedding": v} for n, v in enumerate(vectors)]
    path = tmp_path / f"items.{ending}"
    if ending == "csv":
        cells = [list(rows[0]), *([row[name] for name in row] for row in rows)]
        path.write_text(as_csv([["" if c is None else str(c) for c in row] for row in cells]), newline="")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, rejected, notes = read(path, text, "items")
    assert [r["vector"] for r in found] == [[0.5, 1], [], None, None]
    assert not rejected
    assert notes.counts == {"vector holds something that is not a finite number; left empty": 2}


@pytest.mark.parametrize(
    "words", [("True", "False"), ("t", "f"), ("yes", "NO"), ("1", "0"), ("1.0", "0.0"), (True, False)]
)
def test_flags_in_words(tmp_path: Path, words: tuple[object, object]) -> None:
    text = domain().replace('action = "action"', 'action = { flags = { buy = "bought" }, otherwise = "view" }')
    table = {"user": [1, 2], "item": ["a", "b"], "at": ["2026-05-01T00:00:00Z"] * 2, "page": ["p"] * 2, "bought": words}
    (tmp_path / "log.csv").write_text(as_csv([list(table), *map(list, zip(*table.values(), strict=True))]), newline="")
    pq.write_table(pa.table({name: list(values) for name, values in table.items()}), tmp_path / "log.parquet")
    for name in ("log.csv", "log.parquet") if "NULL" not in words else ("log.csv",):
        rows, rejected, _ = read(tmp_path / name, text)
        assert ([r["action"] for r in rows], rejected) == (["buy", "view"], [])


def times(tmp_path: Path, how: str, values: Sequence[object]) -> tuple[list[object], list[RejectedRow], Notes]:
    columns = {"user": ["u"] * len(values), "item": ["i"] * len(values), "action": ["buy"] * len(values)}
    pq.write_table(pa.table({**columns, "at": pa.array(values), "page": ["p"] * len(values)}), tmp_path / "t.parquet")
    rows, rejected, notes = read(tmp_path / "t.parquet", domain(how))
    return [r["timestamp_ms"] for r in rows], rejected, notes


def ms(text: str) -> int:
    return int(datetime.datetime.fromisoformat(text).timestamp() * 1000)


def test_a_moment_without_a_zone_is_read_by_the_named_clocks_or_as_utc_which_is_said(tmp_path: Path) -> None:
    written = ["2026-05-01 08:00:00", "2026-05-01T08:00:00+02:00", "2026-05-01 08:00:00 UTC", "2026-05-01"]
    found, rejected, notes = times(tmp_path, ISO, written)
    assert found == [ms(f"2026-05-01T{clock}") for clock in ("08:00Z", "06:00Z", "08:00Z", "00:00Z")]
    assert not rejected
    said = "timestamp names no zone and was read as UTC (a `zone` in the domain file says otherwise)"
    assert notes.counts == {said: 1}
    zoned = '{ column = "at", unit = "iso", zone = "Europe/Berlin" }'
    found, rejected, notes = times(tmp_path, zoned, written)
    assert found == [ms(f"2026-05-01T{clock}") for clock in ("06:00Z", "06:00Z", "08:00Z")] + [ms("2026-04-30T22:00Z")]
    assert not notes.counts
    naive = [datetime.datetime(2026, 5, 1, 8)]
    assert times(tmp_path, zoned, naive)[0] == [ms("2026-05-01T06:00Z")]
    assert times(tmp_path, ISO, naive)[2].counts == {said: 1}
    late = datetime.datetime.fromtimestamp(CLOCK.now_ms / 1000 + 3600, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")
    _, (refused,), _ = times(tmp_path, ISO, [late])
    assert refused.reason == f"is in the future; it {said.removeprefix('timestamp ')}"
    assert refused.value == late


def test_hours_that_clocks_showed_twice_or_never(tmp_path: Path) -> None:
    zoned = '{ column = "at", unit = "iso", zone = "Europe/Berlin" }'
    found, rejected, _ = times(tmp_path, zoned, ["2025-10-26 02:30:00", "2026-03-29 02:30:00"])
    assert found == [ms("2025-10-26T00:30Z"), ms("2026-03-29T01:00Z")]
    assert not rejected


def test_a_time_that_is_written_otherwise_is_shown_and_says_what_to_do(tmp_path: Path) -> None:
    found, (refused,), _ = times(tmp_path, ISO, ["2026-05-01T00:00Z", "01/05/2026 10:00"])
    assert len(found) == 1
    assert (refused.row, refused.value) == (2, "01/05/2026 10:00")
    assert "`format`" in refused.reason
    found, (refused,), _ = times(tmp_path, '{ column = "at", format = "%d/%m/%Y %H:%M" }', ["01/05/2026 10:00", "soon"])
    assert found == [ms("2026-05-01T10:00Z")]
    assert refused.reason == 'is not written as format = "%d/%m/%Y %H:%M" says'


def test_folders_fill_in_what_files_lack_and_a_file_s_own_column_counts(tmp_path: Path) -> None:
    for folder, has in (("dt=2026-05-01/action=buy", {}), ("dt=2026-05-02/action=buy", {"action": ["view"]})):
        (tmp_path / folder).mkdir(parents=True)
        table = pa.table({"user": [1], "item": ["a"], "page": ["p"], **has})
        pq.write_table(table, tmp_path / folder / "part-0.parquet")
    rows, rejected, _ = read(tmp_path, domain('{ column = "dt", unit = "iso" }'))
    assert not rejected
    assert [(r["action"], r["timestamp_ms"]) for r in rows] == [
        ("buy", ms("2026-05-01T00Z")),
        ("view", ms("2026-05-02T00Z")),
    ]


def test_columns_without_a_name_and_names_in_another_encoding_do_no_harm(tmp_path: Path) -> None:
    header = "user;item;action;at;page;prénom;;"
    (tmp_path / "log.csv").write_bytes(f"{header}\n{ROW.replace(',', ';')};é;;\n".encode("cp1252"))
    rows, rejected, _ = read(tmp_path / "log.csv", SECONDS)
    assert ([r["item_id"] for r in rows], rejected) == (["a"], [])
    (piece,), _ = plan(tmp_path / "log.csv", None, "")
    (chunk,) = read_piece(piece)
    assert isinstance(chunk, tuple)
    assert len(chunk[0].column_names) == 6


def test_bytes_that_are_no_text_cost_an_id_its_row_and_an_attribute_its_value(tmp_path: Path) -> None:
    lines = ["item_id,title,price,since", "1,Caf\xe9,1,", "2\xe9,x,1,", "3,Tea,1,"]
    (tmp_path / "items.csv").write_bytes("\n".join(lines).encode("latin-1"))
    rows, (refused,), notes = read(tmp_path / "items.csv", domain(), "items")
    assert [(r["item_id"], r["title"]) for r in rows] == [("1", None), ("3", "Tea")]
    assert (refused.row, refused.reason, refused.value) == (2, "is not valid UTF-8", "2\\xe9")
    assert list(notes.counts.values()) == [1]
    rows, rejected, _ = read(tmp_path / "items.csv", domain(items='encoding = "latin-1"'), "items")
    assert ([r["title"] for r in rows], rejected) == (["Café", "x", "Tea"], [])


def test_null_words_stand_for_missing_in_flags_and_behind_an_escape(tmp_path: Path) -> None:
    text = domain(items='escape = "\\\\"').replace("columns = {", 'columns = { available = "in_stock",')
    lines = ["item_id,title,price,since,in_stock", '1,"a\\"b",\\N,,\\N', "2,c,NULL,NULL,t", "3,d,2,,f"]
    (tmp_path / "items.csv").write_text("\n".join(lines) + "\n")
    rows, rejected, notes = read(tmp_path / "items.csv", text, "items")
    found = [(r["title"], r["price"], r["available"]) for r in rows]
    assert found == [('a"b', None, None), ("c", None, True), ("d", 2.0, False)]
    assert not rejected
    assert list(notes.counts.values()) == [1, 1], "NULL is no number and no time"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("x.json", '{\n "user": 1\n}', "write an object a line, or one array of objects"),
        ("x.json", "", "the file is empty"),
        ("x.json", "[]", "the file is empty"),
        ("x.csv", "<html>\x02</html>", "the file has <html>·</html>"),
        ("x.csv", 'a,"b', "the header can't be read: a quote is opened and not closed"),
    ],
)
def test_what_is_no_log_at_all_is_told_in_words(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    _, (refused,), _ = read(tmp_path / name, domain())
    assert said in refused.reason


def test_times_that_no_calendar_has_are_refused_and_shown(tmp_path: Path) -> None:
    for how in (ISO, '{ column = "at", unit = "iso", zone = "Europe/Berlin" }'):
        _, rejected, _ = times(tmp_path, how, pa.array([2**62, 0], pa.timestamp("ms")))
        assert {(r.reason, r.value) for r in rejected} == {
            ("is in the future", str(2**62)),
            ("is before 2000-01-01", "1970-01-01 00:00:00"),
        }


@pytest.mark.parametrize("name", ["x.parquet", "x.csv.gz", "x.ndjson.zst", "x.json.gz", "x.tsv.gz"])
def test_no_library_speaks_to_the_user(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x00\x01 this is something else \xff" * 50)
    _, (refused,), _ = read(tmp_path / name, domain())
    assert not any(word in refused.reason.lower() for word in ("arrow", "parquet magic", "csv parse", "zlib", "errno"))
    assert "can't be read" in refused.reason


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (domain(events='delimiter = ";;"'), "events[1] delimiter: string should have at most 1 character"),
        (domain(events='encoding = "klingon"'), 'events[1] encoding: must be an encoding like "utf-8"'),
        (domain(items='encoding = "klingon"'), 'items encoding: must be an encoding like "utf-8"'),
        (domain('{ column = "at", format = "%H:%M" }'), "timestamp: format must be like"),
        (domain('{ column = "at", format = "%Y-%m-%d", unit = "s" }'), "timestamp: needs `unit` or `format`, not both"),
        (
            domain('{ column = "at", zone = "Berlin" }'),
            'timestamp: zone must name a zone like "Europe/Berlin" or "UTC"',
        ),
    ],
)
def test_mistakes_in_how_files_are_written_name_the_place(text: str, said: str) -> None:
    with pytest.raises(DomainError, match=re.escape(said)):
        parse_domain(text)


def test_the_examples_of_the_documents_are_layouts() -> None:
    page = (Path(__file__).parents[1] / "docs/data.md").read_text()
    examples = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    assert len(examples) == 2
    head = domain().partition("[[events]]")[0]
    dialect, folders = (parse_domain(head + example).events[0] for example in examples)
    assert dialect.dialect == Dialect(delimiter=";", quote="'", escape="\\", encoding="cp1252")
    assert (dialect.timestamp.zone, dialect.null_values) == ("Europe/Berlin", ("NULL", "-1"))
    assert folders.timestamp.column.names == ("dt",)
