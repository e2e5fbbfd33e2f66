"""The candidate indexes a replica holds, each over one item table; no model is loaded for them."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from rayapp.model.item_table import ItemTable
from rayapp.registry.aliases import read_aliases, read_champion
from rayapp.registry.item_tables import load_table
from rayapp.registry.models import item_table_of
from rayapp.retrieval.index import CandidateIndex
from rayapp.retrieval.orders import NO_POSITIVES, Positives
from rayapp.root.places import ITEMS
from rayapp.root.publish import PublishError, log_manifest
from rayapp.serving.refreshed import PutItems, Refusals, with_imported
from rayapp.store import ItemStore

HELD_S: Final = 3_600.0


class IndexShelf:
    """Indexes for the models that aliases name, and for those that were loaded or asked for in the last HELD_S.

    The latter include the champion that answers while rankers refuse the one that the alias names: this shelf can't
    know of that, since an item table is readable whatever the model's weights are. Readers never wait for a load.
    """

    def __init__(self, root: Path, store: ItemStore) -> None:
        """Raises:
        PublishError: there is no champion, or its item table can't be read.
        """
        self._root, self._items, self._refusals = root, PutItems(store), Refusals()
        self._lock, self._positives = threading.Lock(), NO_POSITIVES
        self._asked_at: dict[str, float] = {}
        self._imported_number, _ = log_manifest(root / ITEMS)
        champion = read_champion(root)
        self._indexes = {champion: self._load(champion, {})}
        self.refresh()

    @property
    def versions(self) -> list[str]:
        return list(self._indexes)

    def get(self, version: str) -> CandidateIndex | None:
        """The index over that model's item table, or None when this replica does not hold it (yet)."""
        self._asked_at[version] = time.monotonic()
        return self._indexes.get(version)

    def order(self, positives: Positives) -> None:
        """Orders the items of all indexes anew, and those of indexes that are loaded later."""
        with self._lock:
            self._positives = positives
            self._change(lambda index: index.ordered(positives))

    def refresh(self) -> None:
        """Picks up moved aliases and new items. A table that can't be read leaves everything as it was."""
        with self._lock:
            self._refresh_items()
            self._refresh_versions()
            self._refresh_imported()

    def _refresh_items(self) -> None:
        if items := self._items.news():
            self._change(lambda index: _over(index, index.table.with_items(items)))

    def _refresh_imported(self) -> None:
        number, _ = log_manifest(self._root / ITEMS)
        if number != self._imported_number:
            self._change(lambda index: _over(index, with_imported(index.table, self._root, self._items.items)))
            self._imported_number = number

    def _change(self, changed: Callable[[CandidateIndex], CandidateIndex]) -> None:
        """Models over one item table go on sharing its index."""
        indexes = {index: changed(index) for index in set(self._indexes.values())}
        self._indexes = {version: indexes[index] for version, index in self._indexes.items()}

    def _refresh_versions(self) -> None:
        asked_at, now = self._asked_at.copy(), time.monotonic()
        lately = [version for version, at in asked_at.items() if now - at < HELD_S]
        wanted = {*read_aliases(self._root).values(), *lately}
        indexes = {version: index for version, index in self._indexes.items() if version in wanted}
        for version in wanted - indexes.keys():
            if not self._refusals.blocks(version):
                try:
                    indexes[version] = self._load(version, indexes)
                except PublishError as error:
                    self._refusals.add(version, error)
        self._refusals.keep(wanted - indexes.keys())
        self._indexes = indexes
        for version in asked_at.keys() - wanted:
            self._asked_at.pop(version, None)

    def _load(self, version: str, held: dict[str, CandidateIndex]) -> CandidateIndex:
        name, self._asked_at[version] = item_table_of(self._root, version), time.monotonic()
        for index in held.values():
            if index.table.name == name:
                return index
        table = with_imported(load_table(self._root, name), self._root, self._items.items)
        return CandidateIndex(table.with_items(self._items.items) if self._items.items else table, self._positives)


def _over(index: CandidateIndex, table: ItemTable) -> CandidateIndex:
    """The index over another form of its item table."""
    return index if table is index.table else index.extended(table)
