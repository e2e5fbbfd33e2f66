"""What an import makes of files, without Ray; and a small shop's log, for the tests of how files are written."""

import csv
import datetime
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from rayapp.importing.domains.layout import DomainFile
from rayapp.importing.domains.parse import parse_domain
from rayapp.importing.files import RejectedRow, expand, plan
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


def shop(time: str = ISO, events: str = "", items: str = "") -> str:
    """The shop's domain file, with lines of one's own in its layouts."""
    return DOMAIN_TOML.replace("#TIME", time).replace("#EVENTS", events).replace("#ITEMS", items)


def read_rows(
    path: Path, file: DomainFile, kind: str = "events", clock: Clock = CLOCK
) -> tuple[list[dict[str, object]], list[RejectedRow], Notes]:
    """What an import makes of a file or directory of that kind: events, requests or items."""
    layouts = {"events": file.events, "requests": file.requests, "items": (file.items,)}[kind]

    def reader(raw: pa.Table, n: int) -> object:
        if kind == "items":
            return entity_rows(raw, layouts[n], file.domain.attributes, clock, users=False)
        return (event_rows if kind == "events" else list_rows)(raw, layouts[n], file.domain, clock)

    rows, rejected, notes = [], [], Notes()
    for one in expand([path]):
        pieces, why = plan(one, layouts, "layout")
        rejected += why
        for _, table, some in read_checked(pieces, reader, notes):
            rejected += some
            rows += table.to_pylist() if table is not None else []
    return rows, rejected, notes


def read_shop(path: Path, text: str, kind: str = "events") -> tuple[list[dict[str, object]], list[RejectedRow], Notes]:
    """`read_rows` by a domain file of `shop`."""
    return read_rows(path, parse_domain(text), kind)


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


def as_csv(table: list[list[str]], **how: object) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, **how).writerows(table)  # type: ignore[arg-type]
    return text.getvalue()


def columns(rows: Sequence[Row]) -> dict[str, pa.Array]:
    return {
        "user": pa.array([r.user for r in rows], pa.int64()),
        "item": pa.array([r.item for r in rows]),
        "action": pa.array([r.action for r in rows]),
        "at": pa.array([r.moment for r in rows], pa.timestamp("us", "UTC")),
        "page": pa.array([r.page for r in rows], pa.string()),
    }


ROW = f"1,a,buy,{T0 // 1000},p"
SECONDS = shop('{ column = "at", unit = "s" }')
