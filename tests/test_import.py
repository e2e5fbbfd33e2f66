"""Reading and checking files, without Ray: what is odd is told with file, row and reason, the rest is taken."""

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from rayapp.contracts.config import DAY_MS, FOREVER, HALF_LIVES_MS, HOUR_MS, Domain
from rayapp.contracts.hashing import hash64_column
from rayapp.contracts.json_values import from_json, to_json
from rayapp.importing.domains import BUILT_IN, DomainError, load_domain
from rayapp.importing.domains.parse import parse_domain
from rayapp.importing.files import NO_ROW, RejectedRow, plan, read_piece
from rayapp.importing.rows import Clock, entity_rows, event_rows, impression_rows, list_rows
from rayapp.importing.settle import first_of_each, group_impressions
from tests.conftest import T0

DOMAIN = parse_domain("""
name = "mine"
positive_head = "save"
actions = [
    { name = "click", kind = "neutral" },
    { name = "save", kind = "positive", priority = 2 },
    { name = "impression", kind = "neutral", in_sequence = false },
]
heads = [{ name = "save" }, { name = "click", utility = 0.2 }]
items = { title = "title", text = ["title"] }
context = { categories = ["device"] }

[[events]]
user_id = "user"
item_id = ["item", "video_id"]
action = "action"
timestamp = { column = "time", unit = "ms" }
event_id = "id"

[[requests]]
request_id = "request"
user_id = "user"
item_id = "item"
timestamp = "time"
position = "position"
context = { device = "device" }
""")
CLOCK = Clock(DOMAIN.domain.earliest_ms, T0 + 10**9)
EVENTS = DOMAIN.events[0]


EVENTS_BY_UNIT = """
[[events]]
user_id = "user"
item_id = "item"
action = "action"
timestamp = {{ column = "time", unit = "{}" }}
"""


def good(n: int = 3) -> dict[str, list[object]]:
    return {
        "id": [f"e{k}" for k in range(n)],
        "user": ["u"] * n,
        "item": [f"i{k}" for k in range(n)],
        "action": ["save"] * n,
        "time": [T0 + k for k in range(n)],
    }


def read(path: Path) -> tuple[list[dict[str, object]], list[RejectedRow]]:
    """All good events of a file with their row numbers, and all rejections, as the import sees them."""
    pieces, rejected = plan(path, DOMAIN.events, "[[events]]")
    rows: list[dict[str, object]] = []
    for piece in pieces:
        for got in read_piece(piece):
            if isinstance(got, list):
                rejected += got
                continue
            table, check = event_rows(got[0], EVENTS, DOMAIN.domain, CLOCK)
            numbers = got[1][check.good_N]
            rows += [{"row": int(n), **row} for n, row in zip(numbers, table.to_pylist(), strict=True)]
            rejected += [RejectedRow(piece.path, int(got[1][n]), *rest) for n, *rest in check.rejected]
    return rows, rejected


def changed(field: str, values: list[object]) -> pa.Table:
    return pa.table({**good(len(values)), field: pa.array(values)})


def checked(table: pa.Table) -> tuple[list[dict[str, object]], list[tuple[int, str, str, str]]]:
    rows, check = event_rows(table, EVENTS, DOMAIN.domain, CLOCK)
    return rows.to_pylist(), check.rejected


