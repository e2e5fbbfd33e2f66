"""Routes that rank: `POST /v1/recommendations`, `POST /v1/rank` and `POST /v1/explain`."""

import time
import uuid
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from starlette.background import BackgroundTask

from deployments.answers import ExplainAnswer, RankAnswer, RecommendationsAnswer
from deployments.bodies import ExplainBody, RankBody, RecommendationsBody
from deployments.http import Problem, invalid
from deployments.openapi import ERRORS
from deployments.service import Service
from rayapp.contracts.config import Domain
from rayapp.contracts.schema import AttributeKind
from rayapp.serving.answers import explain_body, feed_body, model_fields, sequence_body
from rayapp.serving.attribute_checks import OWN_FIELDS, BadAttribute, check_attributes
from rayapp.serving.blend import blend
from rayapp.serving.feed import Ask
from rayapp.serving.feed import RankAnswer as Ranked
from rayapp.serving.paging import BadToken, ExpiredToken, Page, read_token
from rayapp.serving.stages import ExplainsFull


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def feed_routes(service: Service) -> APIRouter:
    """The routes, for one service."""
    router = APIRouter(tags=["feeds"], responses=ERRORS)
    domain = service.domain

    @router.post("/v1/recommendations", response_model=RecommendationsAnswer)
    async def recommendations(body: RecommendationsBody) -> JSONResponse:
        """The user's feed: fetch candidates, look up the sequence, rank, blend."""
        answer = await service.feed.recommend(_ask(body, domain))
        content = feed_body(answer, domain.head_names, explain=body.explain)
        timing = {"Server-Timing": answer.run.server_timing()}
        return JSONResponse(content, headers=timing, background=BackgroundTask(service.answers.add, answer))

    @router.post("/v1/rank", response_model=RankAnswer)
    async def rank(body: RankBody) -> JSONResponse:
        """Ranks the caller's candidates for a user."""
        _check_once(body.item_ids)
        utilities = _utilities(body.utilities, domain) or domain.utilities
        wanted = _version(body.model, service)
        answer = await service.feed.rank(
            body.user_id,
            body.item_ids,
            _context(body.context, domain),
            now_ms(),
            version=wanted,
            deadline_ms=body.deadline_ms,
            fields=_fields(body.fields, domain),
        )
        ranking, run = answer.ranking, answer.run
        if ranking is None:
            _check_model(body.model, service)
        content = {
            "request_id": str(uuid.uuid4()),
            "items": _ranked_items(body, answer, utilities, domain.head_names),
            **model_fields(ranking),
            "degraded": bool(run.reasons),
            "fallback_reason": run.reasons[0] if run.reasons else None,
            "sequence": sequence_body(answer.user, ranking),
        }
        return JSONResponse(content, headers={"Server-Timing": run.server_timing()})

    @router.post("/v1/explain", response_model=ExplainAnswer)
    async def explain(body: ExplainBody) -> JSONResponse:
        """Why items stand where they do: the user's last actions that matter most, and each item's place without."""
        _check_once(body.item_ids)
        at_ms = now_ms()
        ask = Ask(
            request_id=str(uuid.uuid4()),
            user_id=body.user_id,
            at_ms=at_ms,
            page=Page.first(at_ms),
            context=_context(body.context, domain),
            deadline_ms=body.deadline_ms,
        )
        try:
            answer = await service.feed.explain(ask, body.item_ids, _version(body.model, service))
        except ExplainsFull:
            raise Problem(503, "too many explanations are waiting", retry_after_s=1) from None
        if answer.explanation is None:
            _check_model(body.model, service)
        content = explain_body(answer, body.item_ids, domain.head_names)
        return JSONResponse(content, headers={"Server-Timing": answer.run.server_timing()})

    return router


def _check_once(item_ids: list[str]) -> None:
    if len(set(item_ids)) != len(item_ids):
        raise invalid("item_ids", "item_ids holds an item twice; each may be named once", "duplicate")


def _version(model: str | None, service: Service) -> str | None:
    """What an alias names, or a version as it is."""
    return service.live.aliases.get(model, model) if model else None


def _check_model(model: str | None, service: Service) -> None:
    """Why nothing ranked, where it is the caller's mistake."""
    if model and _version(model, service) not in service.live.aliases.values():
        raise Problem(404, f"no loaded model is called {model!r}; GET /v1/models lists the aliases")


def _ranked_items(
    body: RankBody, answer: Ranked, utilities: tuple[float, ...], head_names: tuple[str, ...]
) -> list[dict[str, Any]]:
    """The caller's items, best first; in the caller's own order where nothing ranked them in time."""
    ranking, count = answer.ranking, len(body.item_ids)
    items: list[dict[str, Any]] = []
    if ranking is None:
        order = list(range(count))
        items = [{"item_id": body.item_ids[n], "rank": n + 1, "score": None, "known": None} for n in order]
    else:
        ranked = blend(ranking.probability_CH, utilities, count, known_C=ranking.known_C)
        order = [row.index for row in ranked]
        for place, row in enumerate(ranked, 1):
            known = bool(ranking.known_C[row.index])
            item = {"item_id": body.item_ids[row.index], "rank": place, "score": row.score, "known": known}
            if body.explain:
                item["probabilities"] = dict(zip(head_names, ranking.probability_CH[row.index].tolist(), strict=False))
            items.append(item)
    if body.fields:
        for n, item in zip(order, items, strict=True):
            item["fields"] = answer.described[n] if answer.described else None
    return items


def _ask(body: RecommendationsBody, domain: Domain) -> Ask:
    at_ms = now_ms()
    try:
        page = read_token(body.page_token, body.user_id, at_ms) if body.page_token else Page.first(at_ms)
    except ExpiredToken as error:
        raise Problem(410, str(error)) from None
    except BadToken as error:
        raise invalid("page_token", str(error)) from None
    categories = [a.name for a in domain.attributes if a.kind is AttributeKind.CATEGORIES]
    for name in body.filter:
        if name not in categories:
            raise invalid("filter", f"filter: {name[:64]!r} is no categorical attribute; {categories} are", "unknown")
    return Ask(
        request_id=str(uuid.uuid4()),
        user_id=body.user_id,
        at_ms=at_ms,
        page=page,
        num_results=body.num_results,
        num_candidates=body.num_candidates,
        surface=body.surface,
        context=_context(body.context, domain),
        exclude=body.exclude_item_ids,
        require={name: frozenset(values) for name, values in body.filter.items()},
        utilities=_utilities(body.utilities, domain),
        deadline_ms=body.deadline_ms,
        fields=_fields(body.fields, domain),
    )


def _utilities(given: Mapping[str, float] | None, domain: Domain) -> tuple[float, ...] | None:
    if given is None:
        return None
    for head in given:
        if head not in domain.head_names:
            known = list(domain.head_names)
            raise invalid(f"utilities.{head[:64]}", f"utilities: {head[:64]!r} is no head; {known} are", "unknown")
    return tuple(given.get(head.name, head.utility) for head in domain.heads)


def _fields(names: list[str], domain: Domain) -> list[str]:
    known = [*(attribute.name for attribute in domain.attributes), *OWN_FIELDS]
    for name in names:
        if name not in known:
            raise invalid("fields", f"fields: {name[:64]!r} is no field of items; {known} are", "unknown")
    return list(dict.fromkeys(names))


def _context(values: dict[str, Any], domain: Domain) -> dict[str, Any]:
    try:
        return check_attributes(values, domain.context_attributes)
    except BadAttribute as error:
        raise invalid(f"context.{error.field}", f"context: {error}") from None
