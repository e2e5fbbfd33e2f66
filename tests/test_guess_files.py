"""What the first domain file recognises in files as other programs export them: it parses, and reads its own sample."""

import csv
import datetime
import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from rayapp.cli.main import cli
from rayapp.importing.domains.layout import DomainFile
from rayapp.importing.domains.parse import parse_domain
from rayapp.importing.files import expand, plan
from rayapp.importing.guess import Guess, guess_domain
from rayapp.importing.rows import Clock, entity_rows, event_rows, impression_rows, list_rows
from rayapp.importing.staging import Notes, read_checked
from tests.conftest import T0

CLOCK = Clock(946_684_800_000, T0 + 400 * 86_400_000)
HEADER = ("user_id", "item_id", "action", "timestamp")
ROWS = [(f"u{n % 4}", f"i{n}", "buy" if n % 3 else "view", T0 + n * 3_600_000) for n in range(30)]


def table(header: Sequence[str], rows: Sequence[Sequence[object]], **how: object) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, **how).writerows([header, *rows])  # type: ignore[arg-type]
    return text.getvalue()


def read(path: Path, guess: Guess, kind: str = "events") -> list[dict[str, object]]:
    """The rows of the sample, of which none is refused."""
    file: DomainFile = parse_domain(guess.text)
    layouts = {"events": file.events, "requests": file.requests, "items": (file.items,)}[kind]

    def reader(raw: pa.Table, n: int) -> object:
        if kind == "items":
            return entity_rows(raw, layouts[n], file.domain.attributes, CLOCK, users=False)
        lists = impression_rows if kind == "requests" and layouts[n].rows else list_rows
        return (event_rows if kind == "events" else lists)(raw, layouts[n], file.domain, CLOCK)

    rows: list[dict[str, object]] = []
    for one in expand([path]):
        pieces, why = plan(one, layouts, "layout")
        assert not why
        for _, found, rejected in read_checked(pieces, reader, Notes()):
            assert not rejected
            rows += found.to_pylist() if found is not None else []
    return rows


def log(directory: Path) -> Path:
    (directory / "log.csv").write_text(table(HEADER, ROWS))
    return directory / "log.csv"


@pytest.mark.parametrize(
    ("how", "encoding", "lines"),
    [
        ({"delimiter": ";"}, "utf-8", ['delimiter = ";"']),
        ({"delimiter": "|", "quoting": csv.QUOTE_ALL}, "utf-8-sig", ['delimiter = "|"']),
        ({}, "cp1252", ['encoding = "cp1252"']),
        ({"delimiter": "\t"}, "utf-16", ['encoding = "utf-16"', 'delimiter = "\\t"']),
        ({"quoting": csv.QUOTE_ALL, "doublequote": False, "escapechar": "\\"}, "utf-8", ['escape = "\\\\"']),
    ],
)
def test_how_a_text_is_written(tmp_path: Path, how: dict[str, object], encoding: str, lines: list[str]) -> None:
    rows = [(user, f'é"{item}', *rest) for user, item, *rest in ROWS]
    path = tmp_path / "log.csv"
    path.write_bytes(table(HEADER, rows, **how).encode(encoding))
    guess = guess_domain(path, None, {})
    for line in lines:
        assert line in guess.text
    assert [r["item_id"] for r in read(path, guess)] == [item for _, item, *_ in rows]


