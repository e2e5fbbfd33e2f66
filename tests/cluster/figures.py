"""What a load came to: requests, failed, degraded, lost, the longest gap."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq


@dataclass(frozen=True)
class Figures:
    """Of the requests through nodes that lived."""

    requests: int
    failed_feeds: int
    failed_events: int
    degraded: int
    acknowledged: int
    lost: int
    longest_gap_s: float
    """The longest time in which nothing was answered with 200 though something was asked."""
    failures: str

    def row(self, scenario: str) -> str:
        """For the table."""
        cells = (
            self.requests,
            self.failed_feeds,
            self.failed_events,
            self.degraded,
            f"{self.lost} of {self.acknowledged}",
        )
        return f"| {scenario} | " + " | ".join(map(str, cells)) + f" | {self.longest_gap_s:.1f} |"


def read(path: Path) -> list[dict[str, Any]]:
    """Rows of a load, by the time of the request."""
    return sorted((json.loads(line) for line in path.read_text().splitlines()), key=lambda row: row["at"])


def figures(rows: Sequence[dict[str, Any]], in_log: set[str]) -> Figures:
    """Of these rows, which are in the order of time; `in_log` holds the exported events."""
    failed = [row for row in rows if row["status"] != "200"]
    acknowledged = {row["event_id"] for row in rows if row["kind"] == "event" and row["status"] == "200"}
    return Figures(
        requests=len(rows),
        failed_feeds=sum(row["kind"] == "feed" for row in failed),
        failed_events=sum(row["kind"] == "event" for row in failed),
        degraded=sum(bool(row.get("degraded")) for row in rows),
        acknowledged=len(acknowledged),
        lost=len(acknowledged - in_log),
        longest_gap_s=longest_gap_s(rows),
        failures=", ".join(f"{n} × {status}" for status, n in Counter(row["status"] for row in failed).most_common()),
    )


def longest_gap_s(rows: Iterable[dict[str, Any]]) -> float:
    """From the last answer before a failure to the first answer after it."""
    last, longest, broken = None, 0.0, False
    for row in rows:
        if row["status"] != "200":
            broken = True
            continue
        if broken and last is not None:
            longest = max(longest, row["at"] + row["s"] - last)
        last, broken = row["at"] + row["s"], False
    return longest


def events_in(root: Path) -> set[str]:
    """Ids of all events that were exported into a root."""
    files = (root / "events").glob("dt=export-*/**/*.parquet")
    tables = (pq.read_table(file, columns=["event_id"], partitioning=None) for file in files)
    return {str(value) for table in tables for value in table["event_id"].to_pylist()}
