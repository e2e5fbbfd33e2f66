"""The HTTP ingress: builds the API over the stages, and keeps what it serves by fresh."""

import asyncio
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI
from ray import serve

from deployments.data import data_routes
from deployments.domain import domain_routes
from deployments.feeds import feed_routes, now_ms
from deployments.http import install_errors
from deployments.items import item_routes
from deployments.metrics import Metrics, count_replica
from deployments.middleware import EncodedSlashes, ReadBody, RequestIds
from deployments.openapi import add_problem
from deployments.operations import operation_routes
from deployments.page import page_routes
from deployments.placement import Inline, plain
from deployments.service import Service
from rayapp import __version__
from rayapp.contracts.config import Domain
from rayapp.experiments.assignment import ExperimentBook
from rayapp.registry.aliases import read_aliases
from rayapp.root.publish import PublishError
from rayapp.serving.answer_log import AnswerLog
from rayapp.serving.background import POLL_S, Background
from rayapp.serving.bounded import or_none
from rayapp.serving.feed import Feed
from rayapp.serving.followed_domain import FollowedDomain
from rayapp.serving.keys import Keys
from rayapp.serving.live import Live
from rayapp.serving.stages import Stages

POPULAR_EVERY_S = 2.0
"""A deleted item leaves this list, too, within seconds."""


def build_api(service: Service) -> FastAPI:
    """The whole HTTP surface over one service."""
    api = FastAPI(title="rayapp", version=__version__, description="A feed that reacts to what the user just did.")
    api.add_middleware(ReadBody)
    api.add_middleware(EncodedSlashes)
    api.add_middleware(RequestIds)  # outermost: every answer has an id
    install_errors(api)
    keyed = [Depends(service.any_key)]
    api.include_router(feed_routes(service), dependencies=keyed)
    api.include_router(data_routes(service), dependencies=keyed)
    api.include_router(item_routes(service), dependencies=keyed)
    api.include_router(domain_routes(service))
    api.include_router(operation_routes(service))
    api.include_router(page_routes())
    add_problem(api)
    return api


class FollowingApi:
    """The API of the domain as it is: its routes check by it, and its OpenAPI document shows its attributes."""

    def __init__(self, service: Service) -> None:
        self._service, self._api = service, build_api(service)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self._api(scope, receive, send)

    async def follow(self, domain: Domain) -> None:
        """Goes by another domain, with all that answers."""
        self._service.follow(domain)
        self._api = await asyncio.to_thread(build_api, self._service)  # a tenth of a second: requests go on


@serve.deployment
@serve.ingress()
class Ingress:
    """Puts the stages, the feed and the routes together, and keeps them fresh; nothing else lives here."""

    async def __init__(  # type: ignore[misc]
        self,
        root: str,
        sequences: Any,
        candidates: Any,
        ranker: Any,
        *,
        ranker_calls: int,
        keys_needed: bool,
        random_share: float,
    ) -> None:
        self._root = Path(root)
        self._domain = FollowedDomain(self._root)
        domain = self._domain.now
        self._book = ExperimentBook(self._root, domain)
        # Calls are dataclasses and arrays, which pickle writes in half of cloudpickle's time.
        ranker = ranker.options(request_serialization="pickle", response_serialization="pickle")
        stages = Stages(plain(sequences), plain(candidates), plain(ranker), asyncio.Semaphore(ranker_calls))
        keys = Keys.load(self._root)
        if keys_needed and not keys.rows:
            raise PublishError(f"{self._root} has no API keys; make one: rayapp keys add NAME --role admin")
        live = Live.of(read_aliases(self._root))
        feed = Feed(domain, stages, live, self._book, random_share)
        metrics = Metrics(domain)
        answers, book = AnswerLog(stages, live, metrics), self._book
        self._service = Service(self._root, domain, stages, live, feed, answers, metrics, book, keys, keys_needed)
        self._api = FollowingApi(self._service)
        self._candidates_here = candidates if isinstance(candidates, Inline) else None
        self._background = Background()
        self._background.every(POLL_S, self._follow_domain)
        self._background.every(POLL_S, self._follow_keys)
        self._background.every(POLL_S, self._follow_experiments)
        self._background.every(POLL_S, self._follow_champion)
        self._background.every(POPULAR_EVERY_S, self._fetch_popular)
        self._background.run(answers.requests.run())
        await or_none(self._fetch_popular())

    def __serve_build_asgi_app__(self) -> FollowingApi:
        return self._api

    async def __del__(self) -> None:
        await or_none(self._service.answers.requests.flush())

    async def check_health(self) -> None:
        count_replica()
        self._background.check()
        if self._candidates_here is not None:  # as a deployment, Serve asks it itself
            await self._candidates_here.check_health()

    async def _follow_domain(self) -> None:
        if await asyncio.to_thread(self._domain.refresh):
            await self._api.follow(self._domain.now)

    async def _follow_keys(self) -> None:
        self._service.keys = await asyncio.to_thread(Keys.load, self._root)

    async def _follow_experiments(self) -> None:
        await asyncio.to_thread(self._book.refresh, now_ms())

    async def _follow_champion(self) -> None:
        aliases = await asyncio.to_thread(read_aliases, self._root)
        await self._service.live.follow(aliases, self._service.stages)

    async def _fetch_popular(self) -> None:
        await self._service.live.fetch_popular(self._service.stages, now_ms())
