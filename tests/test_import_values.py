"""Values as programs write them: ids, lists, attributes, flags, times; and what is told of those that are none."""

import datetime
import json
import re
import uuid
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayapp.importing.dialects import Dialect
from rayapp.importing.domains.parse import DomainError, parse_domain
from rayapp.importing.files import RejectedRow, plan, read_piece
from rayapp.importing.staging import Notes
from tests.conftest import T0
from tests.import_rows import CLOCK, ISO, ROW, SECONDS, Row, as_csv, columns, read_shop, shop


def test_ids_of_other_types_are_read_or_refused_in_words(tmp_path: Path) -> None:
    names = [uuid.UUID(int=n) for n in range(3)]
    rows = [Row(1, "a", "buy", T0 // 1000, None)] * 3
    table = columns(rows) | {"user": pa.array([n.bytes for n in names], pa.uuid())}
    pq.write_table(pa.table(table), tmp_path / "uuid.parquet")
    assert [r["user_id"] for r in read_shop(tmp_path / "uuid.parquet", shop())[0]] == [str(n) for n in names]
    cents = pa.array([Decimal("12.00"), Decimal("12.50"), None], pa.decimal128(10, 2))
    pq.write_table(pa.table(table | {"user": cents}), tmp_path / "decimal.parquet")
    found, rejected, _ = read_shop(tmp_path / "decimal.parquet", shop())
    assert [r["user_id"] for r in found] == ["12"]
    assert [(r.row, r.reason, r.value) for r in rejected] == [(2, "is a fraction", "12.50"), (3, "is missing", "")]
    nested = pa.array([{"id": 1}] * 3)
    pq.write_table(pa.table(table | {"user": nested}), tmp_path / "object.parquet")
    assert {r.reason for r in read_shop(tmp_path / "object.parquet", shop())[1]} == {
        "is an object, not text or a whole number"
    }
    lists = pa.array(["['a', 'b']", '{"a": "b"}', "[x]"])
    pq.write_table(pa.table(table | {"user": lists}), tmp_path / "lists.parquet")
    found, rejected, _ = read_shop(tmp_path / "lists.parquet", shop())
    assert [r["user_id"] for r in found] == ["[x]"]
    assert {r.reason for r in rejected} == {"is a list or an object written as text, and not one id"}


def test_lists_as_programs_write_them(tmp_path: Path) -> None:
    shown = ["['a', 'b']", '["a", 7, 8.0]', "[1, 2]", "c", "['a' 'b']", "[1 2", "[[1], 2]", "[]"]
    pq.write_table(pa.table({"user": ["u"] * 8, "at": [T0] * 8, "shown": shown}), tmp_path / "shown.parquet")
    rows, rejected, _ = read_shop(tmp_path / "shown.parquet", shop(), "requests")
    assert [r["item_ids"] for r in rows] == [["a", "b"], ["a", "7", "8"], ["1", "2"], ["c"]]
    assert [(r.row, r.reason) for r in rejected] == [
        *((n, "begins like a list and can't be read as one") for n in (5, 6, 7)),
        (8, "is an empty list"),
    ]


def test_an_attribute_that_cannot_be_read_costs_its_value(tmp_path: Path) -> None:
    prices = ["1.5", "$19.99", "1,234.50", "N/A", "", "inf"]
    lines = [f'{n},T{n},"{price}",2026-01-01' for n, price in enumerate(prices)] + ["9,T9,2,0000-00-00"]
    (tmp_path / "items.csv").write_text("item_id,title,price,since\n" + "\n".join(lines) + "\n")
    rows, rejected, notes = read_shop(tmp_path / "items.csv", shop(), "items")
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
    text = shop().replace("columns = {", 'columns = { vector = "embedding",')
    vectors: list[object] = [[0.5, 1], None, ["x", 1], "soon"]
    rows = [{"item_id": n, "title": "t", "price": 1, "since": None, "embedding": v} for n, v in enumerate(vectors)]
    path = tmp_path / f"items.{ending}"
    if ending == "csv":
        cells = [list(rows[0]), *([row[name] for name in row] for row in rows)]
        path.write_text(as_csv([["" if c is None else str(c) for c in row] for row in cells]), newline="")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, rejected, notes = read_shop(path, text, "items")
    assert [r["vector"] for r in found] == [[0.5, 1], [], None, None]
    assert not rejected
    assert notes.counts == {"vector holds something that is not a finite number; left empty": 2}


@pytest.mark.parametrize(
    "words", [("True", "False"), ("t", "f"), ("yes", "NO"), ("1", "0"), ("1.0", "0.0"), (True, False)]
)
def test_flags_in_words(tmp_path: Path, words: tuple[object, object]) -> None:
    text = shop().replace('action = "action"', 'action = { flags = { buy = "bought" }, otherwise = "view" }')
    table = {"user": [1, 2], "item": ["a", "b"], "at": ["2026-05-01T00:00:00Z"] * 2, "page": ["p"] * 2, "bought": words}
    (tmp_path / "log.csv").write_text(as_csv([list(table), *map(list, zip(*table.values(), strict=True))]), newline="")
    pq.write_table(pa.table({name: list(values) for name, values in table.items()}), tmp_path / "log.parquet")
    for name in ("log.csv", "log.parquet") if "NULL" not in words else ("log.csv",):
        rows, rejected, _ = read_shop(tmp_path / name, text)
        assert ([r["action"] for r in rows], rejected) == (["buy", "view"], [])


def times(tmp_path: Path, how: str, values: Sequence[object]) -> tuple[list[object], list[RejectedRow], Notes]:
    columns = {"user": ["u"] * len(values), "item": ["i"] * len(values), "action": ["buy"] * len(values)}
    pq.write_table(pa.table({**columns, "at": pa.array(values), "page": ["p"] * len(values)}), tmp_path / "t.parquet")
    rows, rejected, notes = read_shop(tmp_path / "t.parquet", shop(how))
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
    rows, rejected, _ = read_shop(tmp_path, shop('{ column = "dt", unit = "iso" }'))
    assert not rejected
    assert [(r["action"], r["timestamp_ms"]) for r in rows] == [
        ("buy", ms("2026-05-01T00Z")),
        ("view", ms("2026-05-02T00Z")),
    ]


def test_columns_without_a_name_and_names_in_another_encoding_do_no_harm(tmp_path: Path) -> None:
    header = "user;item;action;at;page;prénom;;"
    (tmp_path / "log.csv").write_bytes(f"{header}\n{ROW.replace(',', ';')};é;;\n".encode("cp1252"))
    rows, rejected, _ = read_shop(tmp_path / "log.csv", SECONDS)
    assert ([r["item_id"] for r in rows], rejected) == (["a"], [])
    (piece,), _ = plan(tmp_path / "log.csv", None, "")
    (chunk,) = read_piece(piece)
    assert isinstance(chunk, tuple)
    assert len(chunk[0].column_names) == 6


def test_bytes_that_are_no_text_cost_an_id_its_row_and_an_attribute_its_value(tmp_path: Path) -> None:
    lines = ["item_id,title,price,since", "1,Caf\xe9,1,", "2\xe9,x,1,", "3,Tea,1,"]
    (tmp_path / "items.csv").write_bytes("\n".join(lines).encode("latin-1"))
    rows, (refused,), notes = read_shop(tmp_path / "items.csv", shop(), "items")
    assert [(r["item_id"], r["title"]) for r in rows] == [("1", None), ("3", "Tea")]
    assert (refused.row, refused.reason, refused.value) == (2, "is not valid UTF-8", "2\\xe9")
    assert list(notes.counts.values()) == [1]
    rows, rejected, _ = read_shop(tmp_path / "items.csv", shop(items='encoding = "latin-1"'), "items")
    assert ([r["title"] for r in rows], rejected) == (["Café", "x", "Tea"], [])


def test_null_words_stand_for_missing_in_flags_and_behind_an_escape(tmp_path: Path) -> None:
    text = shop(items='escape = "\\\\"').replace("columns = {", 'columns = { available = "in_stock",')
    lines = ["item_id,title,price,since,in_stock", '1,"a\\"b",\\N,,\\N', "2,c,NULL,NULL,t", "3,d,2,,f"]
    (tmp_path / "items.csv").write_text("\n".join(lines) + "\n")
    rows, rejected, notes = read_shop(tmp_path / "items.csv", text, "items")
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
    _, (refused,), _ = read_shop(tmp_path / name, shop())
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
    _, (refused,), _ = read_shop(tmp_path / name, shop())
    assert not any(word in refused.reason.lower() for word in ("arrow", "parquet magic", "csv parse", "zlib", "errno"))
    assert "can't be read" in refused.reason


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (shop(events='delimiter = ";;"'), "events[1] delimiter: string should have at most 1 character"),
        (shop(events='encoding = "klingon"'), 'events[1] encoding: must be an encoding like "utf-8"'),
        (shop(items='encoding = "klingon"'), 'items encoding: must be an encoding like "utf-8"'),
        (shop('{ column = "at", format = "%H:%M" }'), "timestamp: format must be like"),
        (shop('{ column = "at", format = "%Y-%m-%d", unit = "s" }'), "timestamp: needs `unit` or `format`, not both"),
        (
            shop('{ column = "at", zone = "Berlin" }'),
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
    head = shop().partition("[[events]]")[0]
    dialect, folders = (parse_domain(head + example).events[0] for example in examples)
    assert dialect.dialect == Dialect(delimiter=";", quote="'", escape="\\", encoding="cp1252")
    assert (dialect.timestamp.zone, dialect.null_values) == ("Europe/Berlin", ("NULL", "-1"))
    assert folders.timestamp.column.names == ("dt",)
