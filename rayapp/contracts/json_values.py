"""Values as JSON and back, by their types alone; and what pydantic says of wrong ones, in a person's words."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, model_validator

T = TypeVar("T")
_adapter: Callable[[Any], TypeAdapter[Any]] = functools.cache(TypeAdapter)


def to_json(value: object) -> Any:
    """A dataclass as plain JSON values."""
    return _adapter(type(value)).dump_python(value, mode="json")


def from_json(kind: type[T], values: Any) -> T:
    """The value that `to_json` made these of.

    Raises:
        ValueError: a field is missing, of another type, or unknown to this version.
    """
    try:
        value: T = _adapter(kind).validate_python(values, extra="forbid")
    except ValidationError as error:
        raise ValueError(f"{kind.__name__}: {first_mistake(error)}") from None
    return value


class Table(BaseModel):
    """A table of a TOML file that people write: no value is converted, and a misspelt key is told with the right ones.

    Raises:
        ValidationError: see `first_mistake`.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _knows_every_key(cls, values: Any) -> Any:
        known = [field.alias or name for name, field in cls.model_fields.items()]
        if isinstance(values, dict) and (unknown := [key for key in values if key not in known]):
            raise ValueError(f"has no key {unknown[0]!r}; known: {', '.join(known)}")
        return values


def first_mistake(error: ValidationError) -> str:
    """The first thing that is wrong, placed as a person counts: `arms[2] share: input should be …, not 7`."""
    first = error.errors()[0]
    place = ""
    for part in first["loc"]:
        place += f"[{part + 1}]" if isinstance(part, int) else f" {part}"
    place = place.strip()
    said = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        return f"{place} is missing"
    if first["type"] == "unexpected_keyword_argument":
        return f"{place} is unknown to this version"
    given = "" if isinstance(first["input"], dict | list) else f", not {first['input']!r}"
    return f"{place}{': ' if place else ''}{said[0].lower()}{said[1:]}{given}"
