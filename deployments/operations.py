"""Routes for operators: models, promotion and rollback, health."""

import asyncio
import re
from typing import Any

from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse

from deployments.answers import LiveAnswer, ModelsAnswer, MovedAnswer, ReadyAnswer
from deployments.http import Problem
from deployments.openapi import ERRORS
from deployments.service import Service
from rayapp.registry.aliases import CHAMPION, promote, read_previous, rollback
from rayapp.registry.models import list_models, load_model
from rayapp.root.publish import PublishError
from rayapp.serving.bounded import or_none


def operation_routes(service: Service) -> APIRouter:
    """The routes, for one service."""
    router = APIRouter(tags=["operations"], responses=ERRORS)
    admin = [Depends(service.admin_only)]

    @router.get("/v1/models", response_model=ModelsAnswer, dependencies=[Depends(service.any_key)])
    async def models() -> JSONResponse:
        """Published models with their metrics, the aliases, what answers now, and what was refused."""
        rows = await asyncio.to_thread(list_models, service.root)
        refused = await or_none(service.stages.ranker.refused())
        live = service.live
        content = {"serving": live.version, "aliases": dict(live.aliases), "refused": refused or {}, "models": rows}
        return JSONResponse(content)

    @router.post("/v1/models/{version}:promote", response_model=MovedAnswer, dependencies=admin)
    async def promote_model(version: str, alias: str = CHAMPION) -> JSONResponse:
        """Makes a model live under an alias, after loading it once. Replicas follow within seconds."""

        def move() -> str | None:
            _check_name(version)
            load_model(service.root, version, service.domain)
            return promote(service.root, alias, version)

        try:
            previous = await asyncio.to_thread(move)
        except PublishError as error:
            raise Problem(409, str(error)) from None
        return JSONResponse({"alias": alias, "version": version, "previous": previous})

    @router.post("/v1/models/{version}:rollback", response_model=MovedAnswer, dependencies=admin)
    async def rollback_model(version: str, alias: str = CHAMPION) -> JSONResponse:
        """Takes an alias from this version back to the one before it, after loading that one."""
        if (named := service.live.aliases.get(alias)) != version:
            raise Problem(409, f"{alias} is {named or 'nothing'}, not {version}: somebody has moved it already")

        def move() -> str:
            if (before := read_previous(service.root).get(alias)) is not None:
                load_model(service.root, before, service.domain)
            return rollback(service.root, alias)[1]

        try:
            now = await asyncio.to_thread(move)
        except PublishError as error:
            raise Problem(409, str(error)) from None
        return JSONResponse({"alias": alias, "version": now, "previous": version})

    @router.get("/health/live", response_model=LiveAnswer)
    async def live() -> JSONResponse:
        """The process answers."""
        return JSONResponse({"status": "live"})

    @router.get("/health/ready", response_model=ReadyAnswer)
    async def ready() -> JSONResponse:
        """200 while feeds can be answered, whole or degraded; the body says what each stage is short of.

        A balancer may probe it: what all nodes share, such as the store, takes none of them out.
        """
        problem, ranker, candidates = await asyncio.gather(
            _told(service.stages.sequences.problem()),
            or_none(service.stages.ranker.versions(), READY_TIMEOUT_S),
            or_none(service.stages.candidates.versions(), READY_TIMEOUT_S),
        )
        live = service.live
        states = {
            "store": problem or "ok",
            "candidates": _holding(candidates, live.version),
            "ranker": _holding(ranker, live.version),
        }
        if states["candidates"] != "ok" and not live.popular:
            words = ", ".join(f"{name}: {state}" for name, state in states.items())
            raise Problem(503, f"no feed can be answered ({words})", retry_after_s=1)
        return JSONResponse({"status": "ready", "model_version": live.version, **states})

    return router


READY_TIMEOUT_S = 1.0
"""Less than a balancer waits."""
VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def _check_name(version: str) -> None:
    """Nothing that comes from a client becomes part of a path without this."""
    if not VERSION.fullmatch(version):
        raise PublishError("that can't be a model's version; GET /v1/models lists those there are")


def _holding(versions: list[str] | None, version: str) -> str:
    if versions is None:
        return "it does not answer"
    return "ok" if version in versions else f"model {version} is not loaded"


async def _told(answer: Any) -> str | None:
    """What a stage says is wrong; that it does not answer is wrong too."""
    try:
        async with asyncio.timeout(READY_TIMEOUT_S):
            problem: str | None = await answer
            return problem
    except Exception:
        return "it does not answer"
