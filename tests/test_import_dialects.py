"""One log, written as different programs write it, is one log: every dialect and format stores the same rows."""

import csv
import gzip
import json
import tempfile
from collections.abc import Callable, Sequence
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
from tests.conftest import T0
from tests.import_rows import ROW, SECONDS, Row, as_csv, columns, read_shop, shop

KATHMANDU = ZoneInfo("Asia/Kathmandu")


def cells(rows: Sequence[Row]) -> list[list[str]]:
    body = [[str(r.user), r.item, r.action, r.moment.isoformat(), r.page or ""] for r in rows]
    return [["user", "item", "action", "at", "page"], *body]


def plain_csv(directory: Path, rows: Sequence[Row]) -> str:
    (directory / "log.csv").write_text(as_csv(cells(rows)), newline="")
    return shop()


def semicolons(directory: Path, rows: Sequence[Row]) -> str:
    (directory / "log.csv").write_text(as_csv(cells(rows), delimiter=";", lineterminator="\n"), newline="")
    return shop()


def tabs_and_zipped(directory: Path, rows: Sequence[Row]) -> str:
    text = as_csv(cells(rows), delimiter="\t", quoting=csv.QUOTE_ALL)
    (directory / "log.tsv.gz").write_bytes(gzip.compress(text.encode("utf-8-sig")))
    return shop()


def escapes(directory: Path, rows: Sequence[Row]) -> str:
    """As MySQL and Redshift unload."""
    table = cells(rows)
    text = as_csv(table, delimiter="|", quoting=csv.QUOTE_ALL, doublequote=False, escapechar="\\")
    (directory / "log.csv").write_text(text, newline="")
    return shop(events='delimiter = "|"\nescape = "\\\\"')


def blanks_after_commas(directory: Path, rows: Sequence[Row]) -> str:
    lines = [", ".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in cells(rows)[1:]]
    (directory / "log.csv").write_text("user, item, action, at, page\n" + "\n".join(lines) + "\n", newline="")
    return shop()


def another_encoding(directory: Path, rows: Sequence[Row]) -> str:
    (directory / "log.csv").write_bytes(as_csv(cells(rows), quotechar="'").encode("cp1252"))
    return shop(events='encoding = "cp1252"\nquote = "\'"')


def utf_16(directory: Path, rows: Sequence[Row]) -> str:
    (directory / "log.csv").write_bytes(as_csv(cells(rows), delimiter="\t").encode("utf-16"))
    return shop()


def pandas_floats(directory: Path, rows: Sequence[Row]) -> str:
    table = [[f"{r.user}.0", r.item, r.action, r.moment.strftime("%Y-%m-%d %H:%M:%S UTC"), r.page or ""] for r in rows]
    (directory / "log.csv").write_text(as_csv([cells(rows)[0], *table]), newline="")
    return shop()


def local_times(directory: Path, rows: Sequence[Row]) -> str:
    table = [[*c[:3], r.moment.astimezone(KATHMANDU).strftime("%d.%m.%Y %H:%M:%S"), c[4]] for r, c in
             zip(rows, cells(rows)[1:], strict=True)]  # fmt: skip
    (directory / "log.csv").write_text(as_csv([cells(rows)[0], *table]), newline="")
    return shop('{ column = "at", format = "%d.%m.%Y %H:%M:%S", zone = "Asia/Kathmandu" }')


def plain_parquet(directory: Path, rows: Sequence[Row]) -> str:
    pq.write_table(pa.table(columns(rows)), directory / "log.parquet", row_group_size=3)
    return shop()


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
    return shop('{ column = "at", unit = "s" }')


def folders(directory: Path, rows: Sequence[Row]) -> str:
    for action in {r.action for r in rows}:
        (directory / f"action={quote(action)}").mkdir()
        table = pa.table(columns([r for r in rows if r.action == action])).drop_columns(["action"])
        pq.write_table(table, directory / f"action={action}" / "part-0.parquet")
    return shop()


def objects(rows: Sequence[Row]) -> list[dict[str, object]]:
    return [
        dict(zip(cells(rows)[0], [r.user, r.item, r.action, r.moment.isoformat(), r.page], strict=True)) for r in rows
    ]


def ndjson(directory: Path, rows: Sequence[Row]) -> str:
    (directory / "log.ndjson").write_text("".join(json.dumps(o) + "\n" for o in objects(rows)))
    return shop()


def json_array(directory: Path, rows: Sequence[Row]) -> str:
    (directory / "log.json").write_text(json.dumps(objects(rows), ensure_ascii=False, indent=1), encoding="utf-8")
    return shop()


def json_with_two_kinds_of_ids(directory: Path, rows: Sequence[Row]) -> str:
    lines = [o | {"user": str(o["user"])} if n % 2 else o for n, o in enumerate(objects(rows))]
    (directory / "log.jsonl").write_text("".join(json.dumps(o) + "\n" for o in lines))
    return shop()


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
        found, rejected, _ = read_shop(Path(directory), way(Path(directory), rows))
    assert not rejected
    expected = [(str(r.user), r.item, r.action, r.second * 1000, r.page) for r in rows]
    kept = [tuple(f[name] for name in ("user_id", "item_id", "action", "timestamp_ms", "surface")) for f in found]
    assert sorted(kept, key=repr) == sorted(expected, key=repr)


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
    rows, rejected, _ = read_shop(tmp_path / "log.csv", SECONDS)
    assert [r["item_id"] for r in rows] == [f"a{n}" for n in range(40)]
    assert [r.row for r in rejected] == [place + 1]
    assert reason in rejected[0].reason
    assert rejected[0].value == line


def test_where_nothing_is_enclosed_a_quote_is_a_letter(tmp_path: Path) -> None:
    lines = ["user\titem\taction\tat\tpage", f'1\t"a\tbuy\t{T0 // 1000}\t12" pipe', f'2\tb"\tbuy\t{T0 // 1000}\t"x"']
    (tmp_path / "log.tsv").write_text("\n".join(lines) + "\n")
    rows, rejected, _ = read_shop(tmp_path / "log.tsv", shop('{ column = "at", unit = "s" }', 'quote = ""'))
    assert [(r["item_id"], r["surface"]) for r in rows] == [('"a', '12" pipe'), ('b"', '"x"')]
    assert not rejected
    _, (refused,), _ = read_shop(tmp_path / "log.tsv", SECONDS)
    assert (refused.row, 'quote = ""' in refused.reason) == (1, True)


def test_blocks_end_where_records_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Line breaks in quotes at any place of a block, and a quote that nothing closes."""
    monkeypatch.setattr("rayapp.importing.csv_files.TEXT_BLOCK_BYTES", 64)
    monkeypatch.setattr("rayapp.importing.dialects.MAX_RECORD_LINES", 20)
    lines = [f'{n},a{n},buy,{T0 // 1000},"p\n\n{n}"' for n in range(50)]
    lines.insert(25, '7,"a,buy,5,p')
    (tmp_path / "log.csv").write_text("user,item,action,at,page\n" + "\n".join(lines) + "\n")
    rows, rejected, _ = read_shop(tmp_path / "log.csv", SECONDS)
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
    rows, rejected, _ = read_shop(path, SECONDS)
    assert [r.row for r in rejected] == [5]
    assert "the line is not a JSON object" in rejected[0].reason
    assert [r["item_id"] for r in rows] == [f"2026-05-{n:02}" for n in range(9)]
