"""The HTTP surface over the very classes that Serve runs, all in this process."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from deployments.ingress import build_api
from deployments.metrics import Metrics
from deployments.sequences import Sequences
from deployments.service import Handles, Service
from deployments.stages import Candidates, Ranker
from rayapp.contracts.config import Domain
from rayapp.experiments.assignment import ExperimentBook
from rayapp.registry.aliases import CHAMPION, read_aliases
from rayapp.serving.feed import Feed
from rayapp.serving.keys import Keys
from rayapp.serving.stages import Live

RANKER_CALLS = 2


class Remote:
    """An object whose methods are called as a deployment's are."""

    def __init__(self, target: Any) -> None:
        self._target = target

    def __getattr__(self, name: str) -> Any:
        class Method:
            remote = getattr(self._target, name)

        return Method


class Running:
    """A service, a client of its API, and what stands behind."""

    def __init__(self, service: Service, client: httpx.AsyncClient) -> None:
        self.service, self.client = service, client

    async def post(self, path: str, body: Any, **more: Any) -> httpx.Response:
        return await self.client.post(path, json=body, **more)

    async def act(self, user_id: str, item_id: str, action: str = "save", **changes: Any) -> None:
        now_ms = time.time_ns() // 1_000_000
        body = {"user_id": user_id, "item_id": item_id, "action": action, "timestamp_ms": now_ms, **changes}
        answer = await self.post("/v1/events", {"event_id": str(uuid.uuid4()), **body})
        assert answer.json()["accepted"] == 1, answer.text
        await asyncio.sleep(0.002)  # the sequence ends before the request's millisecond

    async def feed(self, user_id: str, **more: Any) -> dict[str, Any]:
        answer = await self.post("/v1/recommendations", {"user_id": user_id, **more})
        assert answer.status_code == 200, answer.text
        body: dict[str, Any] = answer.json()
        return body


@asynccontextmanager
async def running(
    root: Path, domain: Domain, *, keys: bool = False, key: str = "", store: str | None = None
) -> AsyncIterator[Running]:
    """The API over the very classes that Serve runs."""
    sequences = Remote(Sequences.func_or_class(str(root), store))
    candidates, ranker = object.__new__(Candidates.func_or_class), object.__new__(Ranker.func_or_class)
    await candidates.__init__(str(root), store, sequences)
    await ranker.__init__(str(root), store)
    aliases = read_aliases(root)
    live = Live(aliases[CHAMPION], aliases[CHAMPION], aliases)
    handles = Handles(sequences, Remote(candidates), Remote(ranker), asyncio.Semaphore(RANKER_CALLS))
    feed = Feed(domain, handles, live, ExperimentBook(root, domain))
    service = Service(root, domain, handles, live, feed, Keys.load(root), keys_needed=keys, metrics=Metrics(domain))
    transport = httpx.ASGITransport(app=build_api(service), raise_app_exceptions=False)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://api", headers=headers) as client:
            yield Running(service, client)
    finally:
        for task in (*candidates._tasks, *ranker._tasks):
            task.cancel()
        for stage in (sequences._target, candidates._shelf, ranker._shelf):
            stage._store.close()
