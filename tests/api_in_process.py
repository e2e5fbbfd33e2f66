"""The HTTP surface over the very stages that Serve runs, all in this process."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from deployments.ingress import FollowingApi
from deployments.metrics import Metrics
from deployments.service import Service
from rayapp.contracts.config import Domain
from rayapp.experiments.assignment import ExperimentBook
from rayapp.registry.aliases import read_aliases
from rayapp.serving.answer_log import AnswerLog
from rayapp.serving.candidate_stage import CandidateStage
from rayapp.serving.feed import Feed
from rayapp.serving.keys import Keys
from rayapp.serving.live import Live
from rayapp.serving.ranking_stage import RankingStage
from rayapp.serving.sequence_stage import SequenceStage
from rayapp.serving.stages import Stages
from rayapp.store.opening import open_for_graph, open_store

RANKER_CALLS = 2


class Running:
    """A service, a client of its API, and what stands behind."""

    def __init__(self, service: Service, client: httpx.AsyncClient, store: str | None, api: FollowingApi) -> None:
        self.service, self.client, self.store, self.api = service, client, store, api

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
    root: Path,
    domain: Domain,
    *,
    keys: bool = False,
    key: str = "",
    store: str | None = None,
    time_ns: Callable[[], int] = time.time_ns,
) -> AsyncIterator[Running]:
    """The API over the very stages that Serve runs; `time_ns` tells the candidates which step is over."""
    sequences = SequenceStage(root, open_for_graph(root, store), lambda ms: None)
    candidates = CandidateStage(root, open_store(root, store), time_ns)
    ranker = RankingStage(root, open_store(root, store))
    stages = Stages(sequences, candidates, ranker, asyncio.Semaphore(RANKER_CALLS))
    live = Live.of(read_aliases(root))
    book, metrics = ExperimentBook(root, domain), Metrics(domain)
    feed, answers = Feed(domain, stages, live, book), AnswerLog(stages, live, metrics)
    service = Service(root, domain, stages, live, feed, answers, metrics, book, Keys.load(root), keys)
    api = FollowingApi(service)
    transport = httpx.ASGITransport(app=api, raise_app_exceptions=False)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://api", headers=headers) as client:
            yield Running(service, client, store, api)
    finally:
        for stage in (candidates, ranker, sequences):
            stage.close()
