"""From logs to a report: what counts for which arm, the days, retrainings, and the stop through the command line."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from click.testing import Result

from rayapp.contracts.config import DAY_MS, Domain
from rayapp.contracts.hashing import hash64_column
from rayapp.contracts.json_values import from_json, to_json
from rayapp.contracts.schema import bucket_of
from rayapp.experiments.assignment import ExperimentBook, Running, record_steps
from rayapp.experiments.collect import COLUMNS, Tally, complete_days, tally_bucket
from rayapp.experiments.declaration import ExperimentError
from rayapp.experiments.report import Report, build, find, make_report
from rayapp.experiments.text import render
from rayapp.pipeline.histories import LABEL_COLUMNS
from rayapp.pipeline.labels import label_requests
from rayapp.registry.retrainings import read_retrainings, record_retraining
from rayapp.root.logs import log_schema, sort_log, without_copies, write_file
from rayapp.root.places import EVENTS, REQUESTS, RETRAINING_LOG
from rayapp.root.publish import PublishError, commit_log
from tests.conftest import Command

START_MS = 1_796_083_200_000  # 2026-12-01
TEXT = """
[[experiments]]
name = "exp"
salt = "exp-1"
starts = 2026-12-01
planned_days = 3
guardrails = [{ head = "hide", must_not = "rise" }]

[[experiments.arms]]
name = "control"
alias = "champion"
share = 0.4

[[experiments.arms]]
name = "treatment"
alias = "longer"
share = 0.4
"""
NUM_BUCKETS = 4
Row = dict[str, Any]


@pytest.fixture
def root(root: Path) -> Path:
    (root / "experiments.toml").write_text(TEXT)
    return root


@pytest.fixture
def running(root: Path, domain: Domain) -> Running:
    found = find(root, domain, None, START_MS)
    assert found is not None
    return found


def request(number: int, user: str, at_ms: int, arm: str | None, **more: object) -> Row:
    values = {"request_id": f"r{number}", "user_id": user, "timestamp_ms": at_ms, "item_ids": ["a", "b"]}
    return {**values, "experiment": arm and f"exp/{arm}", "model_version": f"model-of-{arm}", **more}


def event(number: int, row: Row, item: str, action: str) -> Row:
    at_ms = row["timestamp_ms"] + 1_000
    values = {"event_id": f"e{number}", "user_id": row["user_id"], "item_id": item, "action": action}
    return {**values, "timestamp_ms": at_ms, "received_at_ms": at_ms, "commit_seq": 0, "request_id": row["request_id"]}


def members(running: Running, arm: str | None, number: int) -> list[str]:
    """Users whose slot gives them this arm."""
    users = [f"user-{n}" for n in range(12 * number)]
    return [u for u in users if getattr(running.assign(u), "name", None) == arm][:number]


def tally(requests: list[Row], events: list[Row], running: Running, bounds_ms: list[int], domain: Domain) -> Tally:
    full = [{"event_hash": 0, **e} for e in events]
    labelled = label_requests(
        without_copies(pa.Table.from_pylist(requests, schema=COLUMNS)),
        pa.Table.from_pylist(full, schema=LABEL_COLUMNS),
        domain,
        (bounds_ms[0], bounds_ms[-1]),
    )
    return tally_bucket(labelled, running, bounds_ms, domain)


def worlds(running: Running, hide_rates: dict[str, float], users: int, days: int = 4) -> tuple[list[Row], list[Row]]:
    """A request a day of each user; an arm's users hide at its rate."""
    rng, requests, events = np.random.default_rng(3), list[Row](), list[Row]()
    for arm in ("control", "treatment", None):
        for user in members(running, arm, users):
            for day in range(days):
                at_ms = START_MS + day * DAY_MS + int(rng.integers(DAY_MS))
                requests.append(request(len(requests), user, at_ms, arm))
                for item in ("a", "b"):
                    if rng.random() < hide_rates.get(str(arm), 0.0):
                        events.append(event(len(events), requests[-1], item, "hide"))
    return requests, events


def write_logs(root: Path, domain: Domain, requests: list[Row], events: list[Row]) -> None:
    for kind, rows in ((REQUESTS, requests), (EVENTS, events)):
        schema, files = log_schema(kind, domain), []
        for bucket in range(NUM_BUCKETS):
            mine = [row for row in rows if bucket_of(row["user_id"], NUM_BUCKETS) == bucket]
            hashes = hash64_column(pa.array([row.get("event_id", "") for row in mine], pa.string()))
            mine = [{**row, "event_hash": int(h)} for row, h in zip(mine, hashes, strict=True)]
            if mine:
                files.append(write_file(root / kind, "t", bucket, "t", sort_log(pa.Table.from_pylist(mine, schema))))
        commit_log(root / kind, 0, {"files": files})


