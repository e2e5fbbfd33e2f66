"""TOML files that people write, read strictly; and what pydantic says of a wrong value, in a person's words."""

import datetime
import re
import tomllib
from typing import Annotated, Any, Final, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

T = TypeVar("T")
UNIT_MS: Final = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


class Table(BaseModel):
    """A table of such a file: no value is converted, and a misspelt key is told with those there are."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _knows_every_key(cls, values: Any) -> Any:
        own_first = sorted(cls.model_fields.items(), key=lambda field: field[0] not in cls.__annotations__)
        known = [field.alias or name for name, field in own_first]
        if isinstance(values, dict) and (unknown := [key for key in values if key not in known]):
            words = {"key": repr(unknown[0]), "known": ", ".join(known)}
            raise PydanticCustomError("unknown_key", "has no key {key}; known: {known}", words)
        return values


AnyTable = TypeVar("AnyTable", bound=Table)


def read_toml(kind: type[AnyTable], text: str) -> AnyTable:
    """The whole file.

    Raises:
        ValueError: it is not TOML, or as `read_table`.
    """
    try:
        return read_table(kind, tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"not valid TOML: {error}") from None


def read_table(kind: type[AnyTable], values: Any) -> AnyTable:
    """One table.

    Raises:
        ValueError: a missing or misspelt key, or a value that can't be; the message names the place.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ValueError(first_mistake(error)) from None


def first_mistake(error: ValidationError) -> str:
    """The first thing that is wrong, placed as a person counts: `arms[2] share: input should be …, not 7`."""
    first = error.errors()[0]
    place = ""
    for part in first["loc"]:
        place += f"[{part + 1}]" if isinstance(part, int) else f" {part}"
    place, said = place.strip(), first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        return f"{place} is missing"
    if first["type"] == "unexpected_keyword_argument":
        return f"{place} is unknown to this version"
    if first["type"] == "unknown_key":
        return f"{place} {said}".strip()
    given = "" if isinstance(first["input"], dict | list) else f", not {first['input']!r}"
    return f"{place}{': ' * bool(place)}{said[0].lower()}{said[1:]}{given}"


def duration_ms(value: Any) -> int:
    """`"30s"`, `"24h"`, `"7d"`.

    Raises:
        ValueError: anything else.
    """
    match = re.fullmatch(r"(\d+)(ms|s|m|h|d)", value) if isinstance(value, str) else None
    if match is None:
        raise ValueError('must be a duration like "30s", "24h" or "7d"')
    return int(match[1]) * UNIT_MS[match[2]]


def duration_text(milliseconds: int) -> str:
    """The duration as a file writes it, in its largest whole unit: `"90s"`, `"1d"`."""
    unit = max((unit for unit in UNIT_MS if milliseconds % UNIT_MS[unit] == 0), key=UNIT_MS.__getitem__)
    return f"{milliseconds // UNIT_MS[unit]}{unit}"


def _moment_ms(value: Any) -> int:
    if isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
        value = datetime.datetime(value.year, value.month, value.day, tzinfo=datetime.UTC)
    if not isinstance(value, datetime.datetime):
        raise ValueError("must be a date like 2026-12-01 or a moment like 2026-12-01T09:00:00+01:00, without quotes")
    return int((value if value.tzinfo else value.replace(tzinfo=datetime.UTC)).timestamp() * 1000)


Duration = Annotated[int, BeforeValidator(duration_ms)]
"""Milliseconds."""
Moment = Annotated[int, BeforeValidator(_moment_ms)]
"""Milliseconds since 1970; UTC unless the file says otherwise."""
ListOf = Annotated[tuple[T, ...], Field(strict=False, min_length=1)]
"""A list that is not empty."""
