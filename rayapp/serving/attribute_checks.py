"""Checks what a client says of an item or of a request's context: the domain's attributes, each of its kind."""

import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

from rayapp.contracts.schema import Attribute, AttributeKind, id_problem
from rayapp.serving.events import RejectedEvent

MAX_TEXT: Final = 2_000
MAX_CATEGORY: Final = 128
MAX_VALUES: Final = 32
LARGEST: Final = sys.float_info.max
SURROGATE: Final = re.compile("[\ud800-\udfff]")
OWN_FIELDS: Final = ("available", "created_at_ms")
"""What every item may say of itself, whatever its domain."""


class BadAttribute(ValueError):
    """An attribute that can't be taken; `field` names it."""

    def __init__(self, field: str, message: str, code: str = "invalid") -> None:
        super().__init__(message)
        self.field, self.code = field, code


def check_item(item_id: str, body: Any, attributes: Sequence[Attribute], created_at_ms: int) -> dict[str, Any]:
    """A whole item as it is stored: each attribute is named, null where the item has none. `available` is true unless
    told, and `created_at_ms` what the caller of this says.

    Raises:
        BadAttribute: names the field.
    """
    changes = check_changes(item_id, body, attributes)
    if missing := [a.name for a in attributes if a.name not in changes]:
        raise BadAttribute(
            missing[0],
            f"{missing[0]} is missing: PUT replaces the whole item, so name every attribute (null where it has none), "
            "or change single ones with PATCH",
            "missing_field",
        )
    return {"item_id": item_id, "created_at_ms": created_at_ms, "available": True} | changes


def check_items(
    values: Sequence[Any], attributes: Sequence[Attribute], created_at_ms: int, *, skip: frozenset[int] = frozenset()
) -> tuple[list[dict[str, Any]], list[RejectedEvent]]:
    """`(each good item as it is stored, rejections)` of objects that name their `item_id` and are whole items."""
    good: list[dict[str, Any]] = []
    rejected: list[RejectedEvent] = []
    for index, value in enumerate(values):
        if index in skip:
            continue
        try:
            good.append(_named_item(value, attributes, created_at_ms))
        except BadAttribute as error:
            rejected.append(RejectedEvent(index, error.code, error.field or None, str(error)))
    return good, rejected


def _named_item(value: Any, attributes: Sequence[Attribute], created_at_ms: int) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadAttribute("", "an item must be a JSON object of its item_id and attributes", "wrong_type")
    if "item_id" not in value:
        raise BadAttribute("item_id", "item_id is missing", "missing_field")
    if not isinstance(item_id := value["item_id"], str):
        raise BadAttribute("item_id", "item_id must be a text", "wrong_type")
    body = {name: field for name, field in value.items() if name != "item_id"}
    return check_item(item_id, body, attributes, created_at_ms)


def check_changes(item_id: str, body: Any, attributes: Sequence[Attribute]) -> dict[str, Any]:
    """Those fields of an item that the body names.

    Raises:
        BadAttribute: names the field.
    """
    if problem := id_problem(item_id):
        raise BadAttribute("item_id", f"item_id {problem}", "bad_id")
    if not isinstance(body, dict):
        raise BadAttribute("", "an item must be a JSON object of its attributes", "wrong_type")
    if "created_at_ms" in body:
        created = body["created_at_ms"]
        if type(created) is not int or not -(2**62) < created < 2**62:
            raise BadAttribute("created_at_ms", "created_at_ms must be a whole number of milliseconds since 1970")
    if type(body.get("available", True)) is not bool:
        raise BadAttribute("available", "available must be true or false")
    values = {name: value for name, value in body.items() if name not in OWN_FIELDS}
    checked = {**body, **check_attributes(values, attributes, optional=OWN_FIELDS)}
    return {name: checked[name] for name in body}


def check_user(user_id: str, body: Any, attributes: Sequence[Attribute], now_ms: int) -> dict[str, Any]:
    """A user's attributes as they are stored. `effective_at_ms` is the caller's, not later than now, or now.

    Raises:
        BadAttribute: names the field.
    """
    if problem := id_problem(user_id):
        raise BadAttribute("user_id", f"user_id {problem}")
    if not isinstance(body, dict):
        raise BadAttribute("", "a user must be a JSON object of their attributes")
    effective = body.get("effective_at_ms", now_ms)
    if type(effective) is not int or not 0 <= effective <= now_ms:
        raise BadAttribute("effective_at_ms", "effective_at_ms must be milliseconds since 1970, not in the future")
    values = {name: value for name, value in body.items() if name != "effective_at_ms"}
    checked = check_attributes(values, attributes, optional=("effective_at_ms",))
    return {"user_id": user_id, "effective_at_ms": effective} | checked


def check_attributes(
    body: Mapping[str, Any], attributes: Sequence[Attribute], *, optional: Sequence[str] = ()
) -> dict[str, Any]:
    """Every attribute, null where the body lacks it.

    Raises:
        BadAttribute: names the field. `optional` are further names that the message offers.
    """
    known = {a.name for a in attributes}
    for field in body:
        if field not in known:
            offered = sorted(known | set(optional))
            message = f"{field[:64]!r} is no attribute of this domain; it has {offered}"
            raise BadAttribute(field[:64], message, "unknown_field")
    checked: dict[str, Any] = {}
    for attribute in attributes:
        value = body.get(attribute.name)
        if value is not None and (problem := _problem(value, attribute.kind)):
            raise BadAttribute(attribute.name, f"{attribute.name} {problem}")
        if attribute.kind is AttributeKind.NUMBER and value is not None:
            value = float(value)
        checked[attribute.name] = value
    return checked


def _problem(value: Any, kind: AttributeKind) -> str | None:
    if kind is AttributeKind.NUMBER:
        if type(value) not in (int, float) or not -LARGEST <= value <= LARGEST:
            return "must be a finite number"
    elif kind is AttributeKind.TEXT:
        if not _is_text(value, MAX_TEXT):
            return f"must be a text of at most {MAX_TEXT} characters"
    elif (
        not isinstance(value, list)
        or len(value) > MAX_VALUES
        or not all(_is_text(v, MAX_CATEGORY) and v for v in value)
    ):
        return f"must be a list of at most {MAX_VALUES} texts of 1-{MAX_CATEGORY} characters"
    return None


def _is_text(value: Any, longest: int) -> bool:
    """Half of a surrogate pair is no character: JSON can say it, and nothing can store it."""
    return isinstance(value, str) and len(value) <= longest and not SURROGATE.search(value)
