"""Where a team's own files keep what the log needs: columns by name, units of time, rules that make actions.

A file takes the first layout of its kind whose columns it has, so exports of different shape can be read together.
"""

import enum
from dataclasses import dataclass, field
from typing import Final

from rayapp.contracts.config import Domain


class TimeUnit(enum.StrEnum):
    """How a column writes a moment. Columns of a timestamp type need none: they say it themselves."""

    SECONDS = "s"
    MILLISECONDS = "ms"
    MICROSECONDS = "us"
    NANOSECONDS = "ns"
    ISO = "iso"
    """ISO 8601 text, a day alone too; UTC where it names no zone."""


MS_PER_UNIT: Final = {
    TimeUnit.SECONDS: 1000.0,
    TimeUnit.MILLISECONDS: 1.0,
    TimeUnit.MICROSECONDS: 1e-3,
    TimeUnit.NANOSECONDS: 1e-6,
}


NULL_VALUES: Final = (
    *("NULL", "Null", "null", "\\N", "NaN", "nan", "-nan", "None", "none", "N/A", "n/a", "NA", "#N/A", "<NA>", "nil"),
    *("undefined", "NaT", "(null)"),
)
"""What CSV files, where every value is text, write for an id that is missing; nobody is called so."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column under one of several names; the first that the file has."""

    names: tuple[str, ...]
    separator: str | None = None
    """Splits text into a list, where a list is wanted."""

    def find(self, present: frozenset[str]) -> str | None:
        return next((name for name in self.names if name in present), None)

    def __str__(self) -> str:
        return " or ".join(repr(name) for name in self.names)


@dataclass(frozen=True, slots=True)
class TimeColumn:
    """A column that holds moments."""

    column: Column
    unit: TimeUnit = TimeUnit.MILLISECONDS


@dataclass(frozen=True, kw_only=True, slots=True)
class ActionRule:
    """How a row says which action it is: a column of names, 0/1 flags of which the strongest counts, or always one."""

    column: Column | None = None
    names: dict[str, str] = field(default_factory=dict)
    """The file's word -> the vocabulary's; empty: the words are the vocabulary's own."""
    flags: tuple[tuple[str, Column], ...] = ()
    """(action, its 0/1 column); of several that are set the action of highest priority counts."""
    otherwise: str | None = None
    """The action of a row without any flag, or of every row where there is neither column nor flag."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EventLayout:
    """One shape of event files."""

    user_id: Column
    item_id: Column
    timestamp: TimeColumn
    action: ActionRule
    event_id: Column | None = None
    """None: the id is made from user, item, action and time, so one event read twice stays one."""
    received_at: TimeColumn | None = None
    lag_ms: int = 0
    """Without `received_at`: how long after it happened the server had an event."""
    request_id: Column | None = None
    position: Column | None = None
    value: Column | None = None
    surface: Column | None = None
    null_values: tuple[str, ...] = NULL_VALUES

    def required(self) -> list[Column]:
        """Columns without which a file is of another shape."""
        named = [self.event_id, self.request_id, self.position, self.value, self.surface, self.action.column]
        named += [flag for _, flag in self.action.flags]
        times = [self.received_at.column] if self.received_at else []
        return [self.user_id, self.item_id, self.timestamp.column, *(c for c in named if c), *times]

    def optional(self) -> list[Column]:
        """Columns that are read where a file has them."""
        return []


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestLayout:
    """One shape of files of shown lists: a list a row, or an impression a row."""

    user_id: Column
    timestamp: TimeColumn
    items: Column
    """`lists`: the column of item ids in the order shown. `rows`: the column of the one item."""
    rows: bool
    only: tuple[Column, tuple[str, ...]] | None = None
    """`rows` only: take the rows whose column holds one of these words, as where impressions stand among the events."""
    request_id: Column | None = None
    """None: impressions of one user at one moment are one list."""
    position: Column | None = None
    surface: Column | None = None
    labels: tuple[tuple[str, Column], ...] = ()
    """(head, its 0/1 column, of lists where the rows are lists); empty: labels are joined from the events."""
    context: tuple[tuple[str, Column], ...] = ()
    null_values: tuple[str, ...] = NULL_VALUES

    def required(self) -> list[Column]:
        """Columns without which a file is of another shape."""
        named = [self.request_id, self.position, self.surface]
        pairs = [column for _, column in (*self.labels, *self.context)]
        only = [self.only[0]] if self.only else []
        return [self.user_id, self.timestamp.column, self.items, *(c for c in named if c), *pairs, *only]

    def optional(self) -> list[Column]:
        """Columns that are read where a file has them."""
        return []


@dataclass(frozen=True, kw_only=True, slots=True)
class EntityLayout:
    """The shape of the item files, or of the user files."""

    id: Column
    at: TimeColumn | None
    """When the item became available, or from when on a user's attributes hold; None: always."""
    attributes: tuple[tuple[str, Column], ...]
    vector: Column | None = None
    """Items only: a list of numbers, the item's given vector; read where a file has it."""
    available: Column | None = None
    """Items only: 0/1, whether feeds may show the item; read where a file has it, and 1 where it says nothing."""
    null_values: tuple[str, ...] = NULL_VALUES

    def required(self) -> list[Column]:
        """Columns without which a file is of another shape."""
        times = [self.at.column] if self.at else []
        return [self.id, *times, *(column for _, column in self.attributes)]

    def optional(self) -> list[Column]:
        """Columns that are read where a file has them."""
        return [column for column in (self.vector, self.available) if column]


Layout = EventLayout | RequestLayout | EntityLayout


@dataclass(frozen=True, kw_only=True, slots=True)
class DomainFile:
    """A parsed `domain.toml`: what the feed is about, and how to read its sources."""

    domain: Domain
    events: tuple[EventLayout, ...]
    requests: tuple[RequestLayout, ...]
    items: EntityLayout
    users: EntityLayout | None
