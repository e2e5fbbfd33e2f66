"""How routes read a body by hand, and what becomes of what the store and the checks refuse."""

import logging
from collections.abc import Awaitable, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from fastapi import Request

from deployments.http import Problem, invalid
from rayapp.serving.attribute_checks import BadAttribute
from rayapp.serving.events import BadBody, RejectedEvent, parse_body
from rayapp.serving.group_commit import Busy
from rayapp.store import OutboxFull

log = logging.getLogger(__name__)
T = TypeVar("T")


async def values_of(request: Request, what: str) -> tuple[list[Any], list[RejectedEvent]]:
    """The values of a batch and the lines that are no JSON, as `events.parse_body`.

    Raises:
        Problem: 400.
    """
    try:
        return parse_body(await request.body(), request.headers.get("content-type", ""), what)
    except BadBody as error:
        raise Problem(400, str(error)) from None


async def one_value(request: Request) -> Any:
    """The JSON of a body, whatever media type it names.

    Raises:
        Problem: 400.
    """
    try:
        values, _ = parse_body(await request.body(), "application/json")
    except BadBody as error:
        raise Problem(400, str(error)) from None
    return values[0] if len(values) == 1 else values


def refuse_all_bad(good: Sequence[Any], rejected: Sequence[RejectedEvent], what: str) -> None:
    """Raises:
    Problem: 422, where nothing of a batch is good and something is bad.
    """
    if rejected and not good:
        first = rejected[0]
        raise Problem(422, f"{first.field or what}: {first.message}", errors=[asdict(r) for r in rejected])


async def stored(answer: Awaitable[T]) -> T:
    """The store's answer.

    Raises:
        Problem: 429 or 503, with what to do.
    """
    try:
        return await answer
    except Busy as error:
        raise Problem(429, str(error), retry_after_s=1) from None
    except OutboxFull as error:
        raise Problem(503, str(error), retry_after_s=5) from None
    except Exception as error:
        if type(error).__name__ == "BackPressureError":
            raise Problem(429, "too many requests wait for the store; try again", retry_after_s=1) from None
        log.warning("the store did not answer: %s", error)
        raise Problem(503, "the store does not take or answer this now; send it again", retry_after_s=1) from None


class named_fields:  # noqa: N801  # reads as a statement
    """Turns a BadAttribute into a 422 that names the field."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, BadAttribute):
            raise invalid(error.field, str(error), error.code) from None