@given(st.lists(st.one_of(st.none(), st.text(max_size=140)), max_size=200))
def test_a_column_is_hashed_as_each_of_its_values(values: list[str | None]) -> None:
    expected = [xxhash.xxh64_intdigest((v or "").encode("utf-8", "surrogatepass")) for v in values]
    column = pa.array(values, pa.string())
    assert hash64_column(column).tolist() == expected
    assert hash64_column(column.dictionary_encode()).tolist() == expected
    assert hash64_column(column.slice(len(values) // 3)).tolist() == expected[len(values) // 3 :]


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("user", "", "must not be empty"),
        ("user", None, "is missing"),
        ("item", "a\nb", "must not hold control characters"),
        ("item", "a\u0085b", "must not hold control characters"),
        ("item", "x" * 10_000, "is longer than 128 bytes"),
        ("id", "é" * 65, "is longer than 128 bytes"),
        ("action", "buy", "is not in the vocabulary of the domain file"),
        ("action", None, "is missing"),
        ("time", None, "is missing"),
        ("time", 915_148_800_000, "is before 2000-01-01"),
        ("time", T0 // 1000, 'is before 2000-01-01; unit = "s" would fit'),
        ("time", T0 * 1000, 'is in the future; unit = "us" would fit'),
        ("time", T0 * 10**6, 'is in the future; unit = "ns" would fit'),
        ("time", T0 + 10**9 + 300_001, "is in the future"),
    ],
)
def test_a_bad_value_is_told_and_its_neighbours_are_taken(field: str, value: object, reason: str) -> None:
    column = good()[field]
    rows, rejected = checked(changed(field, [column[0], value, column[2]]))
    assert [row["event_id"] for row in rows] == ["e0", "e2"]
    name = {"id": "event_id", "user": "user_id", "item": "item_id", "time": "timestamp"}.get(field, field)
    assert [(row, f, r) for row, f, r, _ in rejected] == [(1, name, reason)]


def test_ids_that_are_no_utf_8_are_told() -> None:
    rows, rejected = checked(changed("user", [b"u", b"\xff\xfe", b"v"]))
    assert [row["user_id"] for row in rows] == ["u", "v"]
    assert rejected == [(1, "user_id", "is not valid UTF-8", "\\xff\\xfe")]
    broken = pa.Array.from_buffers(pa.string(), 3, pa.array([b"u", b"\xff", b"v"], pa.binary()).buffers())
    rows, rejected = checked(pa.table({**good(), "user": broken}))  # a file that calls it text
    assert [row["user_id"] for row in rows] == ["u", "v"]
    assert rejected[0][2] == "is not valid UTF-8"


def test_ids_of_numbers_and_of_text_agree() -> None:
    for values in ([1, 2, 3], [1.0, 2.0, 3.0], ["1", "2", "3"]):
        rows, rejected = checked(changed("item", values))
        assert [row["item_id"] for row in rows] == ["1", "2", "3"]
        assert not rejected
    _, rejected = checked(changed("item", [1.0, 2.5, None]))
    assert {(row, reason) for row, _, reason, _ in rejected} == {
        (1, "is a fraction, or too large to be exact"),
        (2, "is missing"),
    }


def test_timestamps_are_read_in_each_unit_and_type() -> None:
    stamps = {
        "s": [T0 // 1000] * 2,
        "us": [T0 * 1000] * 2,
        "ns": [T0 * 10**6] * 2,
        "iso": ["2026-01-01", "2026-01-01T01:00:00+01:00"],
    }
    for unit, values in stamps.items():
        text = EVENTS_BY_UNIT.format(unit)
        layout = parse_domain(_without_events() + text).events[0]
        rows, check = event_rows(changed("time", list(values)), layout, DOMAIN.domain, CLOCK)
        assert [row["timestamp_ms"] for row in rows.to_pylist()] == [T0, T0], (unit, check.rejected)
    for kind in (pa.timestamp("s"), pa.timestamp("us", "Europe/Vienna"), pa.date32()):
        rows, _ = checked(changed("time", pa.array([T0] * 2).cast(pa.timestamp("ms")).cast(kind).to_pylist()))
        assert rows[0]["timestamp_ms"] == T0 or kind == pa.timestamp("us", "Europe/Vienna")
    rows, rejected = checked(changed("time", ["soon", str(T0)]))
    assert [row["timestamp_ms"] for row in rows] == [T0]
    assert rejected[0][2] == "is not a number"


def _without_events() -> str:
    return """
name = "mine"
positive_head = "save"
actions = [{ name = "click", kind = "neutral" }, { name = "save", kind = "positive" }]
heads = [{ name = "save" }]
items = { title = "title", text = ["title"] }
"""


@pytest.mark.parametrize("ending", ["parquet", "csv", "csv.gz", "csv.zst", "tsv", "ndjson", "jsonl.gz"])
def test_the_same_rows_come_out_of_every_format(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"x.{ending}"
    write(path, pa.table(good(5)))
    rows, rejected = read(path)
    assert not rejected
    assert [(row["row"], row["event_id"], row["timestamp_ms"]) for row in rows] == [
        (k + 1, f"e{k}", T0 + k) for k in range(5)
    ]


def write(path: Path, table: pa.Table) -> None:
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=2)
        return
    if ".csv" in path.name or ".tsv" in path.name:
        lines = [table.column_names, *([str(v) for v in row.values()] for row in table.to_pylist())]
        text = "\n".join(("\t" if ".tsv" in path.name else ",").join(line) for line in lines) + "\n"
    else:
        text = "".join(json.dumps(row) + "\n" for row in table.to_pylist())
    codec = {".gz": "gzip", ".zst": "zstd"}.get(path.suffix)
    with pa.output_stream(str(path), compression=codec) as out:
        out.write(text.encode())


def test_broken_lines_keep_the_numbers_of_the_good_ones(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text(
        f"id,user,item,action,time\na,u,i,save,{T0}\nbroken\nb,u,i,save,{T0}\nc,u,i,save,{T0},more\nd,u,i,save,{T0}\n"
    )
    rows, rejected = read(path)
    assert [(row["row"], row["event_id"]) for row in rows] == [(1, "a"), (3, "b"), (5, "d")]
    assert sorted(r.row for r in rejected) == [2, 4]
    path = tmp_path / "x.ndjson"
    line = {"id": "a", "user": "u", "item": 7, "action": "save", "time": T0}
    mixed = [json.dumps(line), "{", "[]", json.dumps({**line, "id": "b", "item": "seven"}), '{"user": "\udcff"}']
    path.write_bytes("\n".join(mixed).encode("utf-8", "surrogateescape"))
    rows, rejected = read(path)
    assert [(row["row"], row["item_id"]) for row in rows] == [(1, "7"), (4, "seven")]
    assert sorted(r.row for r in rejected) == [2, 3, 5]


def test_files_that_cannot_be_read_are_told_whole(tmp_path: Path) -> None:
    whole = tmp_path / "whole.parquet"
    write(whole, pa.table(good(6)))
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(whole.read_bytes()[:-20])
    zipped = tmp_path / "cut.csv.gz"
    lines = "id,user,item,action,time\n" + "".join(f"e{k},u,i,save,{T0 + k}\n" for k in range(50_000))
    zipped.write_bytes(gzip.compress(lines.encode())[:-2000])
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table({"who": ["u"]}), other)
    twice = tmp_path / "twice.csv"
    twice.write_text("user,user,item\n1,2,3\n")
    empty = tmp_path / "empty.csv"
    empty.touch()
    for path, said in (
        (cut, "can't be read"),
        (zipped, "can't be read"),
        (other, "no layout fits: [[events]] 1 lacks 'user', 'item' or 'video_id'"),
        (twice, "names a column twice"),
        (empty, "empty"),
        (tmp_path / "x.xls", "ending"),
    ):
        path.touch()
        _, rejected = read(path)
        assert len(rejected) == 1, path
        assert rejected[0].row == NO_ROW
        assert said in rejected[0].reason


def test_a_damaged_row_group_loses_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table(good(6)), path, row_group_size=2, compression="zstd")
    at = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[at : at + 40] = b"\xff" * 40
    path.write_bytes(data)
    rows, rejected = read(path)
    assert [row["row"] for row in rows] == [1, 2, 5, 6]
    assert [r.row for r in rejected] == [NO_ROW]


def staged(rows: list[dict[str, object]]) -> pa.Table:
    table, _ = event_rows(pa.Table.from_pylist(rows), EVENTS, DOMAIN.domain, CLOCK)
    n = table.num_rows
    return table.append_column("source_file", pa.array(np.zeros(n, np.int32))).append_column(
        "source_row", pa.array(np.arange(1, n + 1))
    )


def test_copies_are_counted_and_one_id_with_two_contents_is_told() -> None:
    event = {"id": "a", "user": "u", "item": "i", "action": "save", "time": T0}
    rows = staged([event, event, {**event, "item": "j", "time": T0 + 1}, {**event, "id": "b"}])
    none = rows.slice(0, 0)
    keep, copies, conflicts = first_of_each(rows, none, ["f"])
    assert keep.tolist() == [True, False, False, True]
    assert copies == 1
    assert [(c.file, c.row, c.field, c.value) for c in conflicts] == [("f", 3, "event_id", "a")]
    keep, copies, conflicts = first_of_each(rows, rows.slice(3), ["f"])
    assert (keep.tolist(), copies, len(conflicts)) == ([True, False, False, False], 2, 1)


def test_impressions_of_a_request_become_one_list_in_order_of_position() -> None:
    raw = pa.table(
        {
            "request": ["r", "r", "s", "r", "r"],
            "user": ["u"] * 5,
            "item": ["c", "a", "x", "b", "a"],
            "time": [T0 + 2, T0, T0 + 9, T0 + 1, T0],
            "position": [2, 0, 0, 1, 3],
            "device": ["phone"] * 5,
        }
    )
    rows, check = impression_rows(raw, DOMAIN.requests[0], DOMAIN.domain, CLOCK)
    assert not check.rejected
    rows = rows.append_column("source_file", pa.array(np.zeros(5, np.int32)))
    rows = rows.append_column("source_row", pa.array(np.arange(5)))
    lists, copies, rejected = group_impressions(rows, DOMAIN.domain, ["f"])
    assert lists["commit_seq"].null_count == len(lists), "no store took them"
    found = {r["request_id"]: (r["item_ids"], r["timestamp_ms"], r["device"], r["labels"]) for r in lists.to_pylist()}
    assert found == {"r": (["a", "b", "c"], T0, ["phone"], None), "s": (["x"], T0 + 9, ["phone"], None)}
    assert (copies, rejected) == (1, [])


def test_lists_are_checked_item_by_item() -> None:
    domain = load_domain("movielens")
    raw = pa.table(
        {
            "request_id": ["r1", "r2", "r3", "r4"],
            "user_id": ["u"] * 4,
            "timestamp": [T0 // 1000] * 4,
            "item_ids": [["a", "b"], [], ["a", "b\n"], None],
        }
    )
    rows, check = list_rows(raw, domain.requests[0], domain.domain, CLOCK)
    assert rows["item_ids"].to_pylist() == [["a", "b"]]
    assert rows["commit_seq"].to_pylist() == [None], "no store took it"
    assert {(row, reason) for row, _, reason, _ in check.rejected} == {
        (1, "is an empty list"),
        (2, "an item id must not hold control characters"),
        (3, "is an empty list"),
    }


def test_flags_become_the_strongest_action_and_labels() -> None:
    domain = load_domain("kuairand")
    names = ["is_click", "long_view", "is_like", "is_follow", "is_comment", "is_forward", "is_hate", "is_profile_enter"]
    flags = {name: [0, 0, 0] for name in names} | {"is_click": [0, 1, 1], "is_hate": [0, 0, 1], "is_like": [0, 0, 1]}
    raw = pa.table({"user_id": [1, 1, 1], "video_id": [7, 8, 9], "time_ms": [T0, T0, T0], "tab": [1, 1, 1], **flags})
    rows, _ = event_rows(raw, domain.events[0], domain.domain, CLOCK)
    assert rows["action"].to_pylist() == ["impression_or_click", "click", "hate"]
    shown, _ = impression_rows(raw, domain.requests[0], domain.domain, CLOCK)
    assert shown["labels"].to_pylist() == [[0, 0, 0, 0], [1, 0, 0, 0], [1, 0, 1, 1]]
    assert len(set(shown["request_id"].to_pylist())) == 1


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_built_in_domains_load_and_round_trip(name: str) -> None:
    domain = load_domain(name).domain
    assert from_json(Domain, json.loads(json.dumps(to_json(domain)))) == domain


def _smallest() -> str:
    return _without_events() + '[[events]]\nuser_id = "user"\nitem_id = "i"\naction = "a"\ntimestamp = "t"\n'


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('user_id = "user"', 'usr_id = "user"', "events[1] has no key 'usr_id'; known: user_id, item_id, timestamp, "),
        ('user_id = "user"', "", "events[1] user_id is missing"),
        ('user_id = "user"', "user_id = 7", "events[1] user_id: must be a column's name, a list of names, or { column"),
        ('user_id = "user"', "user_id = []", "events[1] user_id column: "),
        ('= "t"', '= { column = "t", unit = "h" }', "timestamp unit: input should be 's', 'ms', 'us', 'ns' or 'iso'"),
        ('action = "a"', 'action = { column = "a", otherwise = "b" }', "['b'], not among [[actions]]: click, save"),
        ('action = "a"', 'action = { column = "a", flags = { save = "s" } }', "needs `column`, or `flags`, or only"),
        ('action = "a"', 'action = "a"\nlag = "soon"', 'events[1] lag: must be a duration like "30s", "24h" or "7d"'),
        ("positive_head", 'earliest = "1995"\npositive_head', "earliest: must be a date like "),
        (
            'title = "title",',
            'title = "title", columns = { colour = "c" },',
            "no key 'colour'; known: item_id",
        ),
        ('title = "title",', 'title = "title", columns = { title = 1 },', "[items] columns title: must be a column's"),
        ('kind = "positive"', 'kind = "good"', "actions[2] kind: input should be 'positive', 'negative' or 'neutral'"),
        ('heads = [{ name = "save" }]', 'heads = [{ name = "buy" }]', "buy"),
        ("positive_head", "best_head", "has no key 'best_head'; known: name, positive_head, "),
        ('positive_head = "save"', "", "positive_head is missing"),
        ('title = "title"', 'title = "headline"', "headline"),
        ("= [{", "= [[", "not valid TOML"),
    ],
)
def test_mistakes_in_a_domain_file_name_the_place(old: str, new: str, said: str) -> None:
    text = _smallest()
    assert parse_domain(text)
    with pytest.raises(DomainError) as error:
        parse_domain(text.replace(old, new))
    assert said in str(error.value)


