"""The two stages that hold models: candidates and ranker. Each is its own deployment, scaled on its own."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import ray
import torch
from ray import serve

from rayapp.model.batched import LARGEST_BATCH
from rayapp.root.facts import read_root
from rayapp.serving.candidates import Candidates as CandidateList
from rayapp.serving.candidates import Query
from rayapp.serving.live_rates import LiveRates
from rayapp.serving.ranking import rank, rank_many
from rayapp.serving.shelf import ModelShelf
from rayapp.serving.stages import RankCall, Ranking
from rayapp.store import UserSequence
from rayapp.store.opening import open_store

log = logging.getLogger(__name__)
T = TypeVar("T")
POLL_S = 0.5
"""How often replicas look for a moved alias or a new item."""
TRENDS_EVERY_S = 5.0
NUM_POPULAR = 500
BATCH_WAIT_S = 0.002
"""How long a GPU waits for calls of other users to be scored at once."""


class _HoldsModels:
    """A replica that keeps a ModelShelf fresh in the background."""

    def __init__(self, root: str, store: str | None, device: torch.device | None = None) -> None:
        torch.set_num_threads(1)  # replicas share the cores; two threads of two processes each would fight for them
        self._domain, self._num_buckets = read_root(Path(root))
        self._shelf = ModelShelf(Path(root), self._domain, open_store(Path(root), store), device)
        self._tasks = [keep(lambda: asyncio.to_thread(self._shelf.refresh), POLL_S)]

    async def check_health(self) -> None:
        if any(task.done() for task in self._tasks):
            raise RuntimeError("a task that keeps the models fresh has ended")

    async def versions(self) -> list[str]:
        """What this replica holds."""
        return self._shelf.versions

    async def refused(self) -> dict[str, str]:
        """Models that an alias names and that did not load: version -> why."""
        return self._shelf.refused


def keep(refresh: Callable[[], Awaitable[Any]], every_s: float) -> "asyncio.Task[None]":
    """Calls `refresh` again and again. What it raises is logged once in a row: what is broken may be mended."""

    async def forever() -> None:
        failed = False
        while True:
            await asyncio.sleep(every_s)
            try:
                await refresh()
                failed = False
            except Exception:
                if not failed:
                    log.exception("refreshing failed; keeping what is there")
                failed = True

    return asyncio.get_running_loop().create_task(forever())


@serve.deployment
class Candidates(_HoldsModels):
    """Fetches items worth ranking, from the item table of the model that will rank them."""

    async def __init__(self, root: str, store: str | None, sequences: Any) -> None:  # type: ignore[misc]
        super().__init__(root, store)
        self._sequences, self._trends = sequences, dict[str, float]()
        self._tasks.append(keep(self._refresh_trends, TRENDS_EVERY_S))

    async def _refresh_trends(self) -> None:
        self._trends = await self._sequences.trending.remote()

    async def fetch(self, version: str, user: UserSequence, query: Query) -> CandidateList | None:
        """None when this replica does not hold `version`."""
        index = self._shelf.index(version)
        if index is None:
            return None
        return await asyncio.to_thread(index.fetch, user.history, self._domain.vocabulary, query, self._trends)

    async def popular(self, version: str, now_ms: int) -> list[str] | None:
        """The most liked items: what the ingress shows when no candidates come."""
        index = self._shelf.index(version)
        if index is None:
            return None
        query = Query(num_candidates=NUM_POPULAR, mix={}, now_ms=now_ms)
        found = await asyncio.to_thread(index.fetch, UserSequence.unknown().history, self._domain.vocabulary, query)
        return found.item_ids


@serve.deployment
class Ranker(_HoldsModels):
    """Scores candidates with the asked model version: each call alone on a CPU, several at once on a GPU."""

    async def __init__(self, root: str, store: str | None) -> None:  # type: ignore[misc]
        self._gpu = own_gpu()
        super().__init__(root, store, self._gpu)
        self._rates = LiveRates(Path(root), self._domain, self._num_buckets)
        # One thread that scores: two of one replica would fight for its core.
        self._scoring = ThreadPoolExecutor(max_workers=1, thread_name_prefix="scoring")
        self._tasks.append(keep(lambda: asyncio.to_thread(self._rates.refresh), POLL_S))

    async def rank(self, version: str, call: RankCall) -> Ranking | None:
        """None when this replica does not hold `version`."""
        if self._gpu is None:
            model = self._shelf.get(version)
            return None if model is None else await self._on_thread(rank, model, self._rates, self._domain, call)
        answer: Ranking | Exception | None = await self._rank_together((version, call))
        if isinstance(answer, Exception):
            raise answer
        return answer

    @serve.batch(max_batch_size=LARGEST_BATCH, batch_wait_timeout_s=BATCH_WAIT_S)  # type: ignore[untyped-decorator]
    async def _rank_together(self, calls: list[tuple[str, RankCall]]) -> list[Ranking | Exception | None]:
        return await self._on_thread(rank_many, self._shelf.get, self._rates, self._domain, calls)

    async def _on_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._scoring, function, *arguments)


def own_gpu() -> torch.device | None:
    """The GPU that Ray reserved for this replica (`num_gpus` in its `ray_actor_options`): without one, none is used,
    even if the machine has some."""
    mine = torch.cuda.is_available() and ray.is_initialized() and ray.get_gpu_ids()
    return torch.device("cuda") if mine else None
