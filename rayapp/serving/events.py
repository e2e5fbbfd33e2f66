"""Checks events as they come from clients: each bad one is named, the good ones beside it are kept."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rayapp.contracts.config import Domain, day_name
from rayapp.contracts.schema import Event, content_event_id, id_problem

MAX_EVENTS: Final = 1_000
MAX_FUTURE_MS: Final = 5 * 60 * 1000
NDJSON: Final = "application/x-ndjson"
LINES: Final = frozenset({NDJSON, "application/ndjson", "application/jsonl", "application/x-jsonlines"})
"""Media types of one JSON value a line, whatever parameters follow."""


EXAMPLE: Final[dict[str, Any]] = {
    "event_id": "e-1",
    "user_id": "ann",
    "item_id": "i1",
    "action": "save",
    "timestamp_ms": 1_760_000_000_000,
}


class EventBody(BaseModel):
    """One action of one user. Send `event_id` to make retries harmless; without it the content's hash is used."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [EXAMPLE]})

    event_id: str | None = Field(None, description="Idempotency key, 1-128 bytes")
    user_id: str = Field(description="1-128 bytes of UTF-8 without control characters")
    item_id: str
    action: str = Field(description="One of the configured actions")
    timestamp_ms: int = Field(description="When it happened, milliseconds since 1970 UTC")
    request_id: str | None = Field(None, description="The answer this item was shown in")
    position: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    value: float | None = None
    surface: str | None = None


@dataclass(frozen=True, slots=True)
class RejectedEvent:
    """Why one event of a batch was not taken, or one item."""

    index: int
    code: str
    field: str | None
    message: str


class BadBody(ValueError):
    """The body as a whole can't be read."""


def parse_body(body: bytes, content_type: str, what: str = "events") -> tuple[list[Any], list[RejectedEvent]]:
    """The JSON values of a body: one object, a list, `{"events": [...]}` (or `what` it is), or one a line (NDJSON).

    A line that is not JSON is rejected alone; `None` stands in its place.

    Raises:
        BadBody: not JSON, or more than MAX_EVENTS values.
    """
    rejections: list[RejectedEvent] = []
    values: list[Any] = []
    if content_type.split(";", maxsplit=1)[0].strip().lower() in LINES:
        lines = [line for line in body.split(b"\n") if line.strip()]
        if len(lines) > MAX_EVENTS:
            raise BadBody(f"{len(lines)} {what} in one body; at most {MAX_EVENTS} are allowed")
        for index, line in enumerate(lines):
            try:
                values.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                values.append(None)
                rejections.append(RejectedEvent(index, "malformed_json", None, f"this line is not JSON: {error}"))
        return values, rejections
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadBody(f"the body is not JSON: {error}") from None
    if isinstance(value, dict) and set(value) == {what} and isinstance(value[what], list):
        value = value[what]
    values = value if isinstance(value, list) else [value]
    if len(values) > MAX_EVENTS:
        raise BadBody(f"{len(values)} {what} in one body; at most {MAX_EVENTS} are allowed")
    return values, rejections


def check_events(
    values: Sequence[Any], domain: Domain, now_ms: int, *, skip: frozenset[int] = frozenset()
) -> tuple[list[tuple[int, Event]], list[RejectedEvent]]:
    """`(index and event of each good one, rejections)`. `now_ms` is the server's clock."""
    good: list[tuple[int, Event]] = []
    rejections: list[RejectedEvent] = []
    actions = domain.vocabulary.names
    for index, value in enumerate(values):
        if index in skip:
            continue
        checked = _check(index, value, actions, domain.earliest_ms, now_ms)
        if isinstance(checked, RejectedEvent):
            rejections.append(checked)
        else:
            good.append((index, checked))
    return good, rejections


def _check(index: int, value: Any, actions: tuple[str, ...], earliest_ms: int, now_ms: int) -> Event | RejectedEvent:
    if not isinstance(value, dict):
        return RejectedEvent(index, "wrong_type", None, "an event must be a JSON object")
    try:
        body = EventBody.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        code = {"missing": "missing_field", "extra_forbidden": "unknown_field"}.get(first["type"], "wrong_type")
        return RejectedEvent(index, code, field, first["msg"])
    for field in ("user_id", "item_id", "event_id", "request_id", "surface"):
        text = getattr(body, field)
        if text is not None and (problem := id_problem(text)):
            return RejectedEvent(index, "bad_id", field, f"{field} {problem}")
    if body.action not in actions:
        return RejectedEvent(
            index,
            "unknown_action",
            "action",
            f"{body.action[:64]!r} is none of the configured actions {list(actions)}",
        )
    if body.value is not None and not math.isfinite(body.value):
        return RejectedEvent(index, "not_finite", "value", "value must be a finite number")
    if body.timestamp_ms < earliest_ms:
        seconds = (
            " (it looks like seconds: multiply by 1000)"
            if earliest_ms <= body.timestamp_ms * 1000 <= 2 * now_ms
            else ""
        )
        return RejectedEvent(
            index,
            "bad_timestamp",
            "timestamp_ms",
            f"{body.timestamp_ms} lies before {day_name(earliest_ms)}, the domain's `earliest`; milliseconds since "
            f"1970 are expected{seconds}",
        )
    if body.timestamp_ms > now_ms + MAX_FUTURE_MS:
        return RejectedEvent(
            index,
            "bad_timestamp",
            "timestamp_ms",
            f"{body.timestamp_ms} lies more than 5 minutes in the future; the server's time is {now_ms}",
        )
    return Event(
        event_id=body.event_id or content_event_id(body.user_id, body.item_id, body.action, body.timestamp_ms),
        user_id=body.user_id,
        item_id=body.item_id,
        action=body.action,
        timestamp_ms=min(body.timestamp_ms, now_ms),
        received_at_ms=now_ms,
        request_id=body.request_id,
        position=body.position,
        value=body.value,
        surface=body.surface,
    )