def test_what_fresh_statistics_are_made_of_is_read_from_the_file() -> None:
    text = _smallest()
    usual = parse_domain(text).domain
    assert (usual.half_lives_ms, usual.left_out_of_statistics) == (HALF_LIVES_MS, {})
    assert (usual.statistics_step_ms, usual.flag_delay_ms) == (600_000, 600_000)
    lines = """
half_lives = ["30m", "1d", "never"]
statistics_step = "5m"
flag_delay = "90s"
left_out_of_statistics = { role = ["bot", "tester"] }
users = { categories = ["role"] }
"""
    said = parse_domain(lines + text).domain
    assert said.half_lives_ms == (HOUR_MS // 2, DAY_MS, FOREVER)
    assert (said.statistics_step_ms, said.flag_delay_ms) == (300_000, 90_000)
    assert said.left_out_of_statistics == {"role": ("bot", "tester")}
    assert from_json(Domain, json.loads(json.dumps(to_json(said)))) == said


def test_the_clocks_of_a_domain_are_utc_unless_it_names_a_zone() -> None:
    assert parse_domain(_smallest()).domain.time_zone == "UTC"
    said = parse_domain(f'time_zone = "Asia/Kathmandu"\n{_smallest()}').domain
    assert said.time_zone == "Asia/Kathmandu"
    assert from_json(Domain, json.loads(json.dumps(to_json(said)))) == said


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('time_zone = "Berlin"', 'time_zone must name a zone like "Europe/Berlin" or "UTC", not "Berlin"'),
        ('time_zone = "Europe"', 'time_zone must name a zone like "Europe/Berlin" or "UTC", not "Europe"'),
        ('time_zone = ""', 'time_zone must name a zone like "Europe/Berlin" or "UTC", not ""'),
        ("time_zone = 2", "time_zone: input should be a valid string, not 2"),
        ('half_lives = ["soon"]', 'half_lives[1]: must be a duration like "30s", "24h" or "7d", or "never"'),
        ('half_lives = ["1h", "0s"]', 'half_lives[2]: must be longer; counts that do not fade are "never"'),
        ("half_lives = []", "half_lives: tuple should have at least 1 item"),
        ('half_lives = ["1h", "2h", "3h", "4h", "never"]', "half_lives must be 1 to 4 durations, not 5"),
        ('half_lives = ["24h", "1h"]', 'half_lives must ascend without repeats, with "never" last'),
        ('half_lives = ["1h", "60m"]', 'half_lives must ascend without repeats, with "never" last'),
        ('half_lives = ["never", "1h"]', 'half_lives must ascend without repeats, with "never" last'),
        ('half_lives = ["never", "never"]', 'half_lives must ascend without repeats, with "never" last'),
        ('half_lives = ["5m", "1h"]', 'half_lives must be multiples of statistics_step "10m"; 5m is none'),
        ('statistics_step = "30s"', 'statistics_step must be from "1m" to "1h", not "30s"'),
        ('statistics_step = "2h"', 'statistics_step must be from "1m" to "1h", not "2h"'),
        ('flag_delay = "0s"', 'flag_delay must be longer than "0s": a statistic that knew a flag at once'),
        ('left_out_of_statistics = { role = ["bot"] }', "left_out_of_statistics names ['role'], no categorical"),
        ("left_out_of_statistics = { role = [] }", "left_out_of_statistics role: tuple should have at least 1 item"),
    ],
)
def test_mistakes_in_settings_of_the_domain_name_file_and_field(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f"{line}\n{_smallest()}")
    with pytest.raises(DomainError) as error:
        load_domain(str(path))
    assert f"{path}: {said}" in str(error.value)


def test_availability_of_items_is_read_where_a_file_has_it() -> None:
    text = """
name = "mine"
positive_head = "save"
actions = [{ name = "save", kind = "positive" }]
heads = [{ name = "save" }]

[items]
title = "title"
text = ["title"]
columns = { available = "in_stock" }

[[events]]
user_id = "user"
item_id = "item"
timestamp = "time"
action = { otherwise = "save" }
"""
    domain_file = parse_domain(text)
    raw = pa.table({"item_id": ["a", "b", "c", "d"], "title": ["x"] * 4, "in_stock": [1, 0, None, 7]})
    layout, attributes = domain_file.items, domain_file.domain.attributes
    rows, check = entity_rows(raw, layout, attributes, CLOCK, users=False)
    assert rows["available"].to_pylist() == [True, False, None]
    assert check.good_N.tolist() == [True, True, True, False]
    rows, _ = entity_rows(raw.drop_columns(["in_stock"]), layout, attributes, CLOCK, users=False)
    assert rows["available"].to_pylist() == [None] * 4
    with pytest.raises(DomainError, match="available"):
        parse_domain(text.replace('text = ["title"]', 'text = ["title", "available"]'))
