"""The HTTP ingress: builds the API over the stages, and keeps what it serves by fresh."""

import asyncio
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI
from ray import serve

from deployments.data import data_routes
from deployments.feeds import feed_routes, now_ms
from deployments.http import EncodedSlashes, LimitBody, RequestIds, install_errors
from deployments.local import Local
from deployments.metrics import Metrics
from deployments.operations import operation_routes, or_none
from deployments.service import Handles, Service
from deployments.stages import POLL_S, keep
from rayapp import __version__
from rayapp.experiments.assignment import ExperimentBook
from rayapp.registry.aliases import CHAMPION, read_aliases
from rayapp.root.facts import read_root
from rayapp.root.publish import PublishError
from rayapp.serving.feed import Feed
from rayapp.serving.keys import Keys
from rayapp.serving.stages import Live

POPULAR_EVERY_S = 10.0


def build_api(service: Service) -> FastAPI:
    """The whole HTTP surface over one service."""
    api = FastAPI(title="rayapp", version=__version__, description="A feed that reacts to what the user just did.")
    api.add_middleware(LimitBody)
    api.add_middleware(EncodedSlashes)
    api.add_middleware(RequestIds)  # outermost: every answer has an id
    install_errors(api)
    keyed = [Depends(service.any_key)]
    api.include_router(feed_routes(service), dependencies=keyed)
    api.include_router(data_routes(service), dependencies=keyed)
    api.include_router(operation_routes(service))
    return api


@serve.deployment
@serve.ingress()
class Ingress:
    """Holds handles to the stages and the version that answers; nothing else lives here."""

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
        domain, _ = read_root(self._root)
        aliases = read_aliases(self._root)
        self._live = Live(aliases[CHAMPION], aliases[CHAMPION], aliases)
        self._book = ExperimentBook(self._root, domain)
        # Calls are dataclasses and arrays, which pickle writes in half of cloudpickle's time.
        ranker = ranker.options(request_serialization="pickle", response_serialization="pickle")
        handles = Handles(sequences, candidates, ranker, asyncio.Semaphore(ranker_calls))
        keys = Keys.load(self._root)
        if keys_needed and not keys.rows:
            raise PublishError(f"{self._root} has no API keys; make one: rayapp keys add NAME --role admin")
        self._service = Service(
            self._root,
            domain,
            handles,
            self._live,
            Feed(domain, handles, self._live, self._book, random_share),
            keys,
            keys_needed=keys_needed,
            metrics=Metrics(domain),
        )
        self._tasks = [
            keep(self._follow_keys, POLL_S),
            keep(self._follow_experiments, POLL_S),
            keep(self._follow_champion, POLL_S),
            keep(self._fetch_popular, POPULAR_EVERY_S),
            asyncio.get_running_loop().create_task(self._service.requests.run()),
        ]
        await or_none(self._fetch_popular())

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_api(self._service)

    async def __del__(self) -> None:
        await or_none(self._service.requests.flush())

    async def check_health(self) -> None:
        if any(task.done() for task in self._tasks):
            raise RuntimeError("a task that keeps the ingress fresh has ended")
        if isinstance(self._service.candidates, Local):  # as a deployment, Serve asks it itself
            await self._service.candidates.check_health.remote()

    async def _follow_keys(self) -> None:
        self._service.keys = await asyncio.to_thread(Keys.load, self._root)

    async def _follow_experiments(self) -> None:
        await asyncio.to_thread(self._book.refresh, now_ms())

    async def _follow_champion(self) -> None:
        """A newly promoted champion answers once the stages hold it."""
        live, service = self._live, self._service
        live.aliases = await asyncio.to_thread(read_aliases, self._root)
        wanted = live.aliases[CHAMPION]
        if wanted != live.version:
            held = await asyncio.gather(service.ranker.versions.remote(), service.candidates.versions.remote())
            if all(wanted in versions for versions in held):
                live.previous, live.version = live.version, wanted

    async def _fetch_popular(self) -> None:
        popular = await self._service.candidates.popular.remote(self._live.version, now_ms())
        self._live.popular = popular or self._live.popular