def test_what_is_counted_for_whom(running: Running, domain: Domain) -> None:
    a, b = members(running, "control", 2)
    (t,), (outsider,) = members(running, "treatment", 1), members(running, None, 1)
    at_ms = START_MS + 10
    requests = [
        request(0, a, at_ms, "control"),
        request(0, a, at_ms, "control"),  # exported twice
        request(1, a, at_ms + DAY_MS, "control", fallback_reason="ranker"),
        request(2, b, at_ms, "control"),
        request(3, t, at_ms, "treatment"),
        request(4, t, at_ms + 1, "control"),  # an arm that is not this user's
        request(5, outsider, at_ms, None),
        request(6, a, START_MS - 1, "control"),  # before the start
        request(7, a, START_MS + 2 * DAY_MS, "control"),  # behind the last complete day
    ]
    events = [
        event(0, requests[0], "a", "save"),
        event(1, requests[0], "b", "save"),
        event(2, requests[3], "a", "hide"),
        event(3, requests[4], "a", "save"),
        {**event(4, requests[2], "a", "save"), "timestamp_ms": at_ms + 3 * DAY_MS},  # too late
        event(5, requests[7], "a", "save"),
    ]
    found = tally(requests, events, running, [START_MS + d * DAY_MS for d in range(3)], domain)
    control, treatment = found.per_item
    assert control.n_P.tolist() == [6, 2]  # 0, 2, and 4 as logged; then 1
    assert control.x_PH.tolist() == [[2, 1], [0, 0]]
    assert found.per_request[0].x_PH.tolist() == [[1, 1], [0, 0]]
    assert control.nn_PP.tolist() == [[2 * 2 + 2 * 2 + 2 * 2, 2 * 2], [2 * 2, 2 * 2]]
    assert treatment.x_PH.tolist() == [[1, 0], [0, 0]]
    assert (found.users_KA.tolist(), found.misplaced) == ([[2, 1]], 1)
    assert (found.fallbacks, found.others_P) == ([1, 0], [1, 0])
    assert found.versions == [{"model-of-control": 4}, {"model-of-treatment": 1}]
    again = from_json(Tally, json.loads(json.dumps(to_json(found))))
    assert json.dumps(to_json(again)) == json.dumps(to_json(found))
    twice = found + again
    assert (twice.users_KA == 2 * found.users_KA).all()
    assert twice.versions[0] == {"model-of-control": 8}


