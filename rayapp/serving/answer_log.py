"""What becomes of an answer once its client has it: measured, scored by the shadow if there is one, and logged."""

import asyncio
from collections.abc import Sequence
from typing import Final, Protocol

from rayapp.registry.aliases import SHADOW
from rayapp.serving.answers import add_shadow, request_row
from rayapp.serving.feed import Answer
from rayapp.serving.live import Live
from rayapp.serving.ranking import RankCall
from rayapp.serving.request_log import RequestLog, Row
from rayapp.serving.stages import Stages

MAX_SHADOWS: Final = 4
"""Answers scored by the shadow at once; with more going on, some go unscored."""
SHADOW_TIMEOUT_S: Final = 5.0


class Measures(Protocol):
    """What is counted of answers."""

    def answered(self, answer: Answer) -> None: ...

    def rows_lost(self, count: int) -> None: ...

    def shadow_failed(self) -> None: ...


class AnswerLog:
    """Of one ingress replica."""

    def __init__(self, stages: Stages, live: Live, measures: Measures) -> None:
        self._stages, self._live, self._measures = stages, live, measures
        self.rest_items = 0
        """Shown items of a user that are kept along; 0 where the domain lets none rest."""
        self.requests = RequestLog(self._send, measures.rows_lost)
        self.shadows: set[asyncio.Task[None]] = set()
        """Answers that the shadow is scoring now."""

    async def _send(self, rows: Sequence[Row]) -> None:
        await self._stages.sequences.log_requests(rows, self.rest_items)

    async def add(self, answer: Answer) -> None:
        """Waits for nothing; a coroutine, because FastAPI would run a function on a thread."""
        self._measures.answered(answer)
        if not answer.shown:
            return
        row, version = request_row(answer), self._live.aliases.get(SHADOW)
        if version is None or answer.ranking is None or len(self.shadows) >= MAX_SHADOWS:
            self.requests.add(row)
            return
        task = asyncio.create_task(self._with_shadow(answer, row, version))
        self.shadows.add(task)
        task.add_done_callback(self.shadows.discard)

    async def _with_shadow(self, answer: Answer, row: Row, version: str) -> None:
        ask = answer.ask
        call = RankCall.of(ask.user_id, answer.user, ask.at_ms, row["item_ids"], ask.context)
        try:
            async with asyncio.timeout(SHADOW_TIMEOUT_S):
                shadow = await self._stages.rank(version, call)
            if shadow is not None:
                add_shadow(row, shadow)
        except Exception:
            self._measures.shadow_failed()
        self.requests.add(row)
