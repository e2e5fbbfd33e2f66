"""One person is one id, however the file writes it; what can't be told apart any more is refused in words."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayapp.importing.columns import RowCheck, ids
from rayapp.importing.domains.layout import DomainFile
from rayapp.importing.domains.parse import parse_domain
from rayapp.importing.files import NO_ROW, RejectedRow
from rayapp.importing.rows import Clock
from rayapp.root.logs import read_log
from tests.conftest import T0, Command
from tests.import_rows import read_rows

DOMAIN_TOML = """
name = "shop"
positive_head = "buy"
actions = [{ name = "view", kind = "neutral" }, { name = "buy", kind = "positive" }]
heads = [{ name = "buy" }]

[items]
title = "title"
text = ["title"]

[[events]]
user_id = "user"
item_id = "item"
action = "action"
timestamp = "time"
request_id = ["request", "user"]
#EVENTS

[[requests]]
user_id = "user"
item_ids = { column = "items", separator = "|" }
timestamp = "time"
"""
DOMAIN = parse_domain(DOMAIN_TOML)
CLOCK = Clock(DOMAIN.domain.earliest_ms, T0 + 10**9)
NUMBERS = [541312140, 541312141, 100000]


def frame(users: Sequence[object], items: Sequence[object]) -> pd.DataFrame:
    rows = len(users)
    return pd.DataFrame(
        {"user": users, "item": items, "action": ["view"] * rows, "time": [T0 + n for n in range(rows)]}
    )


def read(
    path: Path, domain_file: DomainFile = DOMAIN, *, lists: bool = False
) -> tuple[list[dict[str, object]], list[RejectedRow]]:
    """What an import makes of a file."""
    rows, rejected, _ = read_rows(path, domain_file, "requests" if lists else "events", CLOCK)
    return rows, rejected


def test_numbers_that_pandas_wrote_as_floats_are_the_same_people_as_in_parquet(tmp_path: Path) -> None:
    """One missing value makes floats of a column of whole numbers."""
    whole = frame(NUMBERS, NUMBERS)
    whole.to_parquet(tmp_path / "whole.parquet")
    gap = frame([*NUMBERS, np.nan], [*NUMBERS, np.nan])
    gap.to_csv(tmp_path / "gap.csv", index=False)
    assert "541312140.0" in (tmp_path / "gap.csv").read_text()
    (expected, none), (rows, rejected) = read(tmp_path / "whole.parquet"), read(tmp_path / "gap.csv")
    assert not none
    assert [(r["user_id"], r["item_id"]) for r in rows] == [(r["user_id"], r["item_id"]) for r in expected]
    assert [r["event_id"] for r in rows] == [r["event_id"] for r in expected]
    assert [r["request_id"] for r in rows] == [r["request_id"] for r in expected]
    assert [(r.row, r.field, r.reason) for r in rejected] == [(4, "user_id", "is missing")]


def test_ids_in_the_lists_of_a_csv_are_read_the_same_way(tmp_path: Path) -> None:
    path = tmp_path / "lists.csv"
    path.write_text(f"user,items,time\n7.0,100001.0|100002,{T0}\n8,a|NULL,{T0}\n")
    rows, rejected = read(path, lists=True)
    assert [(r["user_id"], r["item_ids"]) for r in rows] == [("7", ["100001", "100002"])]
    assert [(r.row, r.reason) for r in rejected] == [(2, "an item id is missing")]


def test_text_that_has_a_type_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "text.parquet"
    pq.write_table(pa.table(frame(["12.0", "NULL", "1.5e+08"], ["a", "b", "c"]).to_dict("list")), path)
    rows, rejected = read(path)
    assert [r["user_id"] for r in rows] == ["12.0", "NULL", "1.5e+08"]
    assert not rejected


def test_versions_and_codes_are_no_floats(tmp_path: Path) -> None:
    path = tmp_path / "codes.csv"
    frame(["1.2.0", "1e5", "1.50", "x.0", "0012", "+12.0"], list("abcdef")).to_csv(path, index=False)
    rows, rejected = read(path)
    assert [r["user_id"] for r in rows] == ["1.2.0", "1e5", "1.50", "x.0", "0012", "+12.0"]
    assert not rejected


def test_digits_that_were_rounded_away_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rounded.csv"
    frame(["5.41312e+08", "1e+05"], ["a", "b"]).to_csv(path, index=False)
    rows, rejected = read(path)
    assert not rows
    assert {r.reason for r in rejected} == {"is a rounded number: write ids as whole numbers or text"}
    assert rejected[0].value == "5.41312e+08"


def test_null_words_are_missing_ids_and_what_counts_as_one_can_be_set(tmp_path: Path) -> None:
    path = tmp_path / "null.csv"
    words = ["NULL", "null", "\\N", "nan", "NaN", "None", "N/A", "<NA>", "undefined", "Nina", "-1"]
    path.write_text("user,item,action,time\n" + "".join(f"{w},i{n},view,{T0 + n}\n" for n, w in enumerate(words)))
    rows, rejected = read(path)
    assert [r["user_id"] for r in rows] == ["Nina", "-1"]
    assert [r["request_id"] for r in rows] == ["Nina", "-1"]
    assert [(r.row, r.field, r.reason) for r in rejected] == [(n, "user_id", "is missing") for n in range(1, 10)]
    own = parse_domain(DOMAIN_TOML.replace("#EVENTS", 'null_values = ["-1", "undefined"]'))
    rows, rejected = read(path, own)
    assert [r.row for r in rejected] == [9, 11]
    assert "NULL" in [r["user_id"] for r in rows]


@pytest.mark.parametrize(("kind", "exact"), [(np.float16, 2**11), (np.float32, 2**24), (np.float64, 2**53)])
def test_a_float_holds_ids_only_as_far_as_it_tells_them_apart(tmp_path: Path, kind: type, exact: int) -> None:
    path = tmp_path / "floats.parquet"
    users = pa.array(np.array([7, exact - 1, exact * 2, 1.5], kind))
    columns = frame([0] * 4, list("abcd")).to_dict("list")
    pq.write_table(pa.table({**columns, "user": users}), path)
    rows, rejected = read(path)
    assert [r["user_id"] for r in rows] == ["7", str(exact - 1)]
    assert [r.row for r in rejected if r.row != NO_ROW] == [3, 4]
    assert "too large to be exact" in rejected[0].reason


@given(st.lists(st.one_of(st.none(), st.integers(-(2**53) + 1, 2**53 - 1)), min_size=1, max_size=30))
def test_however_whole_numbers_are_written_they_are_the_same_ids(numbers: list[int | None]) -> None:
    def ids_of(column: pa.Array) -> list[str | None]:
        check = RowCheck(len(column))
        found: list[str | None] = ids(pa.chunked_array([column]), "user_id", check).to_pylist()
        assert all(reason == "is missing" for _, _, reason, _ in check.rejected)
        return found

    expected = [None if n is None else str(n) for n in numbers]
    as_csv = pa.array([None if n is None else f"{n}.0".encode() for n in numbers], pa.binary())
    plain = pa.array([None if n is None else str(n).encode() for n in numbers], pa.binary())
    assert ids_of(pa.array(numbers, pa.int64())) == expected
    assert ids_of(pa.array(numbers, pa.float64())) == expected
    assert ids_of(as_csv) == expected
    assert ids_of(plain) == expected


@pytest.mark.cluster
def test_a_log_that_meets_few_of_the_catalogue_s_items_is_the_first_thing_an_import_says(
    rayapp_here: Command, tmp_path: Path
) -> None:
    root, domain, items, events = (tmp_path / name for name in ("root", "domain.toml", "items.csv", "events.csv"))
    domain.write_text(DOMAIN_TOML.replace("#EVENTS", "").replace('["title"]', '["title"]\nnumbers = ["price"]'))
    catalogue = {"item_id": [f"item-{n}" for n in range(9)], "title": ["t"] * 9, "price": ["$1"] * 9}
    pd.DataFrame(catalogue).to_csv(items, index=False)
    frame([f"{n}.0" for n in range(9)], [f"sku-{n}" for n in range(8)] + ["item-1"]).to_csv(events, index=False)
    done = rayapp_here("import", "--root", root, "--domain", domain, "--events", events, "--items", items, "--strict")
    assert done.exit_code == 3, "every row is good, and the whole is not"
    assert "quarantined: nothing" in done.output
    lines = [line for line in done.output.splitlines() if line and "…" not in line]
    assert lines[0].startswith("warning: the catalogue knows the item of only 11% of the events (1 of 9)")
    assert "'sku-" in lines[0]
    assert "user_id written like 12.0, read as 12: 9" in lines
    assert "price is not a number; left empty: 9, as '$1' in row 1 of items.csv" in lines
    stored = read_log(root, "events", ["user_id"])["user_id"].to_pylist()
    assert sorted(stored) == [str(n) for n in range(9)]