def test_users_are_counted_the_same_in_parts(running: Running, domain: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
    requests, events = worlds(running, {"control": 0.1, "treatment": 0.3}, users=30)
    bounds_ms = [START_MS + d * DAY_MS for d in range(4)]
    whole = tally(requests, events, running, bounds_ms, domain)
    monkeypatch.setattr(sys.modules[tally_bucket.__module__], "PART_USERS", 7)
    parts = tally(requests, events, running, bounds_ms, domain)
    assert to_json(parts) == to_json(whole)


def test_a_day_counts_when_there_was_time_to_act(running: Running, domain: Domain) -> None:
    ends_ms = START_MS + DAY_MS
    assert complete_days(running, ends_ms + domain.attribution_ms - 1, domain) == 0
    assert complete_days(running, ends_ms + domain.attribution_ms, domain) == 1
    assert complete_days(running, START_MS - DAY_MS, domain) == 0
    assert complete_days(running, START_MS + 99 * DAY_MS, domain) == 3, "no more than planned"
    stopped = dataclasses.replace(running, stopped={"at_ms": ends_ms + 5, "why": ""})
    assert complete_days(stopped, START_MS + 99 * DAY_MS, domain) == 1


def made(running: Running, domain: Domain, rates: dict[str, float], users: int = 150, **more: Any) -> Report:
    days = [START_MS + d * DAY_MS for d in range(4)]
    events = more.pop("retrainings", [])
    bounds_ms = sorted({*days, *(e.at_ms for e in events)})
    counted = tally(*worlds(running, rates, users), running, bounds_ms, domain)
    return build(running, counted, bounds_ms, events, domain, "on")


def test_a_guardrail_is_crossed_by_harm_alone(running: Running, domain: Domain) -> None:
    harmed = made(running, domain, {"control": 0.1, "treatment": 0.4})
    (crossed,) = harmed.crossed
    assert (crossed.arm, crossed.head, crossed.crossed_day) == ("treatment", "hide", 1)
    assert "CROSSED on day 1" in render(harmed)
    hide = next(row for row in harmed.differences if row.head == "hide")
    assert hide.difference.low is not None
    assert 0.1 < hide.difference.low < 0.3 < (hide.difference.high or 0)
    for rates in ({"control": 0.4, "treatment": 0.1}, {"control": 0.2, "treatment": 0.2}):
        fine = made(running, domain, rates)
        assert not fine.crossed
        assert fine.sample_ratio is not None
        assert not fine.sample_ratio.alarm
        assert "guardrail hide must not rise in treatment: holds" in render(fine)


def test_the_first_days_decide_little_and_a_later_look_moves_no_earlier_one(running: Running, domain: Domain) -> None:
    report = made(running, domain, {"control": 0.1, "treatment": 0.2})
    (guarded,) = report.guardrails
    bounds = [float(b or np.inf) for b in guarded.boundaries]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[0] > 3 > 1.8 > bounds[-1] > 1.64


def test_before_and_after_a_retraining(root: Path, running: Running, domain: Domain) -> None:
    at_ms = START_MS + DAY_MS + 5_000_000
    record_retraining(root, at_ms, {"champion": ("c1", "c2"), "longer": ("l1", "l2")}, "window-2")
    record_retraining(root, at_ms + DAY_MS, {"champion": ("c2", "c3")}, "window-3")
    rows = made(running, domain, {"control": 0.1, "treatment": 0.3}, retrainings=read_retrainings(root)).retrainings
    assert [row.together for row in rows] == [True, False]
    assert rows[0].pooled.keys() == {"control", "treatment", "others"}
    assert rows[0].pooled["treatment"] == pytest.approx(1 / 3, abs=0.02)
    around = next(a for a in rows[0].around if a.head == "hide")
    for side in (around.before, around.after):
        assert side.low is not None
        assert 0 < side.low < 0.2 < (side.high or 0)
    assert around.change.value == pytest.approx((around.after.value or 0) - (around.before.value or 0))
    assert (around.change.low or 0) < 0 < (around.change.high or 0)


def test_retrainings_survive_a_torn_append(root: Path) -> None:
    assert read_retrainings(root) == []
    record_retraining(root, 2, {"champion": (None, "v1")}, "w1")
    with (root / RETRAINING_LOG).open("a") as file:
        file.write('{"at_ms": 3, "ali')
    assert [r.at_ms for r in read_retrainings(root)] == [2]
    record_retraining(root, 1, {"champion": ("v1", "v2")}, "w2")
    assert [(r.at_ms, r.aliases["champion"]["from"], r.window) for r in read_retrainings(root)] == [
        (1, "v1", "w2"),
        (2, None, "w1"),
    ]
    (root / RETRAINING_LOG).write_text('{"at": 3}\n')
    with pytest.raises(PublishError, match="line 1 is no retraining"):
        read_retrainings(root)


def test_growth_is_told_and_is_no_mismatch(root: Path, domain: Domain) -> None:
    find(root, domain, "exp", START_MS)
    grown = TEXT.replace("share = 0.4", "share = 0.5", 1)
    (root / "experiments.toml").write_text(grown)
    (running,) = record_steps(root, domain, START_MS + DAY_MS)
    report = made(running, domain, {})
    assert report.changes == ["day 2: control share from 0.4 to 0.5"]
    assert sum(row.users for row in report.arms) == 300
    assert "day 2: control share" in render(report)


def test_the_experiment_is_found(root: Path, domain: Domain) -> None:
    assert find(root, domain, None, START_MS - 1) is None
    with pytest.raises(ExperimentError, match=r"no experiment 'other' in .*; known: exp"):
        find(root, domain, "other", START_MS)
    over = find(root, domain, None, START_MS + 99 * DAY_MS)
    assert over is not None
    assert over.status(START_MS + 99 * DAY_MS) == "over"


def test_nothing_is_said_before_a_day_is_complete(running: Running, domain: Domain) -> None:
    report = build(running, None, [START_MS], [], domain, "on")
    assert "no day is complete yet" in render(report)
    json.dumps(to_json(report))


@pytest.mark.cluster
def test_a_daily_check_stops_a_harmful_arm(
    rayapp_here: Command, root: Path, running: Running, domain: Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the files of the logs, Ray Data and the commands; afterwards a server's book gives nobody an arm."""
    requests, events = worlds(running, {"control": 0.1, "treatment": 0.4}, users=120, days=4)
    write_logs(root, domain, requests, events)
    now_ms = START_MS + 5 * DAY_MS // 2
    report = make_report(root, domain, running, now_ms)
    bounds_ms = [START_MS + d * DAY_MS for d in range(report.days + 1)]
    assert report == build(running, tally(requests, events, running, bounds_ms, domain), bounds_ms, [], domain, "on")
    book = ExperimentBook(root, domain)
    book.refresh(now_ms)
    (user,) = members(running, "treatment", 1)
    assert getattr(book.arm_of(user, now_ms), "label", None) == "exp/treatment"

    monkeypatch.setattr("rayapp.cli.experiments._now_ms", lambda: now_ms)

    def call(*words: str) -> Result:
        return rayapp_here("experiment", *words, "--root", root)

    assert json.loads(call("report", "--json").output)["guardrails"][0]["crossed_day"] == 1
    assert "exp: on" in call("show").output
    checked = call("check")
    assert checked.exit_code == 3
    assert "hide must not rise, and in treatment it crossed its boundary on day 1 of 3" in checked.output
    book.refresh(now_ms + 1)
    assert book.arm_of(user, now_ms + 1) is None
    assert call("check").exit_code == 0, "nothing is on"
    again = call("check", "exp")
    assert again.exit_code == 3
    assert "is stopped" not in again.output
    assert "exp: stopped 2026-12-03: hide must not rise: crossed in treatment on day 1" in call("show").output
    written = root / "report.md"
    call("report", "exp", "--write", str(written))
    assert "CROSSED on day 1" in written.read_text()
    assert written.with_suffix(".svg").exists()
