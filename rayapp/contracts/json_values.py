"""Values as JSON and back, by their types alone."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from rayapp.contracts.tables import first_mistake

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
