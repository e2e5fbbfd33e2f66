"""The stage that fetches items worth ranking, from the item table of the model that will rank them."""

import asyncio
from pathlib import Path
from typing import Final

from rayapp.contracts.config import Domain
from rayapp.features.sequence import History
from rayapp.retrieval.candidates import Candidates, Query, fetch
from rayapp.retrieval.sources import LiveItems, Need
from rayapp.root.facts import read_root
from rayapp.serving.background import POLL_S, Background
from rayapp.serving.index_shelf import IndexShelf
from rayapp.serving.sequence_stage import SequenceStage
from rayapp.store import Store, UserSequence

LIVE_EVERY_S: Final = 5.0
NUM_POPULAR: Final = 500


class CandidateStage:
    """Holds an index over each item table that feeds are made of. Made inside an event loop."""

    def __init__(self, root: Path, store: Store, sequences: SequenceStage) -> None:
        """Raises:
        PublishError: there is no champion, or its item table can't be read.
        """
        domain: Domain = read_root(root)[0]
        self._vocabulary, self._sequences = domain.vocabulary, sequences
        self._store, self._shelf = store, IndexShelf(root, store)
        self._live: dict[Need, LiveItems] = {}
        self._background = Background()
        self._background.every(POLL_S, lambda: asyncio.to_thread(self._shelf.refresh))
        self._background.every(LIVE_EVERY_S, self._refresh_live)

    async def _refresh_live(self) -> None:
        self._live = await self._sequences.live_items()

    async def fetch(self, version: str, user: UserSequence, query: Query) -> Candidates | None:
        """None when this replica does not hold the item table of `version`."""
        index = self._shelf.get(version)
        if index is None:
            return None
        return await asyncio.to_thread(fetch, index, user.history, self._vocabulary, query, self._live)

    async def popular(self, version: str, now_ms: int) -> list[str] | None:
        """The most liked items: what the ingress shows when no candidates come."""
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
