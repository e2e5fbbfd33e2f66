"""Routes that bring in what users do and are, and show it: events, users."""

from dataclasses import asdict
from typing import Final

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response

from deployments.answers import EventsAnswer, MergeAnswer, SequenceAnswer, UserAnswer
from deployments.bodies import MergeBody, PathId
from deployments.feeds import now_ms
from deployments.http import Problem, invalid
from deployments.openapi import ERRORS, answer, body, many, user_attributes
from deployments.reading import named_fields, one_value, refuse_all_bad, stored, values_of
from deployments.service import Service
from rayapp.contracts.schema import FIRST_ACTION_ID, UNKNOWN, id_problem
from rayapp.serving.attribute_checks import check_user
from rayapp.serving.events import EXAMPLE, EventBody, check_events
from rayapp.store import AppendStatus

MAX_SEQUENCE: Final = 512
EVENTS: Final = many(EventBody.model_json_schema())


def data_routes(service: Service) -> APIRouter:
    """The routes, for one service."""
    router = APIRouter(tags=["data"], responses=ERRORS)
    _event_routes(router, service)
    _user_routes(router, service)
    return router


def _event_routes(router: APIRouter, service: Service) -> None:
    domain, sequences = service.domain, service.stages.sequences

    @router.post("/v1/events", response_model=EventsAnswer, openapi_extra=body(EVENTS, EXAMPLE, lines=True))
    async def events(request: Request) -> JSONResponse:
        """Takes one event, a list, or NDJSON; answers when the good ones are durable."""
        values, unreadable = await values_of(request, "events")
        good, rejected = check_events(values, domain, now_ms(), skip=frozenset(r.index for r in unreadable))
        rejected = sorted([*unreadable, *rejected], key=lambda r: r.index)
        refuse_all_bad(good, rejected, "event")
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


def _user_routes(router: APIRouter, service: Service) -> None:
    domain, sequences = service.domain, service.stages.sequences

    @router.put("/v1/users/{user_id}", response_model=UserAnswer, openapi_extra=body(*user_attributes(domain)))
    async def put_user(user_id: PathId, request: Request) -> JSONResponse:
        """Records a user's attributes and from when on they hold (`effective_at_ms`, now unless told)."""
        with named_fields():
            user = check_user(user_id, await one_value(request), domain.user_attributes, now_ms())
        await stored(sequences.put_user(user))
        return JSONResponse({"user_id": user_id, "effective_at_ms": user["effective_at_ms"]})

    @router.get("/v1/users/{user_id}", responses=answer(*user_attributes(domain, stored=True)))
    async def user(user_id: PathId) -> JSONResponse:
        """The attributes recorded last."""
        _check_id(user_id)
        found = await stored(sequences.user(user_id))
        if found is None:
            raise Problem(404, f"nothing is recorded of the user {user_id!r}; their actions are under /sequence")
        return JSONResponse(found)

    @router.post("/v1/users/{user_id}:merge", response_model=MergeAnswer)
    async def merge(user_id: PathId, names: MergeBody) -> JSONResponse:
        """The actions of an anonymous id become this user's too. May be repeated."""
        _check_id(user_id)
        if user_id == names.anonymous_id:
            raise invalid("anonymous_id", "anonymous_id must be another id than the user's")
        outcomes = await stored(sequences.merge(names.anonymous_id, user_id, now_ms()))
        return JSONResponse({"user_id": user_id, "merged": outcomes.count(AppendStatus.ACCEPTED)})

    @router.delete("/v1/users/{user_id}", dependencies=[Depends(service.admin_only)], status_code=204)
    async def erase(user_id: PathId) -> Response:
        """Forgets the user at once, everywhere; `rayapp compact` removes what is on disk. Needs an admin key."""
        _check_id(user_id)
        await stored(sequences.erase(user_id, now_ms()))
        return Response(status_code=204)

    @router.get("/v1/users/{user_id}/sequence", response_model=SequenceAnswer)
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
                "action": names[a - FIRST_ACTION_ID] if UNKNOWN < a < FIRST_ACTION_ID + len(names) else None,
                "timestamp_ms": int(found.history.timestamp_ms_E[n]),
                "received_at_ms": int(found.history.received_at_ms_E[n]),
            }
            for n, a in enumerate(found.history.action_E[:limit].tolist())
        ]
        return JSONResponse({"user_id": user_id, "length": len(found.history), "events": rows})


def _check_id(user_id: str) -> None:
    if problem := id_problem(user_id):
        raise invalid("user_id", f"user_id {problem}")