@pytest.mark.parametrize(
    ("form", "line"),
    [
        ("%Y-%m-%d %H:%M:%S UTC", 'unit = "iso" }'),
        ("%Y-%m-%dT%H:%M:%S%z", 'unit = "iso" }'),
        ("%Y-%m-%d %H:%M:%S", 'unit = "iso" } # no zone is named: UTC, unless you add zone = "…"'),
        ("%d.%m.%Y %H:%M:%S", 'format = "%d.%m.%Y %H:%M:%S" } # no zone'),
        ("%Y%m%d%H%M%S", 'format = "%Y%m%d%H%M%S" } # no zone'),
        ("%m/%d/%Y %I:%M:%S %p", 'format = "%m/%d/%Y %I:%M:%S %p" } # no zone'),
        ("%d/%b/%Y:%H:%M:%S %z", 'format = "%d/%b/%Y:%H:%M:%S %z" }'),
    ],
)
def test_how_times_are_written(tmp_path: Path, form: str, line: str) -> None:
    step_ms = 26 * 3_600_000
    moments = [datetime.datetime.fromtimestamp(T0 // 1000 + n * step_ms // 1000, datetime.UTC) for n in range(30)]
    rows = [(*row[:3], at.strftime(form)) for row, at in zip(ROWS, moments, strict=True)]
    path = tmp_path / "log.csv"
    path.write_text(table(HEADER, rows))
    guess = guess_domain(path, None, {})
    assert line in guess.text
    assert [r["timestamp_ms"] for r in read(path, guess)] == [int(at.timestamp() * 1000) for at in moments]


def test_a_day_that_may_be_a_month_is_told(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(table(HEADER, [(*row[:3], "05/06/2026 10:00") for row in ROWS]))
    assert "or %m/%d/%Y %H:%M: the sample doesn't tell the day from the month" in guess_domain(path, None, {}).text


@pytest.mark.parametrize(
    "header",
    [
        ("visitorid", "itemid", "event", "timestamp"),
        ("customer_id", "sku", "event_name", "event_timestamp"),
        ("Customer ID", "Product ID", "Event Type", "Date"),
        ("userId", "trackId", "eventName", "playedAt"),
        ("reader_id", "article_id", "behaviour", "clicked_at"),
        ("candidate_id", "job_id", "activity", "created_at"),
    ],
)
def test_usual_names(tmp_path: Path, header: tuple[str, ...]) -> None:
    path = tmp_path / "log.csv"
    path.write_text(table(header, ROWS))
    assert len(read(path, guess_domain(path, None, {}))) == len(ROWS)


def test_actions_as_flags_and_as_folders(tmp_path: Path) -> None:
    path = tmp_path / "flags.csv"
    rows = [(u, i, t, n % 3 == 0, "t" if n % 5 == 0 else "f") for n, (u, i, _, t) in enumerate(ROWS)]
    path.write_text(table(("user_id", "item_id", "timestamp", "is_bought", "liked"), rows))
    guess = guess_domain(path, None, {})
    assert (guess.goal, guess.left_out) == ("bought", {})
    assert {r["action"] for r in read(path, guess)} == {"bought", "liked", "view"}
    for action in ("view", "add_to_cart", "purchase"):
        (tmp_path / "log" / f"action={action}").mkdir(parents=True)
        frame = pd.DataFrame(ROWS, columns=HEADER).drop(columns="action")
        for part in range(40):
            frame[part::40].to_parquet(tmp_path / "log" / f"action={action}" / f"part-{part}.parquet")
    guess = guess_domain(tmp_path / "log", None, {})
    assert Counter(r["action"] for r in read(tmp_path / "log", guess)) == dict.fromkeys(
        ("view", "add_to_cart", "purchase"), len(ROWS)
    )
    assert guess.goal == "purchase"


def test_the_goal_is_what_a_feed_is_most_likely_for(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    words = ["click"] * 9 + ["add_to_cart"] * 6 + ["Purchase"] * 3 + ["impression"] * 12
    path.write_text(table(HEADER, [(*row[:2], word, row[3]) for row, word in zip(ROWS, words, strict=True)]))
    guess = guess_domain(path, None, {})
    assert guess.goal == "Purchase"
    assert parse_domain(guess.text).domain.positive_head == "Purchase"
    assert guess.requests == path, "the impressions among the events are lists"
    assert len(read(path, guess, "requests")) == 12


@pytest.mark.parametrize("shown", ["['i1', 'i2']", '["i1", "i2"]', "i1|i2", "i1 i2", "i1,i2"])
def test_lists_of_shown_items_as_text(tmp_path: Path, shown: str) -> None:
    path = tmp_path / "shown.csv"
    path.write_text(table(("rid", "user_id", "ts", "recommended", "model"), [("r", "u", T0, shown, "m")] * 9))
    guess = guess_domain(log(tmp_path), None, {}, path)
    assert [r["item_ids"] for r in read(path, guess, "requests")] == [["i1", "i2"]] * 9
    assert guess.left_out == {"[[requests]]": ["model"]}
    assert guess.requests == path


def test_labels_are_no_lists_of_items(tmp_path: Path) -> None:
    path = tmp_path / "shown.ndjson"
    row = {"user_id": "u", "ts": T0, "clicked": [0, 1], "scores": [0.5, 0.25], "offers": [17, 18]}
    path.write_text("".join(json.dumps(row) + "\n" for _ in range(9)))
    guess = guess_domain(log(tmp_path), None, {}, path)
    assert read(path, guess, "requests")[0]["item_ids"] == ["17", "18"]
    assert guess.left_out == {"[[requests]]": ["clicked", "scores"]}


def items(tmp_path: Path, columns: dict[str, list[object]]) -> tuple[DomainFile, Guess, list[dict[str, object]]]:
    pq.write_table(pa.table(columns), tmp_path / "items.parquet")
    guess = guess_domain(log(tmp_path), tmp_path / "items.parquet", {})
    return parse_domain(guess.text), guess, read(tmp_path / "items.parquet", guess, "items")


def test_columns_of_items(tmp_path: Path) -> None:
    count = 40
    file, guess, rows = items(
        tmp_path,
        {
            "sku": [f"i{n}" for n in range(count)],
            "price": ["$19.99", "1,234.50", "N/A", "7.5"] * 10,
            "Product Name": [f"Thing {n}" for n in range(count)],
            "tags": ["red|small", "blue|large"] * 20,
            "published": ["2026-05-01"] * count,
            "in_stock": ["true", "false"] * 20,
            "embedding": [[0.1, 0.2]] * count,
            "note": [""] * count,
            "labels": ["x"] * count,
        },
    )
    kinds = {a.name: a.kind.value for a in file.domain.attributes}
    assert kinds == {"Product Name": "text", "tags": "categories", "price": "number"}
    assert file.domain.title == "Product Name"
    assert (rows[0]["tags"], rows[0]["available"], rows[1]["available"]) == (["red", "small"], True, False)
    assert rows[0]["created_at_ms"] == datetime.datetime(2026, 5, 1, tzinfo=datetime.UTC).timestamp() * 1000
    assert [name.split(" (")[0] for name in guess.left_out["[items]"]] == ["embedding", "labels", "note"]
    assert "# [items] leaves out: embedding (a list of numbers" in guess.text


def test_items_without_text_or_category_are_named_by_their_id(tmp_path: Path) -> None:
    file, _, rows = items(tmp_path, {"id": ["a", "b"], "price": [1.5, 2.0]})
    assert file.domain.title == "label"
    assert [(r["item_id"], r["label"], r["price"]) for r in rows] == [("a", "a", 1.5), ("b", "b", 2.0)]


def test_the_command_says_the_goal_what_is_left_out_and_the_import_with_all_its_options(tmp_path: Path) -> None:
    path, out = tmp_path / "my log.csv", tmp_path / "domain.toml"
    rows = [(*row, "x") for row in ROWS] + [("u", "i", "impression", T0, "x")]
    path.write_text(table((*HEADER, "campaign"), rows))
    done = CliRunner().invoke(cli, ["init-domain", "--events", str(path), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "the goal is 'buy'; another one is chosen by positive_head" in done.output
    assert "[[events]] leaves out: campaign" in done.output
    line = f"rayapp import --domain {out} --events '{path}' --requests '{path}' --items ITEMS --root data"
    assert line in done.output
    assert "# [[events]] leaves out: campaign" in out.read_text()
