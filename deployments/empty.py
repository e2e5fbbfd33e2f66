"""A graph of the shape of the real one whose stages answer constants: what an answer costs before any work is done.

Its ranker may be told to compute for some milliseconds, off its event loop as the real one does: the rest of the graph
then waits as long as it does in earnest.
"""

import asyncio
import time
from typing import Any

import torch
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from ray import serve
from ray.serve import Application

from deployments.http import RecommendationsBody
from deployments.local import Stage, bound

app = FastAPI()


@serve.deployment(name="Sequences")
class EmptySequences:
    """No store."""

    async def lookup(self, user_id: str) -> str:
        return user_id


@serve.deployment(name="Candidates")
class EmptyCandidates:
    """No index."""

    async def fetch(self, user: str, num_candidates: int) -> list[str]:
        return [f"{user}-{n}" for n in range(num_candidates)]


@serve.deployment(name="Ranker")
class EmptyRanker:
    """No model."""

    def __init__(self, busy_ms: float) -> None:
        torch.set_num_threads(1)
        self._busy_s = busy_ms / 1000

    async def rank(self, item_ids: list[str]) -> list[float]:
        if self._busy_s:
            await asyncio.to_thread(_compute, self._busy_s)
        return [0.0] * len(item_ids)


def _compute(seconds: float) -> None:
    until = time.perf_counter() + seconds
    rows, weights = torch.ones(1_000, 64), torch.ones(64, 64)
    while time.perf_counter() < until:
        rows @ weights


@serve.deployment(name="Ingress")
@serve.ingress(app)
class EmptyIngress:
    """Asks the three, one after another."""

    async def __init__(self, sequences: Any, candidates: Any, ranker: Any) -> None:  # type: ignore[misc]
        self._sequences, self._candidates, self._ranker = sequences, candidates, ranker

    @app.post("/v1/recommendations")
    async def recommendations(self, body: RecommendationsBody) -> JSONResponse:
        user = await self._sequences.lookup.remote(body.user_id)
        item_ids = await self._candidates.fetch.remote(user, body.num_candidates)
        scores = await self._ranker.rank.remote(item_ids)
        rows = zip(item_ids, scores, strict=True)
        items = [{"item_id": item, "score": score} for item, score in list(rows)[: body.num_results]]
        return JSONResponse({"items": items})


def build(args: dict[str, Any]) -> Application:
    """As `deployments.app.build`, of stages that do nothing."""
    inline: list[Stage] = args["inline"]
    apart: dict[Stage, dict[str, Any]] = args["apart"]
    return EmptyIngress.bind(  # type: ignore[attr-defined]
        bound("sequences", EmptySequences, inline, apart),
        bound("candidates", EmptyCandidates, inline, apart),
        EmptyRanker.bind(args["busy_ms"]),  # type: ignore[attr-defined]
    )
