"""The stage that scores: it holds the models, and the statistics that they read."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch

from rayapp.root.facts import read_root
from rayapp.serving.background import POLL_S, Background
from rayapp.serving.explaining import ExplainCall, Explaining, Explanation
from rayapp.serving.fresh_statistics import FreshStatistics
from rayapp.serving.ranking import RankCall, Ranking, rank, rank_many
from rayapp.serving.shelf import ModelShelf
from rayapp.store import Store

T = TypeVar("T")


class RankingStage:
    """Scores candidates with the asked model version. Made inside an event loop."""

    def __init__(self, root: Path, store: Store, device: torch.device | None = None) -> None:
        """With a `device`, a GPU, for `rank_many` on it.

        Raises:
            PublishError: there is no champion, or it does not load.
        """
        torch.set_num_threads(1)  # replicas share the cores; two threads of two processes each would fight for them
        self._domain, _ = read_root(root)
        self._store, self._shelf = store, ModelShelf(root, self._domain, store, device)
        self._statistics = FreshStatistics(root, self._domain, store)
        # One thread that scores: two of one replica would fight for its core.
        self._scoring = ThreadPoolExecutor(max_workers=1, thread_name_prefix="scoring")
        self._explaining = asyncio.Semaphore(1)
        self._background = Background()
        self._background.every(POLL_S, lambda: asyncio.to_thread(self._refresh))

    def _refresh(self) -> None:
        try:
            self._statistics.refresh()  # first: an item that the models know has the statistics of its categories
        finally:
            self._shelf.refresh()

    async def rank(self, version: str, call: RankCall) -> Ranking | None:
        """None when this replica does not hold `version`."""
        model = self._shelf.get(version)
        return None if model is None else await self._on_thread(rank, model, self._statistics, self._domain, call)

    async def explain(self, version: str, asked: ExplainCall) -> Explanation | None:
        """None when this replica does not hold `version`. One at a time, and in steps between which rankings get the
        scoring thread: a feed waits for one step at the most."""
        model = self._shelf.get(version)
        if model is None:
            return None
        async with self._explaining:
            explaining = await self._on_thread(Explaining, model, self._statistics, self._domain, asked)
            for part in explaining.parts():
                await self._on_thread(explaining.score, part)
            return explaining.explanation()

    async def rank_many(self, calls: list[tuple[str, RankCall]]) -> list[Ranking | Exception | None]:
        """`rank` of several calls at once, each with its version; a call that fails has its exception."""
        return await self._on_thread(rank_many, self._shelf.get, self._statistics, self._domain, calls)

    async def versions(self) -> list[str]:
        """What this replica holds."""
        return self._shelf.versions

    async def refused(self) -> dict[str, str]:
        """Models that an alias names and that did not load: version -> why."""
        return self._shelf.refused

    async def check_health(self) -> None:
        """Raises:
        RuntimeError: models or statistics are not kept fresh any more.
        """
        self._background.check()

    def close(self) -> None:
        self._background.close()
        self._store.close()

    async def _on_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._scoring, function, *arguments)
