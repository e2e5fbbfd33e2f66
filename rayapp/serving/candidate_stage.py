"""The stage that fetches items worth ranking, from the item table of the model that will rank them."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from rayapp.contracts.config import Domain
from rayapp.features.sequence import History
from rayapp.retrieval.candidates import Candidates, Query, fetch
from rayapp.retrieval.orders import Positives
from rayapp.root.facts import read_root
from rayapp.serving.background import POLL_S, Background
from rayapp.serving.closed_steps import ClosedSteps
from rayapp.serving.index_shelf import IndexShelf
from rayapp.store import Store, UserSequence

STATISTICS_EVERY_S: Final = 5.0
"""How often the store is read for the orders of items; a step of the grid is minutes long."""
NUM_POPULAR: Final = 500


class CandidateStage:
    """Holds an index over each item table that feeds are made of, ordered anew when a step of the statistics is over.
    Until they are read for the first time, items are in the order of the item table's likes. Made inside an event
    loop."""

    def __init__(self, root: Path, store: Store, time_ns: Callable[[], int] = time.time_ns) -> None:
        """`time_ns`: the clock of the statistics.

        Raises:
            PublishError: there is no champion, or its item table can't be read.
        """
        domain: Domain = read_root(root)[0]
        self._vocabulary, self._store, self._shelf = domain.vocabulary, store, IndexShelf(root, store)
        # Not the ranker's: that one lives in another process.
        self._steps = ClosedSteps(root, domain, store, time_ns)
        self._background = Background()
        self._background.every(POLL_S, lambda: asyncio.to_thread(self._shelf.refresh))
        self._background.every(STATISTICS_EVERY_S, lambda: asyncio.to_thread(self.order))

    def order(self) -> None:
        """Reads what is new, and orders the items anew when a step is over. Called by one thread at a time.

        Raises:
            PublishError: the statistics or a log can't be read; the orders stay.
            StoreError: the store does not answer; likewise.
        """
        self._steps.read()
        # Counts of items alone are read here; the categories of items put since would be for those of values.
        closed = self._steps.close(lambda base: base.statistics.item_values)
        if closed is not None:
            self._shelf.order(Positives.of(closed.statistics.grid, *closed.statistics.all_positives(closed.step)))

    async def fetch(self, version: str, user: UserSequence, query: Query) -> Candidates | None:
        """None when this replica does not hold the item table of `version`."""
        index = self._shelf.get(version)
        if index is None:
            return None
        return await asyncio.to_thread(fetch, index, user.history, self._vocabulary, query)

    async def popular(self, version: str, now_ms: int) -> list[str] | None:
        """The most popular items: what the ingress shows when no candidates come."""
        index = self._shelf.get(version)
        if index is None:
            return None
        query = Query(num_candidates=NUM_POPULAR, mix={}, now_ms=now_ms)
        found = await asyncio.to_thread(fetch, index, History.empty(), self._vocabulary, query)
        return found.item_ids

    async def versions(self) -> list[str]:
        """The models whose item tables this replica holds."""
        return self._shelf.versions

    async def check_health(self) -> None:
        """Raises:
        RuntimeError: the indexes are not kept fresh any more.
        """
        self._background.check()

    def close(self) -> None:
        self._background.close()
        self._store.close()
