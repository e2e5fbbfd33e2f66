"""Routes of items: put, changed, deleted, shown, searched, and what is like them."""

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Annotated, Any, Final, TypeVar

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response

from deployments.answers import ItemAnswer, ItemsAnswer, SimilarAnswer
from deployments.bodies import PathId
from deployments.feeds import now_ms
from deployments.http import Problem, invalid
from deployments.openapi import ERRORS, answer, body, item_changes, many, stored_item, whole_item
from deployments.reading import named_fields, one_value, refuse_all_bad, stored, values_of
from deployments.service import Service
from rayapp.contracts.schema import id_problem
from rayapp.serving.attribute_checks import check_changes, check_item, check_items
from rayapp.serving.bounded import or_none

MAX_FOUND: Final = 100
MAX_QUERY: Final = 200
T = TypeVar("T")
Limit = Annotated[int, Query(ge=1, le=MAX_FOUND)]
Searched = Annotated[str, Query(min_length=1, max_length=MAX_QUERY, description="Part of an id or a title")]


def item_routes(service: Service) -> APIRouter:
    """The routes, for one service."""
    router = APIRouter(tags=["items"], responses=ERRORS)
    _change_routes(router, service)
    _read_routes(router, service)
    return router


def _change_routes(router: APIRouter, service: Service) -> None:
    domain, sequences = service.domain, service.stages.sequences
    named, example = whole_item(domain, named=True)

    @router.post("/v1/items", response_model=ItemsAnswer, openapi_extra=body(many(named), [example], lines=True))
    async def put_items(request: Request) -> JSONResponse:
        """Adds or replaces up to 1,000 whole items, a JSON list or NDJSON; answers when the good ones are durable.

        Each names its `item_id` and every attribute of the domain, null where it has none. Of two with one id the later
        counts.
        """
        values, unreadable = await values_of(request, "items")
        skip = frozenset(rejection.index for rejection in unreadable)
        good, bad = check_items(values, domain.attributes, now_ms(), skip=skip)
        rejected = sorted([*unreadable, *bad], key=lambda rejection: rejection.index)
        refuse_all_bad(good, rejected, "item")
        if good:
            await stored(sequences.put_items(good))
        return JSONResponse({"accepted": len(good), "rejected": [asdict(rejection) for rejection in rejected]})

    @router.put("/v1/items/{item_id}", response_model=ItemAnswer, openapi_extra=body(*whole_item(domain)))
    async def put_item(item_id: PathId, request: Request) -> JSONResponse:
        """Adds or replaces an item; the model embeds it from its attributes, without retraining.

        The body is the whole item: every attribute of the domain, null where the item has none.
        """
        with named_fields():
            item = check_item(item_id, await one_value(request), domain.attributes, now_ms())
        await stored(sequences.put_items([item]))
        return JSONResponse({"item_id": item_id})

    @router.patch(
        "/v1/items/{item_id}", responses=answer(*stored_item(domain)), openapi_extra=body(*item_changes(domain))
    )
    async def patch_item(item_id: PathId, request: Request) -> JSONResponse:
        """Changes the fields that the body names (`available`, `created_at_ms`, attributes); the others stay."""
        with named_fields():
            changes = check_changes(item_id, await one_value(request), domain.attributes)
        return _shown(service, item_id, await stored(sequences.patch_item(item_id, changes)))

    @router.delete("/v1/items/{item_id}", status_code=204)
    async def delete_item(item_id: PathId) -> Response:
        """Takes an item out of every feed within seconds, and out of the catalogue with the next export, until it is
        put again. What users did with it stays. May be repeated."""
        _check_id(item_id)
        await stored(sequences.delete_item(item_id))
        return Response(status_code=204)


def _read_routes(router: APIRouter, service: Service) -> None:
    domain, stages = service.domain, service.stages
    schema, example = stored_item(domain)
    found = {"type": "object", "properties": {"items": {"type": "array", "items": schema}}, "required": ["items"]}

    @router.get("/v1/items/{item_id}", responses=answer(schema, example))
    async def item(item_id: PathId) -> JSONResponse:
        """The item as it was put last, or else as it was imported."""
        _check_id(item_id)
        return _shown(service, item_id, await stored(stages.sequences.item(item_id)))

    @router.get("/v1/items", responses=answer(found, {"items": [example]}))
    async def search(query: Searched, limit: Limit = 20) -> JSONResponse:
        """Items whose id or title holds `query`, in any case: that of this very id first, then the most popular.

        For people who test, and as the served model's table knows them: a new item is there within seconds.
        """
        _, items = await _of_live(service, lambda version: stages.candidates.search(version, query, limit))
        return JSONResponse({"items": [_fields(service, item) for item in items]})

    @router.get("/v1/items/{item_id}/similar", response_model=SimilarAnswer)
    async def similar(item_id: PathId, limit: Limit = 20) -> JSONResponse:
        """The items that are nearest by the served model's vectors, without this one and those that are not available.

        Empty for an item without a vector: one that has no attributes.
        """
        _check_id(item_id)
        version, near = await _of_live(
            service, lambda version: stages.candidates.similar(version, item_id, limit, now_ms())
        )
        if near.items is None:
            raise Problem(404, f"the served model knows no item {item_id!r}; one that was just put takes a second")
        items = [
            {"item_id": neighbour, "rank": rank, "similarity": similarity}
            for rank, (neighbour, similarity) in enumerate(near.items, 1)
        ]
        return JSONResponse({"item_id": item_id, "model_version": version, "items": items})


async def _of_live(service: Service, ask: Callable[[str], Awaitable[T | None]]) -> tuple[str, T]:
    """`(version, answer)` of the first live model that the candidates stage holds.

    Raises:
        Problem: 503.
    """
    for version in dict.fromkeys(service.live.versions_for(None)):
        found = await or_none(ask(version))
        if found is not None:
            return version, found
    raise Problem(503, "nothing that knows the items answers now; send it again", retry_after_s=1)


def _shown(service: Service, item_id: str, item: dict[str, Any] | None) -> JSONResponse:
    if item is None:
        raise Problem(404, f"there is no item {item_id!r}; PUT /v1/items/{{item_id}} adds one")
    return JSONResponse(_fields(service, item))


def _fields(service: Service, item: dict[str, Any]) -> dict[str, Any]:
    """Every field, null where nothing is stored of it."""
    unsaid = dict.fromkeys(attribute.name for attribute in service.domain.attributes)
    return {**unsaid, **item, "available": item.get("available") is not False}


def _check_id(item_id: str) -> None:
    if problem := id_problem(item_id):
        raise invalid("item_id", f"item_id {problem}", "bad_id")
