"""What a team would write without Serve: one FastAPI application that does the whole feed, under uvicorn workers.

The same scorer, index, store and blend as the graph, everything else left out: no hot swap, no request log, no
deadlines, no degraded answers. Scoring takes one thread of each worker, the quickest where workers share the cores.
"""

import asyncio
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from fastapi import FastAPI
from pydantic import BaseModel

from rayapp.registry.aliases import CHAMPION, read_aliases
from rayapp.registry.models import load_model
from rayapp.retrieval.candidates import Query, fetch
from rayapp.retrieval.index import CandidateIndex
from rayapp.root.facts import read_root
from rayapp.serving.blend import blend
from rayapp.serving.feed import DIVERSITY
from rayapp.serving.fresh_statistics import FreshStatistics
from rayapp.serving.ranking import RankCall, rank
from rayapp.store.opening import open_store


class FeedBody(BaseModel):
    """The fields of `/v1/recommendations` that it knows."""

    user_id: str
    num_candidates: int
    num_results: int


def make_app() -> FastAPI:
    """For `uvicorn --factory`; the root comes from the environment."""
    torch.set_num_threads(1)
    root = Path(os.environ["RAYAPP_ROOT"])
    domain, _ = read_root(root)
    model = load_model(root, read_aliases(root)[CHAMPION], domain)
    index, store = CandidateIndex(model.table), open_store(root)
    statistics = FreshStatistics(root, domain, store)
    thread = ThreadPoolExecutor(max_workers=1)
    app = FastAPI()

    def feed(ask: FeedBody) -> dict[str, Any]:
        now_ms = time.time_ns() // 1_000_000
        user = store.lookup(ask.user_id)
        found = fetch(index, user.history, domain.vocabulary, Query(ask.num_candidates, now_ms))
        ranking = rank(model, statistics, domain, RankCall(ask.user_id, user, now_ms, found.item_hash_C, {}))
        vectors_CE = ranking.vector_CE.astype("float32")
        rows = blend(
            ranking.probability_CH, domain.utilities, ask.num_results, vectors_CE=vectors_CE, diversity=DIVERSITY
        )
        return {"items": [{"item_id": found.item_ids[row.index], "score": row.score} for row in rows]}

    @app.post("/v1/recommendations")
    async def recommendations(ask: FeedBody) -> dict[str, Any]:
        return await asyncio.get_running_loop().run_in_executor(thread, feed, ask)

    @app.get("/health")
    async def health() -> str:
        return "ready"

    return app
