"""What the HTTP routes work with: the feed, handles to the stages, keys, the request log and the measurements."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fastapi import Request

from deployments.http import Problem
from deployments.metrics import Metrics
from rayapp.contracts.config import Domain
from rayapp.registry.aliases import SHADOW
from rayapp.serving.answers import add_shadow, request_row
from rayapp.serving.candidates import Candidates, Query
from rayapp.serving.feed import Answer, Feed
from rayapp.serving.keys import Keys, Role
from rayapp.serving.request_log import RequestLog, Row
from rayapp.serving.stages import Live, RankCall, Ranking
from rayapp.store import UserSequence

MAX_SHADOWS: Final = 4
"""Answers scored by the shadow at once; with more going on, some go unscored."""
SHADOW_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Handles:
    """`serving.stages.Stages` over Serve's handles, or whatever has their `.method.remote(...)`."""

    sequences: Any
    candidates: Any
    ranker: Any
    ranker_calls: asyncio.Semaphore
    """Calls that may be under way to the rankers. More wait here, where waiting costs nothing: Serve's router asks full
    rankers again and again, which takes the time of their answers."""

    async def lookup(self, user_id: str) -> UserSequence:
        found: UserSequence = await self.sequences.lookup.remote(user_id)
        return found

    async def fetch(self, version: str, user: UserSequence, query: Query) -> Candidates | None:
        found: Candidates | None = await self.candidates.fetch.remote(version, user, query)
        return found

    async def rank(self, version: str, call: RankCall) -> Ranking | None:
        async with self.ranker_calls:
            ranking: Ranking | None = await self.ranker.rank.remote(version, call)
        return ranking


class Service:
    """One ingress replica's working parts."""

    def __init__(
        self,
        root: Path,
        domain: Domain,
        handles: Handles,
        live: Live,
        feed: Feed,
        keys: Keys,
        *,
        keys_needed: bool,
        metrics: Metrics,
    ) -> None:
        self.root, self.domain, self.live, self.feed = root, domain, live, feed
        self.sequences, self.candidates, self.ranker = handles.sequences, handles.candidates, handles.ranker
        self.keys, self.metrics = keys, metrics
        self._handles, self._keys_needed = handles, keys_needed
        self.requests = RequestLog(self._send, metrics.rows_lost)
        self._shadows: set[asyncio.Task[None]] = set()

    # ---- keys ------------------------------------------------------------------------------------------------------

    async def any_key(self, request: Request) -> None:
        """Lets whoever has a key through.

        Raises:
            Problem: 401.
        """
        self._role(request)

    async def admin_only(self, request: Request) -> None:
        """Lets admins through.

        Raises:
            Problem: 401 or 403.
        """
        if self._role(request) is not Role.ADMIN:
            raise Problem(403, "this needs an admin key")

    def _role(self, request: Request) -> Role:
        if not self._keys_needed:
            return Role.ADMIN
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        key = bearer.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")
        role = self.keys.role_of(key) if key else None
        if role is None:
            raise Problem(401, "send a key: Authorization: Bearer KEY, or X-API-Key: KEY")
        return role

    # ---- request log -----------------------------------------------------------------------------------------------

    async def _send(self, rows: Sequence[Row]) -> None:
        await self.sequences.log_requests.remote(rows)

    async def answered(self, answer: Answer) -> None:
        """Measures and logs a feed, after its client has it. Where there is a shadow, the row gets its scores first.

        Waits for nothing; a coroutine, because FastAPI would run a function on a thread.
        """
        self.metrics.answered(answer)
        if not answer.shown:
            return
        row, version = request_row(answer), self.live.aliases.get(SHADOW)
        if version is None or answer.ranking is None or len(self._shadows) >= MAX_SHADOWS:
            self.requests.add(row)
            return
        task = asyncio.create_task(self._with_shadow(answer, row, version))
        self._shadows.add(task)
        task.add_done_callback(self._shadows.discard)

    async def _with_shadow(self, answer: Answer, row: Row, version: str) -> None:
        ask = answer.ask
        call = RankCall(ask.user_id, answer.user, ask.at_ms, row["item_ids"], ask.context)
        try:
            async with asyncio.timeout(SHADOW_TIMEOUT_S):
                shadow = await self._handles.rank(version, call)
            if shadow is not None:
                add_shadow(row, shadow)
        except Exception:
            self.metrics.shadow_failed()
        self.requests.add(row)
