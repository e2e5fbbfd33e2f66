"""Routes that bring data in and tell it: events, items, users."""

import logging
from collections.abc import Awaitable
from dataclasses import asdict
from typing import Any, TypeVar

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response

from deployments.feeds import now_ms
from deployments.http import MergeBody, PathId, Problem, invalid
from deployments.service import Service
from rayapp.contracts.schema import FIRST_ACTION_ID, UNKNOWN, id_problem
from rayapp.serving.attribute_checks import BadAttribute, check_changes, check_item, check_user
from rayapp.serving.events import BadBody, EventBody, check_events, parse_body
from rayapp.serving.group_commit import Busy
from rayapp.store import AppendStatus, OutboxFull

log = logging.getLogger(__name__)
MAX_SEQUENCE = 512
T = TypeVar("T")


def data_routes(service: Service) -> APIRouter:
    """The routes, for one service."""
    router = APIRouter(tags=["data"])
    _event_routes(router, service)
    _item_routes(router, service)
    _user_routes(router, service)
    return router


def _event_routes(router: APIRouter, service: Service) -> None:
    domain, sequences = service.domain, service.stages.sequences

    @router.post("/v1/events", openapi_extra=_body_schema(EventBody.model_json_schema()))
    async def events(request: Request) -> JSONResponse:
        """Takes one event, a list, or NDJSON; answers when the good ones are durable."""
        try:
            values, unreadable = parse_body(await request.body(), request.headers.get("content-type", ""))
        except BadBody as error:
            raise Problem(400, str(error)) from None
        good, rejected = check_events(values, domain, now_ms(), skip=frozenset(r.index for r in unreadable))
        rejected = sorted([*unreadable, *rejected], key=lambda r: r.index)
        if rejected and not good:
            first = rejected[0]
            raise Problem(422, f"{first.field or 'event'}: {first.message}", errors=[asdict(r) for r in rejected])
        outcomes = await stored(sequences.append([event for _, event in good])) if good else []
        erased = [
            {"index": index, "code": "erased", "field": "user_id", "message": "the user was erased after this"}
            for (index, _), outcome in zip(good, outcomes, strict=True)
            if outcome is AppendStatus.ERASED
        ]
        return JSONResponse(
            {
                "accepted": outcomes.count(AppendStatus.ACCEPTED),
                "duplicates": outcomes.count(AppendStatus.DUPLICATE),
                "rejected": sorted([*(asdict(r) for r in rejected), *erased], key=lambda r: int(r["index"])),
            }
        )


def _item_routes(router: APIRouter, service: Service) -> None:
    domain, sequences = service.domain, service.stages.sequences
    unsaid = dict.fromkeys(attribute.name for attribute in domain.attributes)

    def told(item_id: str, item: dict[str, Any] | None) -> JSONResponse:
        if item is None:
            raise Problem(404, f"there is no item {item_id!r}; PUT /v1/items/{{item_id}} adds one")
        return JSONResponse({**unsaid, **item, "available": item.get("available") is not False})

    @router.put("/v1/items/{item_id}")
    async def put_item(item_id: PathId, request: Request) -> JSONResponse:
        """Adds or replaces an item; the model embeds it from its attributes, without retraining.

        The body is the whole item: every attribute of the domain, null where the item has none.
        """
        with _named_fields():
            item = check_item(item_id, await _json(request), domain.attributes, now_ms())
        await stored(sequences.put_item(item))
        return JSONResponse({"item_id": item_id})

    @router.patch("/v1/items/{item_id}")
    async def patch_item(item_id: PathId, request: Request) -> JSONResponse:
        """Changes the fields that the body names (`available`, `created_at_ms`, attributes); the others stay."""
        with _named_fields():
            changes = check_changes(item_id, await _json(request), domain.attributes)
        return told(item_id, await stored(sequences.patch_item(item_id, changes)))

    @router.get("/v1/items/{item_id}")
    async def item(item_id: PathId) -> JSONResponse:
        """The item as it was put last, or else as it was imported."""
        return told(item_id, await stored(sequences.item(item_id)))


def _user_routes(router: APIRouter, service: Service) -> None:
    domain, sequences = service.domain, service.stages.sequences

    @router.put("/v1/users/{user_id}")
    async def put_user(user_id: PathId, request: Request) -> JSONResponse:
        """Records a user's attributes and from when on they hold (`effective_at_ms`, now unless told)."""
        with _named_fields():
            user = check_user(user_id, await _json(request), domain.user_attributes, now_ms())
        await stored(sequences.put_user(user))
        return JSONResponse({"user_id": user_id, "effective_at_ms": user["effective_at_ms"]})

    @router.get("/v1/users/{user_id}")
    async def user(user_id: PathId) -> JSONResponse:
        """The attributes recorded last."""
        _check_id(user_id)
        found = await stored(sequences.user(user_id))
        if found is None:
            raise Problem(404, f"nothing is recorded of the user {user_id!r}; their actions are under /sequence")
        return JSONResponse(found)

    @router.post("/v1/users/{user_id}:merge")
    async def merge(user_id: PathId, body: MergeBody) -> JSONResponse:
        """The actions of an anonymous id become this user's too. May be repeated."""
        _check_id(user_id)
        if user_id == body.anonymous_id:
            raise invalid("anonymous_id", "anonymous_id must be another id than the user's")
        outcomes = await stored(sequences.merge(body.anonymous_id, user_id, now_ms()))
        return JSONResponse({"user_id": user_id, "merged": outcomes.count(AppendStatus.ACCEPTED)})

    @router.delete("/v1/users/{user_id}", dependencies=[Depends(service.admin_only)], status_code=204)
    async def erase(user_id: PathId) -> Response:
        """Forgets the user at once, everywhere; `rayapp compact` removes what is on disk. Needs an admin key."""
        _check_id(user_id)
        await stored(sequences.erase(user_id, now_ms()))
        return Response(status_code=204)

    @router.get("/v1/users/{user_id}/sequence")
    async def sequence(user_id: PathId, limit: int = 100) -> JSONResponse:
        """The user's stored actions, newest first."""
        _check_id(user_id)
        if not 1 <= limit <= MAX_SEQUENCE:
            raise invalid("limit", f"limit must be from 1 to {MAX_SEQUENCE}")
        found = await stored(sequences.lookup(user_id))
        names = domain.vocabulary.names
        rows = [
            {
                "item_id": found.item_ids[n],
                "action": names[a - FIRST_ACTION_ID] if a > UNKNOWN else None,
                "timestamp_ms": int(found.history.timestamp_ms_E[n]),
                "received_at_ms": int(found.history.received_at_ms_E[n]),
            }
            for n, a in enumerate(found.history.action_E[:limit].tolist())
        ]
        return JSONResponse({"user_id": user_id, "length": len(found.history), "events": rows})


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


async def _json(request: Request) -> Any:
    try:
        values, _ = parse_body(await request.body(), "application/json")
    except BadBody as error:
        raise Problem(400, str(error)) from None
    return values[0] if len(values) == 1 else values


class _named_fields:  # noqa: N801  # reads as a statement
    """Turns a BadAttribute into a 422 that names the field."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, BadAttribute):
            raise invalid(error.field, str(error)) from None


def _check_id(user_id: str) -> None:
    if problem := id_problem(user_id):
        raise invalid("user_id", f"user_id {problem}")


def _body_schema(schema: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
