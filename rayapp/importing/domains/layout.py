"""Where a team's own files keep what the log needs: columns by name, units of time, rules that make actions.

A file takes the first layout of its kind whose columns it has, so exports of different shape can be read together.
"""

import enum
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from rayapp.contracts.config import Domain
from rayapp.contracts.tables import Duration, ListOf, Table
from rayapp.contracts.zones import is_zone
from rayapp.importing.dialects import Dialect, is_encoding


class TimeUnit(enum.StrEnum):
    """How a column writes a moment. Columns of a timestamp type need none: they say it themselves."""

    SECONDS = "s"
    MILLISECONDS = "ms"
    MICROSECONDS = "us"
    NANOSECONDS = "ns"
    ISO = "iso"
    """ISO 8601 text, a day alone too, or with ` UTC` behind it."""


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


class TextFiles(Table):
    """What a layout may name of how its text files are written; the rest is recognised from each file."""

    delimiter: str | None = Field(default=None, min_length=1, max_length=1)
    quote: str | None = Field(default=None, max_length=1)
    escape: str | None = Field(default=None, max_length=1)
    encoding: str | None = None
    null_values: ListOf[str] = NULL_VALUES

    @field_validator("encoding")
    @classmethod
    def _exists(cls, name: str | None) -> str | None:
        if name is not None and not is_encoding(name):
            raise ValueError('must be an encoding like "utf-8", "utf-16" or "cp1252"')
        return name

    @property
    def dialect(self) -> Dialect:
        return Dialect(delimiter=self.delimiter, quote=self.quote, escape=self.escape, encoding=self.encoding)


class Column(Table):
    """A column under one of several names, the first that the file has: `"a"`, `["a", "b"]` or `{ column = … }`."""

    names: Annotated[ListOf[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)] = Field(
        alias="column"
    )
    separator: str | None = None
    """Splits text into a list, where a list is wanted."""

    @model_validator(mode="before")
    @classmethod
    def _of_names(cls, value: Any) -> Any:
        if not isinstance(value, str | list | dict):
            raise ValueError("must be a column's name, a list of names, or { column = … }")
        return value if isinstance(value, dict) else {"column": value}

    def find(self, present: frozenset[str]) -> str | None:
        return next((name for name in self.names if name in present), None)

    def __str__(self) -> str:
        return " or ".join(repr(name) for name in self.names)


class TimeColumn(Table):
    """A column that holds moments."""

    column: Column
    unit: Annotated[TimeUnit, Field(strict=False)] = TimeUnit.MILLISECONDS
    format: str | None = None
    """Instead of a unit: how text writes a moment, as `strptime` has it."""
    zone: str | None = None
    """The zone of the clocks that wrote it, where the values name none; None: UTC, which is said."""

    @model_validator(mode="before")
    @classmethod
    def _of_column(cls, value: Any) -> Any:
        return value if isinstance(value, dict) else {"column": value}

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.format is not None:
            if "unit" in self.model_fields_set:
                raise ValueError("needs `unit` or `format`, not both")
            if not names_a_day(self.format):
                raise ValueError('format must be like "%d/%m/%Y %H:%M:%S" and name at least year, month and day')
        if self.zone is not None and not is_zone(self.zone):
            raise ValueError(f'zone must name a zone like "Europe/Berlin" or "UTC", not "{self.zone}"')
        return self


def names_a_day(form: str) -> bool:
    """Whether a moment that is written so can be read again, to the day."""
    day = datetime(2026, 11, 23, 14, 5, 6, tzinfo=UTC)
    try:
        return datetime.strptime(day.strftime(form), form).date() == day.date()
    except ValueError:
        return False


class ActionRule(Table):
    """How a row says which action it is: a column of names, 0/1 flags of which the strongest counts, or always one."""

    column: Column | None = None
    names: dict[str, str] = Field(default={})
    """The file's word -> the vocabulary's; empty: the words are the vocabulary's own."""
    flags: dict[str, Column] = Field(default={})
    """Action -> its 0/1 column; of several that are set the action of highest priority counts."""
    otherwise: str | None = None
    """The action of a row without any flag, or of every row where there is neither column nor flag."""

    @model_validator(mode="before")
    @classmethod
    def _of_column(cls, value: Any) -> Any:
        return {"column": value} if isinstance(value, str | list) else value

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.column is not None and self.flags) or not (self.column or self.flags or self.otherwise):
            raise ValueError("needs `column`, or `flags`, or only `otherwise`")
        return self

    @property
    def actions(self) -> set[str]:
        """All that it names."""
        return {*self.names.values(), *self.flags, *([self.otherwise] if self.otherwise else [])}


