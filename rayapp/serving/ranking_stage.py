"""The stage that scores: it holds the models, and the statistics that they read."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch

from rayapp.contracts.config import Domain
from rayapp.registry.models import LoadedModel
from rayapp.serving.background import POLL_S, Background
from rayapp.serving.explaining import ExplainCall, Explaining, Explanation
from rayapp.serving.followed_domain import FollowedDomain
from rayapp.serving.fresh_statistics import FreshStatistics
from rayapp.serving.ranking import RankCall, Ranking, rank, rank_many
from rayapp.serving.shelf import ModelShelf
from rayapp.statistics.known import reading_of
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
        self._root, self._domain, self._store = root, FollowedDomain(root), store
        self._statistics: dict[str, FreshStatistics] = {}
        """By what models read: one that was trained before the domain changed reads what it was trained on."""
        self._readings: dict[str, str] = {}
        """Version -> what `_statistics` are found by: it is not worked out for every call."""
        self._shelf = ModelShelf(root, self._domain.now, store, device, self._read_for)
        # One thread that scores: two of one replica would fight for its core.
        self._scoring = ThreadPoolExecutor(max_workers=1, thread_name_prefix="scoring")
        self._explaining = asyncio.Semaphore(1)
        self._background = Background()
        self._background.every(POLL_S, lambda: asyncio.to_thread(self._refresh))

    def _refresh(self) -> None:
        try:
            # First: an item that the models know has the statistics of its categories.
            for statistics in self._statistics.values():
                statistics.refresh()
        finally:
            self._domain.refresh()
            self._shelf.follow(self._domain.now)  # a call that knew of it first may have read it
            self._shelf.refresh()
            read = {reading_of(domain) for domain in self._shelf.domains}
            self._statistics = {reading: each for reading, each in self._statistics.items() if reading in read}

    def _read_for(self, domain: Domain) -> None:
        """Before a model of that domain is held."""
        if (reading := reading_of(domain)) not in self._statistics:
            self._statistics = {**self._statistics, reading: FreshStatistics(self._root, domain, self._store)}

    def _of_model(self, model: LoadedModel) -> FreshStatistics:
        """Raises:
        KeyError: the model is not held any more.
        """
        if (reading := self._readings.get(model.version)) is None:
            reading = self._readings[model.version] = reading_of(model.domain)
        return self._statistics[reading]

    async def rank(self, version: str, call: RankCall) -> Ranking | None:
        """None when this replica does not hold `version`."""
        model = self._shelf.get(version)
        if model is None:
            return None
        domain = self._domain.knowing(call.user.history.action_E)
        return await self._on_thread(rank, model, self._of_model(model), domain, call)

    async def explain(self, version: str, asked: ExplainCall) -> Explanation | None:
        """None when this replica does not hold `version`. One at a time, and in steps between which rankings get the
        scoring thread: a feed waits for one step at the most."""
        model = self._shelf.get(version)
        if model is None:
            return None
        async with self._explaining:
            domain = self._domain.knowing(asked.call.user.history.action_E)
            explaining = await self._on_thread(Explaining, model, self._of_model(model), domain, asked)
            for part in explaining.parts():
                await self._on_thread(explaining.score, part)
            return explaining.explanation()

    async def rank_many(self, calls: list[tuple[str, RankCall]]) -> list[Ranking | Exception | None]:
        """`rank` of several calls at once, each with its version; a call that fails has its exception."""
        for _, call in calls:
            self._domain.knowing(call.user.history.action_E)
        return await self._on_thread(rank_many, self._shelf.get, self._of_model, self._domain.now, calls)

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
