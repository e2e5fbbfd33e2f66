"""The figures of `make test-cluster`, from rows that say what happened."""

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.cluster.figures import events_in, figures, longest_gap_s
from tests.cluster.scenarios import HERE, page


def row(at: float, status: str = "200", kind: str = "feed", **more: Any) -> dict[str, Any]:
    return {"at": at, "s": 0.5, "status": status, "kind": kind, **more}


def test_lost_is_what_was_acknowledged_and_is_not_in_the_log(tmp_path: Path) -> None:
    bucket = tmp_path / "events/dt=export-2026-12-01T1614/bucket=0003"
    bucket.mkdir(parents=True)
    pq.write_table(pa.table({"event_id": ["a"]}), bucket / "x.parquet")
    rows = [
        row(0.0, kind="event", event_id="a"),
        row(1.0, kind="event", event_id="b"),
        row(2.0, "503", "event", event_id="c"),
        row(3.0, "TimeoutError"),
        row(4.0, degraded=True),
    ]
    found = figures(rows, events_in(tmp_path))
    assert (found.acknowledged, found.lost) == (2, 1)
    assert (found.requests, found.failed_feeds, found.failed_events, found.degraded) == (5, 1, 1, 1)
    assert found.row("x") == "| x | 5 | 1 | 1 | 1 | 1 of 2 | 3.0 |"
    assert found.failures == "1 × 503, 1 × TimeoutError"


@pytest.mark.parametrize(
    ("rows", "gap_s"),
    [
        ([row(0.0), row(9.0)], 0.0),
        ([row(0.0), row(1.0, "429"), row(7.0)], 7.0),
        ([row(0.0, "429"), row(1.0)], 0.0),
        ([row(0.0), row(1.0, "429"), row(2.0), row(3.0, "429"), row(4.0)], 2.0),
    ],
)
def test_the_longest_gap_is_around_a_failure(rows: list[dict[str, Any]], gap_s: float) -> None:
    assert longest_gap_s(rows) == gap_s


EIGHT = {
    "token": "get-auth-token",
    "up": "ray up",
    "keys": "keys add",
    "deploy": "serve deploy",
    "event": "/v1/events",
    "feed": "/v1/recommendations",
    "job": "job submit",
    "down": "ray stop",
}


def test_the_page_has_its_eight_commands_in_order() -> None:
    first, *commands = page()
    assert first.startswith("export C=")
    assert len(commands) == 8
    assert all(word in command for word, command in zip(EIGHT.values(), commands, strict=True))
    named = re.findall(r"\*\*(\d)\. (\w+)\*\*", (HERE / "docs/cluster.md").read_text())
    assert named == [(str(i + 1), name) for i, name in enumerate(EIGHT)]
