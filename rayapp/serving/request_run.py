"""One request on its way through the stages: how long it waits for each, and what is told of those that fail."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

log = logging.getLogger(__name__)
T = TypeVar("T")
FALLBACK_REASONS: Final = {
    "store_timeout": "the user is treated as new: the store did not answer in time",
    "store_unavailable": "the user is treated as new: the store failed",
    "candidates_timeout": "popular items are ranked: no candidates came in time",
    "candidates_unavailable": "popular items are ranked: the candidates stage failed, or holds no live model",
    "ranker_timeout": "the candidates' own order stands: no ranker answered in time",
    "ranker_unavailable": "the candidates' own order stands: rankers failed, or hold no live model",
    "statistics": "ranked with statistics that are more than two steps old",
    "items_timeout": "`fields` are null: they did not come in time",
    "items_unavailable": "`fields` are null: the candidates stage failed, or holds no live model",
    "filtered_out": "nothing is left to show; not degraded",
    "unknown_user": "nothing is stored of the user, who gets what is popular and new; not degraded",
}
"""Every `fallback_reason`, the one that counts first in front, and what it costs."""


@dataclass(slots=True)
class Run:
    """The time a request has, what each stage took, and what went wrong."""

    budget_s: float
    started: float = field(default_factory=time.perf_counter)
    stage_ms: dict[str, float] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)
    """Why the answer is less than it could be, the first stage first."""

    async def stage(self, name: str, until: float, call: Callable[[], Awaitable[T]]) -> T | None:
        """The stage's answer, or None, with the reason noted, when it fails or has not come when the share `until` of
        the whole time is over."""
        started = time.perf_counter()
        left_s = self.budget_s * until - (started - self.started)
        try:
            async with asyncio.timeout(max(left_s, 0.0)):
                return await call()
        except TimeoutError:
            self.reasons.append(f"{name}_timeout")
        except Exception as error:
            log.warning("stage %s failed: %s: %s", name, type(error).__name__, _first_line(error))
            self.reasons.append(f"{name}_unavailable")
        finally:
            self.stage_ms[name] = self.stage_ms.get(name, 0.0) + (time.perf_counter() - started) * 1000
        return None

    async def with_model(
        self, name: str, until: float, versions: Sequence[str], call: Callable[[str], Awaitable[T | None]]
    ) -> T | None:
        """`stage` with the first of `versions` that the replica holds."""
        failed = len(self.reasons)
        for version in dict.fromkeys(versions):

            async def ask(version: str = version) -> T | None:
                return await call(version)

            answer = await self.stage(name, until, ask)
            if answer is not None or len(self.reasons) > failed:
                return answer
        self.reasons.append(f"{name}_unavailable")
        return None

    def server_timing(self) -> str:
        """The `Server-Timing` header."""
        whole_ms = (time.perf_counter() - self.started) * 1000
        return ", ".join(f"{name};dur={ms:.1f}" for name, ms in {**self.stage_ms, "total": whole_ms}.items())


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[-1][:300]
