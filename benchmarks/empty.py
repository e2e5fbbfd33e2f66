"""A graph of the shape of the real one whose stages answer constants: what an answer costs before any work is done."""

from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from ray import serve
from ray.serve import Application

from deployments.bodies import RecommendationsBody
from deployments.placement import StageName, placed, plain

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

    async def rank(self, item_ids: list[str]) -> list[float]:
        return [0.0] * len(item_ids)


@serve.deployment(name="Ingress")
@serve.ingress(app)
class EmptyIngress:
    """Asks the three, one after another."""

    async def __init__(self, sequences: Any, candidates: Any, ranker: Any) -> None:  # type: ignore[misc]
        self._sequences, self._candidates, self._ranker = plain(sequences), plain(candidates), plain(ranker)

    @app.post("/v1/recommendations")
    async def recommendations(self, body: RecommendationsBody) -> JSONResponse:
        user = await self._sequences.lookup(body.user_id)
        item_ids = await self._candidates.fetch(user, body.num_candidates)
        scores = await self._ranker.rank(item_ids)
        rows = zip(item_ids, scores, strict=True)
        items = [{"item_id": item, "score": score} for item, score in list(rows)[: body.num_results]]
        return JSONResponse({"items": items})


def build(args: dict[str, Any]) -> Application:
    """As `deployments.app.build`, of stages that do nothing."""
    inline: list[StageName] = args["inline"]
    apart: dict[StageName, dict[str, Any]] = args["apart"]
    return EmptyIngress.bind(  # type: ignore[attr-defined]
        placed("sequences", EmptySequences, inline, apart),
        placed("candidates", EmptyCandidates, inline, apart),
        EmptyRanker.bind(),  # type: ignore[attr-defined]
    )
