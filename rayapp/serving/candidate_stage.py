"""The stage that fetches items worth ranking, from the item table of the model that will rank them."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from rayapp.contracts.config import Domain
from rayapp.contracts.hashing import hash64
from rayapp.contracts.schema import is_deleted
from rayapp.features.attributes import ABSENT
from rayapp.features.content import Item
from rayapp.features.seen import Seen
from rayapp.features.sequence import History
from rayapp.registry.aliases import read_champion
from rayapp.registry.models import trained_domain
from rayapp.retrieval.candidates import Candidates, Query, fetch
from rayapp.retrieval.item_search import ItemTexts
from rayapp.retrieval.orders import Positives
from rayapp.serving.background import POLL_S, Background
from rayapp.serving.closed_steps import ClosedSteps
from rayapp.serving.followed_domain import FollowedDomain
from rayapp.serving.index_shelf import IndexShelf
from rayapp.statistics.known import newest_statistics, reading_of
from rayapp.store import Store, UserSequence

Described = dict[str, Any] | None
STATISTICS_EVERY_S: Final = 5.0
"""How often the store is read for the orders of items; a step of the grid is minutes long."""
NUM_POPULAR: Final = 500


@dataclass(frozen=True, slots=True)
class Similar:
    """Items and their cosines, the nearest first; None of an item that is not known."""

    items: list[tuple[str, float]] | None


class CandidateStage:
    """Holds an index over each item table that feeds are made of, ordered anew when a step of the statistics is over.
    Until they are read for the first time, items are in the order of the item table's likes. Made inside an event
    loop."""

    def __init__(self, root: Path, store: Store, time_ns: Callable[[], int] = time.time_ns) -> None:
        """`time_ns`: the clock of the statistics.

        Raises:
            PublishError: there is no champion, or its item table can't be read.
        """
        self._root, self._time_ns = root, time_ns
        self._domain, self._store, self._shelf = FollowedDomain(root), store, IndexShelf(root, store)
        self._texts: ItemTexts | None = None
        """Made by the first search."""
        self._searching = asyncio.Lock()
        # Not the ranker's: that one lives in another process.
        self._steps = ClosedSteps(root, self._counted_domain(), store, time_ns)
        self._background = Background()
        self._background.every(POLL_S, lambda: asyncio.to_thread(self._domain.refresh))
        self._background.every(POLL_S, lambda: asyncio.to_thread(self._shelf.refresh))
        self._background.every(STATISTICS_EVERY_S, lambda: asyncio.to_thread(self.order))

    def order(self) -> None:
        """Reads what is new, and orders the items anew when a step is over. Called by one thread at a time.

        Raises:
            PublishError: the statistics or a log can't be read; the orders stay.
            StoreError: the store does not answer; likewise.
        """
        if reading_of(domain := self._counted_domain()) != reading_of(self._steps.domain):
            self._steps = ClosedSteps(self._root, domain, self._store, self._time_ns)
        self._steps.read()
        # Counts of items alone are read here; the categories of items put since would be for those of values.
        closed = self._steps.close(lambda base: base.statistics.item_values)
        if closed is not None:
            self._shelf.order(Positives.of(closed.statistics.grid, *closed.statistics.all_positives(closed.step)))

    def _counted_domain(self) -> Domain:
        """The domain; until statistics are counted for what it has become, the one that the champion was trained
        under."""
        domain = self._domain.now
        if newest_statistics(self._root, domain) is not None:
            return domain
        return trained_domain(self._root, read_champion(self._root), domain)

    async def fetch(self, version: str, user: UserSequence, query: Query) -> Candidates | None:
        """None when this replica does not hold the item table of `version`."""
        index = self._shelf.get(version)
        if index is None:
            return None
        domain = self._domain.knowing(user.history.action_E)
        rules = partial(fetch, seen=Seen.of(domain), shown=user.shown, capped=domain.caps)
        return await asyncio.to_thread(rules, index, user.history, domain.vocabulary, query)

    async def popular(self, version: str, now_ms: int) -> list[str] | None:
        """The most popular items: what the ingress shows when no candidates come."""
        index = self._shelf.get(version)
        if index is None:
            return None
        query = Query(num_candidates=NUM_POPULAR, mix={}, now_ms=now_ms)
        found = await asyncio.to_thread(fetch, index, History.empty(), self._domain.now.vocabulary, query)
        return found.item_ids

    # ---- single items ------------------------------------------------------------------------------------------------

    async def describe(self, version: str, item_ids: Sequence[str], fields: Sequence[str]) -> list[Described] | None:
        """Fields of items as this replica knows them; None in the place of an item that it doesn't know."""
        index = self._shelf.get(version)
        if index is None:
            return None
        rows = index.table.rows_of_ids(item_ids).tolist()
        return [_described(index.table.item(row), fields) if row != ABSENT else None for row in rows]

    async def similar(self, version: str, item_id: str, limit: int, now_ms: int) -> Similar | None:
        """The nearest available items, and how near. Of an item that this replica doesn't know, `items` is None."""
        index = self._shelf.get(version)
        if index is None:
            return None
        found = await asyncio.to_thread(index.similar, np.uint64(hash64(item_id)), limit, now_ms)
        if found is None:
            return Similar(None)
        rows, similarity = (column.tolist() for column in found)
        return Similar([(index.table.item(row)["item_id"], near) for row, near in zip(rows, similarity, strict=True)])

    async def search(self, version: str, query: str, limit: int) -> list[dict[str, Any]] | None:
        """Items whose id or title holds `query`, the most popular first; those that are not available too."""

        def find() -> list[dict[str, Any]] | None:
            index = self._shelf.get(version)
            if index is None:
                return None
            title = self._domain.now.title
            if self._texts is None or self._texts.title != title:
                self._texts = ItemTexts.of(index.table, title)
            texts = self._texts
            self._texts = texts.following(index.table)
            return [dict(item) for item in self._texts.find(query, limit, index)]

        async with self._searching:  # one thread at the most: feeds need them; and texts follow their table
            return await asyncio.to_thread(find)

    async def categories(self, version: str, limit: int) -> dict[str, list[tuple[str, int]]] | None:
        """Categorical attribute -> its `limit` most frequent values, and how many items have each."""
        index = self._shelf.get(version)
        return None if index is None else await asyncio.to_thread(index.categories, limit)

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


def _described(item: Item, fields: Sequence[str]) -> Described:
    if is_deleted(item):
        return None
    usual = {"available": item.get("available") is not False}
    return {name: usual.get(name, item.get(name)) for name in fields}
