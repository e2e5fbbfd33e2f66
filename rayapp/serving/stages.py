"""The three stages, as whoever answers a request asks them: as plain objects, wherever they run."""

import asyncio
from dataclasses import dataclass, field
from typing import Final

from rayapp.serving.candidate_stage import CandidateStage
from rayapp.serving.explaining import ExplainCall, Explanation
from rayapp.serving.ranking import RankCall, Ranking
from rayapp.serving.ranking_stage import RankingStage
from rayapp.serving.sequence_stage import SequenceStage

MOST_EXPLAINS: Final = 16
"""Inside one ingress, all but one of them waiting."""


class ExplainsFull(Exception):
    """No more explanations may wait."""


class Explains:
    """Whoever wants an explanation is inside (`with`) while it is made. One at a time has a turn at the rankers, so
    that explanations never take them from feeds."""

    def __init__(self) -> None:
        self._inside, self.turn = 0, asyncio.Semaphore(1)

    def __enter__(self) -> None:
        """Raises:
        ExplainsFull: MOST_EXPLAINS are inside.
        """
        if self._inside >= MOST_EXPLAINS:
            raise ExplainsFull
        self._inside += 1

    def __exit__(self, *_: object) -> None:
        self._inside -= 1


@dataclass(frozen=True, slots=True)
class Stages:
    """Each may live in this process or be a deployment behind the same methods (`deployments.placement`)."""

    sequences: SequenceStage
    candidates: CandidateStage
    ranker: RankingStage
    ranker_calls: asyncio.Semaphore
    """Calls that may be under way to the rankers. More wait here, where waiting costs nothing: Serve's router asks full
    rankers again and again, which takes the time of their answers."""

    explains: Explains = field(default_factory=Explains)

    async def rank(self, version: str, call: RankCall) -> Ranking | None:
        """None when the replica that was asked does not hold `version`."""
        async with self.ranker_calls:
            return await self.ranker.rank(version, call)

    async def explain(self, version: str, asked: ExplainCall) -> Explanation | None:
        """None when the replica that was asked does not hold `version`."""
        async with self.explains.turn, self.ranker_calls:
            return await self.ranker.explain(version, asked)