class EventLayout(TextFiles):
    """One shape of event files."""

    user_id: Column
    item_id: Column
    timestamp: TimeColumn
    action: ActionRule
    event_id: Column | None = None
    """None: the id is made from user, item, action and time, so one event read twice stays one."""
    received_at: TimeColumn | None = None
    lag_ms: Duration = Field(default=0, alias="lag")
    """Without `received_at`: how long after it happened the server had an event."""
    request_id: Column | None = None
    position: Column | None = None
    value: Column | None = None
    surface: Column | None = None

    def required(self) -> list[Column]:
        """Columns without which a file is of another shape."""
        named = [self.event_id, self.request_id, self.position, self.value, self.surface, self.action.column]
        named += self.action.flags.values()
        times = [self.received_at.column] if self.received_at else []
        return [self.user_id, self.item_id, self.timestamp.column, *(c for c in named if c), *times]

    def optional(self) -> list[Column]:
        """Columns that are read where a file has them."""
        return []


class Only(Table):
    """The rows whose column holds one of some words."""

    column: Column
    words: ListOf[str] = Field(alias="is")


class RequestLayout(TextFiles):
    """One shape of files of shown lists: a list a row, or an impression a row."""

    user_id: Column
    timestamp: TimeColumn
    item_ids: Column | None = None
    """Lists: the column of item ids in the order shown."""
    item_id: Column | None = None
    """Impressions: the column of the one item."""
    only: Only | None = None
    """Impressions: the rows to take, where they stand among the events."""
    request_id: Column | None = None
    """None: impressions of one user at one moment are one list."""
    position: Column | None = None
    """Impressions only."""
    surface: Column | None = None
    labels: dict[str, Column] = Field(default={})
    """Head -> its 0/1 column, of lists where the rows are lists; empty: labels are joined from the events."""
    context: dict[str, Column] = Field(default={})

    @model_validator(mode="after")
    def _lists_or_impressions(self) -> Self:
        if (self.item_ids is None) == (self.item_id is None):
            raise ValueError("needs `item_ids` where a row is a list, or `item_id` where it is one shown item")
        if self.item_ids is not None and (self.position or self.only):
            raise ValueError("`position` and `only` are for rows of one shown item, with `item_id`")
        return self

    @property
    def rows(self) -> bool:
        """Whether a row is an impression."""
        return self.item_id is not None

    @property
    def items(self) -> Column:
        """The column of the item, or of the list."""
        column = self.item_id or self.item_ids
        assert column is not None
        return column

    def required(self) -> list[Column]:
        """Columns without which a file is of another shape."""
        named = [self.request_id, self.position, self.surface]
        more = [*self.labels.values(), *self.context.values(), *([self.only.column] if self.only else [])]
        return [self.user_id, self.timestamp.column, self.items, *(c for c in named if c), *more]

    def optional(self) -> list[Column]:
        """Columns that are read where a file has them."""
        return []


@dataclass(frozen=True, kw_only=True, slots=True)
class EntityLayout:
    """The shape of the item files, or of the user files."""

    id: Column
    at: TimeColumn | None
    """When the item became available, or from when on a user's attributes hold; None: always."""
    attributes: dict[str, Column]
    vector: Column | None = None
    """Items only: a list of numbers, the item's given vector; read where a file has it."""
    available: Column | None = None
    """Items only: 0/1, whether feeds may show the item; read where a file has it, and 1 where it says nothing."""
    null_values: tuple[str, ...] = NULL_VALUES
    dialect: Dialect = field(default_factory=Dialect)

    def required(self) -> list[Column]:
        """Columns without which a file is of another shape."""
        times = [self.at.column] if self.at else []
        return [self.id, *times, *self.attributes.values()]

    def optional(self) -> list[Column]:
        """Columns that are read where a file has them."""
        return [column for column in (self.vector, self.available) if column]


FileLayout = EventLayout | RequestLayout | EntityLayout


@dataclass(frozen=True, kw_only=True, slots=True)
class DomainFile:
    """A parsed `domain.toml`: what the feed is about, and how to read its sources."""

    domain: Domain
    events: tuple[EventLayout, ...]
    requests: tuple[RequestLayout, ...]
    items: EntityLayout
    users: EntityLayout | None
