"""Checks an item as a client puts it: its attributes must be the domain's, each of its kind."""

import math
from collections.abc import Sequence
from typing import Any, Final

from rayapp.schema import Attribute, AttributeKind, id_problem

MAX_TEXT: Final = 2_000
MAX_VALUES: Final = 32


class BadItem(ValueError):
    """An attribute that can't be taken; `field` names it."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def check_item(item_id: str, body: Any, attributes: Sequence[Attribute], now_ms: int) -> dict[str, Any]:
    """The item as it is stored. `created_at_ms` is the caller's or now; absent attributes are null.

    Raises:
        BadItem: names the field.
    """
    if problem := id_problem(item_id):
        raise BadItem("item_id", f"item_id {problem}")
    if not isinstance(body, dict):
        raise BadItem("", "an item must be a JSON object of its attributes")
    known = {a.name for a in attributes} | {"created_at_ms"}
    for field in body:
        if field not in known:
            raise BadItem(field[:64], f"{field[:64]!r} is no attribute of this domain; it has {sorted(known)}")
    created = body.get("created_at_ms", now_ms)
    if type(created) is not int or not -(2**62) < created < 2**62:
        raise BadItem("created_at_ms", "created_at_ms must be a whole number of milliseconds since 1970")
    item: dict[str, Any] = {"item_id": item_id, "created_at_ms": created}
    for attribute in attributes:
        value = body.get(attribute.name)
        if value is not None and (problem := _problem(value, attribute.kind)):
            raise BadItem(attribute.name, f"{attribute.name} {problem}")
        item[attribute.name] = float(value) if attribute.kind is AttributeKind.NUMBER and value is not None else value
    return item


def _problem(value: Any, kind: AttributeKind) -> str | None:
    if kind is AttributeKind.NUMBER:
        if type(value) not in (int, float) or not math.isfinite(value):
            return "must be a finite number"
    elif kind is AttributeKind.TEXT:
        if not isinstance(value, str) or len(value) > MAX_TEXT:
            return f"must be a text of at most {MAX_TEXT} characters"
    elif (
        not isinstance(value, list)
        or len(value) > MAX_VALUES
        or not all(isinstance(v, str) and 0 < len(v) <= 128 for v in value)
    ):
        return f"must be a list of at most {MAX_VALUES} texts of 1-128 characters"
    return None
