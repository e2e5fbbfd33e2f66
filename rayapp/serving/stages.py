"""The three stages, as whoever answers a request asks them: as plain objects, wherever they run."""

import asyncio
from dataclasses import dataclass

from rayapp.serving.candidate_stage import CandidateStage
from rayapp.serving.ranking import RankCall, Ranking
from rayapp.serving.ranking_stage import RankingStage
from rayapp.serving.sequence_stage import SequenceStage


@dataclass(frozen=True, slots=True)
class Stages:
    """Each may live in this process or be a deployment behind the same methods (`deployments.placement`)."""

    sequences: SequenceStage
    candidates: CandidateStage
    ranker: RankingStage
    ranker_calls: asyncio.Semaphore
    """Calls that may be under way to the rankers. More wait here, where waiting costs nothing: Serve's router asks full
    rankers again and again, which takes the time of their answers."""

    async def rank(self, version: str, call: RankCall) -> Ranking | None:
        """None when the replica that was asked does not hold `version`."""
        async with self.ranker_calls:
            return await self.ranker.rank(version, call)
