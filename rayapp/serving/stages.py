"""What the request path asks of its stages, and how long it waits for each.

The stages may be deployments, objects in this process, or fakes that fail: the path knows them by this contract alone.

Shapes: C candidates, H heads, E vector width.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from rayapp.serving.candidates import Candidates, Query
from rayapp.store import UserSequence

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ranking:
    """The ranker's answer: which model scored, over what sequence."""

    model_version: str
    probability_CH: NDArray[np.float32]
    known_C: NDArray[np.bool_]
    vector_CE: NDArray[np.float16]
    """Item vectors, for the diversity of the list."""
    sequence_length: int
    sequence_hash: int
    item_table: str
    rate_snapshot: str | None


@dataclass(frozen=True, slots=True)
class RankCall:
    """What the ranker is asked, but for the model."""

    user_id: str
    user: UserSequence
    timestamp_ms: int
    """The sequence is cut as of this time."""
    item_ids: list[str]
    context: dict[str, Any]


class Stages(Protocol):
    """The three stages. `None` from `fetch` or `rank`: this replica does not hold that model."""

    async def lookup(self, user_id: str) -> UserSequence: ...

    async def fetch(self, version: str, user: UserSequence, query: Query) -> Candidates | None: ...

    async def rank(self, version: str, call: RankCall) -> Ranking | None: ...


@dataclass(slots=True)
class Run:
    """One request on its way through the stages: the time it has, what each stage took, and what went wrong."""

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


@dataclass(slots=True)
class Live:
    """Which models answer now. The ingress moves it once the stages hold what an alias names."""

    version: str
    previous: str
    aliases: Mapping[str, str]
    popular: list[str] = field(default_factory=list)
    """Item ids, the most liked first: what is shown when no candidates come."""

    def versions_for(self, alias: str | None) -> list[str]:
        """The alias's model, then the champion and the one before it."""
        first = [self.aliases[alias]] if alias is not None and alias in self.aliases else []
        return [*first, self.version, self.previous]


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[-1][:300]
