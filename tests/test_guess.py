"""The first domain file: what it guesses from a team's own files parses, reads them, and says what it follows from."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from rayapp.cli.main import cli
from rayapp.contracts.config import DAY_MS, FOREVER, HALF_LIVES_MS, HOUR_MS, MINUTE_MS
from rayapp.importing.domains import load_domain
from rayapp.importing.domains.layout import DomainFile, TimeColumn, TimeUnit
from rayapp.importing.domains.parse import parse_domain
from rayapp.importing.files import plan, read_piece
from rayapp.importing.guess import guess_domain
from rayapp.importing.guess_times import FEWEST, LogColumns, read_log
from rayapp.importing.rows import Clock, event_rows, list_rows
from rayapp.root.publish import PublishError
from tests.conftest import T0

SECOND_MS = 1000
CLOCK = Clock(T0 - 400 * DAY_MS, T0 + 400 * DAY_MS)


def test_a_first_domain_file_reads_the_sample_it_was_guessed_from(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    rows = [
        f"{u},{i},{a},{T0 // 1000 + u},r{u}" for u in range(9) for i, a in ((1, "impression"), (1, "save"), (2, "hide"))
    ]
    path.write_text("uid,product_id,event,ts,request_id\n" + "\n".join(rows) + "\n")
    items = tmp_path / "items.csv"
    items.write_text(
        "product_id,title,colour,price\n1,Red shoe,red,9.5\n2,Blue shoe,blue,8\n3,Grey shoe,red,8\n4,Hat,blue,1\n"
    )
    domain = parse_domain(guess_domain(path, items, {}).text)
    assert {a.name: a.kind.value for a in domain.domain.vocabulary.actions} == {
        "impression": "neutral",
        "save": "positive",
        "hide": "negative",
    }
    assert {a.name: a.kind.value for a in domain.domain.attributes} == {
        "title": "text",
        "colour": "categories",
        "price": "number",
    }
    pieces, rejected = plan(path, domain.events, "")
    (chunk,) = [got for piece in pieces for got in read_piece(piece)]
    assert not isinstance(chunk, list)
    events, check = event_rows(chunk[0], domain.events[0], domain.domain, CLOCK)
    assert (events.num_rows, check.rejected, rejected) == (27, [], [])
    with pytest.raises(PublishError, match="--action"):
        guess_domain(items, None, {"user_id": "product_id", "timestamp": "price", "item_id": "title"})


def ndjson(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def guessed(events: Path, **more: Any) -> tuple[DomainFile, dict[str, str]]:
    """The file as it parses, and its lines by key."""
    text = guess_domain(events, None, {}, **more).text
    lines = dict(line.split(" = ", 1) for line in text.splitlines() if " = " in line and not line.startswith("#"))
    return parse_domain(text), lines


def clicks(wait_ms: int, number: int = FEWEST, **more: Any) -> list[dict[str, Any]]:
    """Each in a list of its own, that was shown a day after the one before."""
    return [
        {"user_id": "u", "item_id": f"i{n}", "event": "click", "ts": T0 + n * DAY_MS + wait_ms, **more}
        for n in range(number)
    ]


def lists(number: int = FEWEST, **more: Any) -> list[dict[str, Any]]:
    return [
        {"user_id": "u", "item_ids": [f"i{n}", "x"], "ts": T0 + n * DAY_MS, "request_id": f"r{n}", **more}
        for n in range(number)
    ]


@pytest.mark.parametrize(
    ("wait_ms", "attribution_ms", "flag_delay_ms", "said"),
    [
        (20 * SECOND_MS, HOUR_MS, 10 * MINUTE_MS, "20s"),
        (20 * MINUTE_MS, HOUR_MS, 30 * MINUTE_MS, "20m"),
        (5 * HOUR_MS, 6 * HOUR_MS, 6 * HOUR_MS, "5h"),
        (60 * DAY_MS, 30 * DAY_MS, 30 * DAY_MS, "60d"),
    ],
)
def test_attribution_and_flag_delay_follow_from_what_came_after_the_lists(
    tmp_path: Path, wait_ms: int, attribution_ms: int, flag_delay_ms: int, said: str
) -> None:
    rows = clicks(wait_ms)
    named = [{**row, "request_id": f"r{n}"} for n, row in enumerate(rows)]
    shown = ndjson(tmp_path / "shown.ndjson", lists())
    impressions = [
        {"user_id": "u", "item_id": f"i{n}", "event": "impression", "ts": T0 + n * DAY_MS, "request_id": f"r{n}"}
        for n in range(FEWEST)
    ]
    for events, request_path, after in (
        (named, shown, "of their list"),
        (rows, shown, "of the latest list with the item"),
        ([*impressions, *named], None, "of their list"),
    ):
        domain, lines = guessed(ndjson(tmp_path / "log.ndjson", events), request_path=request_path)
        assert (domain.domain.attribution_ms, domain.domain.flag_delay_ms) == (attribution_ms, flag_delay_ms)
        assert lines["attribution"].endswith(f"here 99% of 100 actions came within {said} {after}")
        assert lines["flag_delay"].endswith(f"here 90% of 100 actions came within {said} {after}")


def test_without_lists_they_follow_from_the_first_action_of_a_list_or_of_a_visit(tmp_path: Path) -> None:
    first = [{**row, "request_id": f"r{n}"} for n, row in enumerate(clicks(0))]
    later = [{**row, "request_id": f"r{n}"} for n, row in enumerate(clicks(80 * MINUTE_MS))]
    domain, lines = guessed(ndjson(tmp_path / "log.ndjson", first + later))
    assert domain.domain.attribution_ms == 2 * HOUR_MS
    assert lines["attribution"].endswith("here 99% of 100 actions came within 80m of the first on the same list")
    domain, lines = guessed(ndjson(tmp_path / "log.ndjson", [*clicks(0), *clicks(3 * MINUTE_MS), *clicks(5 * HOUR_MS)]))
    assert (domain.domain.attribution_ms, domain.domain.flag_delay_ms) == (HOUR_MS, 10 * MINUTE_MS)
    assert lines["attribution"].endswith("here 99% of 100 actions came within 3m of the first of a visit")


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        (clicks(0, 3), "the usual: 0 actions to go by of the first of a visit are too few to tell"),
        ([*clicks(0), *clicks(0)], "the usual: the times of the file are too coarse to tell"),
    ],
)
def test_too_little_to_tell_is_the_usual_and_is_said(tmp_path: Path, rows: list[dict[str, Any]], why: str) -> None:
    domain, lines = guessed(ndjson(tmp_path / "log.ndjson", rows))
    assert (domain.domain.attribution_ms, domain.domain.flag_delay_ms) == (DAY_MS, 10 * MINUTE_MS)
    assert lines["attribution"].endswith(why)
    assert lines["flag_delay"].endswith(why)
    assert domain.domain.half_lives_ms == HALF_LIVES_MS
    assert lines["half_lives"].endswith("the usual: 0 items with 5 actions are too few to tell")


@pytest.mark.parametrize(
    ("life_ms", "log_ms", "half_lives_ms", "why"),
    [
        (2 * HOUR_MS, 10 * DAY_MS, (10 * MINUTE_MS, HOUR_MS, 6 * HOUR_MS, FOREVER), "within 96m (middle of 50 items)"),
        (DAY_MS, 10 * DAY_MS, (HOUR_MS, 6 * HOUR_MS, DAY_MS, FOREVER), "within 19h (middle of 50 items)"),
        (10 * DAY_MS, 60 * DAY_MS, HALF_LIVES_MS, "within 8d (middle of 50 items)"),
        (90 * DAY_MS, 90 * DAY_MS, (DAY_MS, 7 * DAY_MS, 30 * DAY_MS, FOREVER), "within 72d (middle of 50 items)"),
        (2 * DAY_MS, 2 * DAY_MS, HALF_LIVES_MS, "the usual: items live longer than the 2d that were read"),
    ],
)
def test_half_lives_follow_from_how_long_items_live(
    tmp_path: Path, rng: np.random.Generator, life_ms: int, log_ms: int, half_lives_ms: tuple[int, ...], why: str
) -> None:
    """50 items, born at any time of the log, have 51 actions each, spread evenly over their lives."""
    born_I = np.r_[0, log_ms - life_ms, rng.integers(0, log_ms - life_ms + 1, 48)]
    at_A = T0 + (born_I[:, None] + np.linspace(0, life_ms, 51, dtype=np.int64)).ravel()
    actions = {"user_id": np.arange(50 * 51), "item_id": np.repeat(np.arange(50), 51), "event": "click", "ts": at_A}
    pd.DataFrame(actions).to_parquet(tmp_path / "log.parquet")
    domain, lines = guessed(tmp_path / "log.parquet")
    assert domain.domain.half_lives_ms == half_lives_ms
    assert lines["half_lives"].endswith(why)
    assert "the usual: 0 actions" in lines["attribution"], "each user acted once"


@pytest.mark.parametrize("as_text", [False, True])
def test_files_of_shown_lists_get_a_layout_that_reads_them(tmp_path: Path, as_text: bool) -> None:
    events = ndjson(tmp_path / "log.ndjson", [{**row, "article_id": row["item_id"]} for row in clicks(SECOND_MS)])
    rows = [{"impression_id": f"r{n}", "uid": "u", "time": T0 // 1000 + n, "article_ids": ["a", "b"]} for n in range(9)]
    path = tmp_path / ("shown.csv" if as_text else "shown.ndjson")
    if as_text:
        pd.DataFrame(rows).assign(article_ids="a|b").to_csv(path, index=False)
    else:
        ndjson(path, rows)
    domain = parse_domain(guess_domain(events, None, {"item_id": "article_id"}, path).text)
    (piece,), _ = plan(path, domain.requests, "")
    (chunk,) = read_piece(piece)
    assert not isinstance(chunk, list)
    shown, check = list_rows(chunk[0], domain.requests[0], domain.domain, CLOCK)
    assert shown["item_ids"].to_pylist() == [["a", "b"]] * 9
    assert (shown["request_id"].to_pylist(), check.rejected) == ([f"r{n}" for n in range(9)], [])


def test_shown_items_a_row_each_get_a_layout_too_and_a_needed_column_is_asked_for(tmp_path: Path) -> None:
    events, path = ndjson(tmp_path / "log.ndjson", clicks(SECOND_MS)), tmp_path / "shown.csv"
    path.write_text(f"user_id,item_id,ts\nu,i1,{T0}\nu,i2,{T0}\n")
    domain, _ = guessed(events, request_path=path)
    assert domain.requests[0].rows
    path.write_text(f"who,item_id,ts\nu,i1,{T0}\n")
    with pytest.raises(PublishError, match=r"no column looks like user_id; it has .* with --user"):
        guessed(events, request_path=path)


def test_directories_are_read_and_rows_without_a_time_left_out(tmp_path: Path) -> None:
    for n, times in enumerate(([T0, None], [T0 + 1])):
        ndjson(tmp_path / f"{n}.ndjson", [{"user": 1, "item": 2, "ts": t, "action": "click"} for t in times])
    rows = read_log(tmp_path, LogColumns("user", "item", TimeColumn.model_validate("ts"), action="action"))
    assert rows["ms"].tolist() == [T0, T0 + 1]
    assert rows["request"].tolist() == [0, 0]


def test_columns_of_ours_become_no_attributes_of_items(tmp_path: Path) -> None:
    items = ndjson(
        tmp_path / "items.ndjson",
        [{"item_id": f"i{n}", "title": f"Shoe {n}", "created_at_ms": T0, "available": 1} for n in range(9)],
    )
    domain = parse_domain(guess_domain(ndjson(tmp_path / "log.ndjson", clicks(0)), items, {}).text)
    assert [a.name for a in domain.domain.attributes] == ["title"]
    assert domain.items.at is not None
    assert domain.items.at.unit is TimeUnit.MILLISECONDS


def test_the_clocks_are_utc_until_somebody_names_a_zone(tmp_path: Path) -> None:
    domain, lines = guessed(ndjson(tmp_path / "log.ndjson", clicks(0)))
    assert domain.domain.time_zone == "UTC"
    assert lines["time_zone"].endswith('the name of a zone, like "Europe/Berlin"')


def test_the_command_says_how_to_import_with_the_lists(tmp_path: Path) -> None:
    events, shown = ndjson(tmp_path / "log.ndjson", clicks(0)), ndjson(tmp_path / "shown.ndjson", lists())
    out = tmp_path / "domain.toml"
    arguments = ["init-domain", "--events", str(events), "--requests", str(shown), "--out", str(out)]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.output
    assert f"rayapp import --domain {out} --events {events} --requests {shown} --items ITEMS" in done.output
    assert load_domain(str(out)).domain.attribution_ms == DAY_MS, "all waits are 0"
