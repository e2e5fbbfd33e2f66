"""The three stages behind the ingress. Each is its own deployment, scaled on its own."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ray import serve

from rayapp.features.requests import Requests, context_row
from rayapp.features.sequence import at_request
from rayapp.hashing import hash64
from rayapp.root import read_root
from rayapp.schema import Event
from rayapp.serving.candidates import Candidates as CandidateList
from rayapp.serving.candidates import Query
from rayapp.serving.rates import LiveRates
from rayapp.serving.shelf import ModelShelf
from rayapp.store import Outcome, UserSequence
from rayapp.store.opening import open_store

log = logging.getLogger(__name__)
POLL_S = 0.5
"""How often replicas look for a moved alias or a new item."""
GROUP_EVENTS = 5_000
"""Events committed together at the most; one fsync acknowledges every request in the group."""


@dataclass(frozen=True, slots=True)
class RankedBy:
    """The ranker's answer: which model scored, over what sequence."""

    model_version: str
    probability_CH: NDArray[np.float32]
    known_C: NDArray[np.bool_]
    sequence_length: int
    sequence_hash: int
    rate_snapshot: str | None


@serve.deployment
class Sequences:
    """Owns the sequence store: appends are grouped into one durable transaction, lookups read by mmap."""

    def __init__(self, root: str, store: str | None) -> None:
        self._store = open_store(Path(root), store)
        self._pending: list[tuple[list[Event], asyncio.Future[list[Outcome]]]] = []
        self._writer: asyncio.Task[None] | None = None

    async def append(self, events: list[Event]) -> list[Outcome]:
        """Answers when the events are durable. Requests that arrive during a commit share the next one."""
        future: asyncio.Future[list[Outcome]] = asyncio.get_running_loop().create_future()
        self._pending.append((events, future))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._commit_pending())
        return await future

    async def _commit_pending(self) -> None:
        while self._pending:
            group, size = [self._pending.pop(0)], 0
            while self._pending and (size := size + len(group[-1][0])) < GROUP_EVENTS:
                group.append(self._pending.pop(0))
            try:
                outcomes = await asyncio.to_thread(self._store.append, [e for events, _ in group for e in events])
            except Exception as error:  # every waiting request gets the store's own words
                for _, future in group:
                    if not future.done():
                        future.set_exception(error)
                continue
            at = 0
            for events, future in group:
                if not future.done():  # done: the client went away; its events are stored all the same
                    future.set_result(outcomes[at : at + len(events)])
                at += len(events)

    async def lookup(self, user_id: str) -> UserSequence:
        return self._store.lookup(user_id)

    async def put_item(self, item: dict[str, Any]) -> int:
        return await asyncio.to_thread(self._store.put_item, item)


class _HoldsModels:
    """A replica that keeps a ModelShelf fresh in the background."""

    def __init__(self, root: str, store: str | None) -> None:
        self._domain, self._num_buckets = read_root(Path(root))
        self._shelf = ModelShelf(Path(root), self._domain, open_store(Path(root), store))
        self._poll = asyncio.get_running_loop().create_task(_forever(self._shelf.refresh))

    async def check_health(self) -> None:
        if self._poll.done():
            raise RuntimeError("the task that follows the aliases has ended")

    async def versions(self) -> list[str]:
        """What this replica holds."""
        return self._shelf.versions


async def _forever(refresh: Callable[[], None]) -> None:
    while True:
        await asyncio.sleep(POLL_S)
        try:
            await asyncio.to_thread(refresh)
        except Exception:  # an unreadable alias must not end the polling: it may be mended
            log.exception("refreshing models failed; keeping what is loaded")


@serve.deployment
class Candidates(_HoldsModels):
    """Fetches items worth ranking, from the item table of the model that will rank them."""

    async def __init__(self, root: str, store: str | None) -> None:  # type: ignore[misc]
        super().__init__(root, store)

    async def fetch(self, version: str, user: UserSequence, num_candidates: int) -> CandidateList | None:
        """None when this replica does not hold `version`."""
        index = self._shelf.index(version)
        if index is None:
            return None
        query = Query(num_candidates, time.time_ns() // 1_000_000)
        return await asyncio.to_thread(index.fetch, user.history, self._domain.vocabulary, query)


@serve.deployment
class Ranker(_HoldsModels):
    """Scores candidates with the asked model version."""

    async def __init__(self, root: str, store: str | None) -> None:  # type: ignore[misc]
        torch.set_num_threads(1)
        super().__init__(root, store)
        self._rates = LiveRates(Path(root), self._domain, self._num_buckets)
        self._poll_rates = asyncio.get_running_loop().create_task(_forever(self._rates.refresh))

    async def rank(
        self,
        version: str,
        user_id: str,
        user: UserSequence,
        timestamp_ms: int,
        item_ids: list[str],
        context: dict[str, Any],
    ) -> RankedBy | None:
        """None when this replica does not hold `version`. The sequence is cut as of `timestamp_ms`."""
        model = self._shelf.get(version)
        if model is None:
            return None
        sequences = at_request(
            user.history,
            timestamp_ms=timestamp_ms,
            watermark=user.watermark,
            length=model.config.history_length,
            vocabulary=self._domain.vocabulary,
        )
        candidate_hash_C = np.fromiter((hash64(i) for i in item_ids), np.uint64, len(item_ids))

        def score() -> tuple[NDArray[np.float32], NDArray[np.bool_], str | None]:
            user_rate_R, item_rate_CR, day = self._rates.features(user_id, candidate_hash_C)
            request = Requests(
                np.array([hash64(user_id)], np.uint64),
                np.array([timestamp_ms]),
                context_row(self._domain.context_attributes, timestamp_ms, context),
                sequences,
                candidate_hash_C[None],
                user_rate_R[None],
                item_rate_CR[None],
            )
            return *model.scorer.score(request), day

        probability_CH, known_C, day = await asyncio.to_thread(score)
        return RankedBy(version, probability_CH, known_C, int(sequences.length_R[0]), sequences.hash_of(0), day)
