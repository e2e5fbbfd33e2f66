"""What both shelves follow: items put into the store or imported, and versions that did not load."""

import logging
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Final

from rayapp.features.attributes import ABSENT
from rayapp.features.content import Item
from rayapp.model.item_table import ItemTable
from rayapp.root.catalogue import read_items_lacking
from rayapp.store import ItemStore

log = logging.getLogger(__name__)
RETRY_S: Final = 30.0
"""What did not load is tried again after this long: its files may have been mended."""


class PutItems:
    """The items of the store's item log, each in its newest form."""

    def __init__(self, store: ItemStore) -> None:
        self._store = store
        self._sequence, self.items = store.items_since(0)

    def news(self) -> list[dict[str, Any]]:
        """Items put since the last call; `items` has them too."""
        sequence, news = self._store.items_since(self._sequence)
        if news:
            latest = {item["item_id"]: item for item in [*self.items, *news]}
            self._sequence, self.items = sequence, list(latest.values())
        return news


def with_imported(table: ItemTable, root: Path, put: Sequence[Item]) -> ItemTable:
    """The table and those items of the catalogue that it lacks: they were imported since it was made. Of an item that
    was `put` into the store, or deleted there, what the store has counts."""
    imported = read_items_lacking(root, lambda item_hash: table.rows_of(item_hash) != ABSENT)
    if not imported:
        return table
    latest = {item["item_id"]: item for item in put}
    return table.with_items([latest.get(item["item_id"], item) for item in imported])


class Refusals:
    """Versions that did not load."""

    def __init__(self) -> None:
        self._failed_at: dict[str, float] = {}
        self.reasons: dict[str, str] = {}

    def blocks(self, version: str) -> bool:
        """Whether it failed so lately that it isn't tried again yet."""
        return time.monotonic() - self._failed_at.get(version, -RETRY_S) < RETRY_S

    def add(self, version: str, error: Exception) -> None:
        self._failed_at[version], self.reasons[version] = time.monotonic(), str(error)
        log.error("model %s was refused, and what answers stays: %s", version, error)

    def keep(self, versions: Collection[str]) -> None:
        """Forgets all but these."""
        self._failed_at = {v: at for v, at in self._failed_at.items() if v in versions}
        self.reasons = {v: reason for v, reason in self.reasons.items() if v in versions}
