"""The models and stored sequences of a job as the live graph would hold them at the time of each request.

Shapes: R requests, N candidates of all of them, H heads.
"""

import dataclasses
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import torch

from rayapp.contracts.config import Domain
from rayapp.contracts.hashing import hash64_column
from rayapp.contracts.schema import Vocabulary, item_schema
from rayapp.features.attributes import ABSENT
from rayapp.features.content import Item
from rayapp.features.sequence import NO_WATERMARK, History
from rayapp.model.item_table import ItemTable
from rayapp.model.scorer import Scorer
from rayapp.registry.models import load_model
from rayapp.retrieval.index import CandidateIndex
from rayapp.retrieval.orders import Positives
from rayapp.retrieval.sources import SOURCES, Need, default_mix
from rayapp.statistics.known import Statistics, load_newest, reading_of
from rayapp.store import DEFAULT_CAP

MODELS_HELD: Final = 2


def settled_mix(mix: Mapping[str, float] | None = None) -> dict[str, float]:
    """The live graph's sources, of a domain's `mix` or of the usual one, but none that draws: a job that runs again
    gives the same lists."""
    shares = (mix or default_mix()).items()
    return {name: share for name, share in shares if Need.CHANCE not in SOURCES[name].needs}


class BatchModel:
    """One loaded model over its item table and the items that came later."""

    def __init__(self, version: str, scorer: Scorer, statistics: Statistics) -> None:
        self.version, self.scorer, self.statistics = version, scorer, statistics
        self._index: CandidateIndex | None = None
        self._step: int | None = None

    def index_at(self, step: int) -> CandidateIndex:
        """The candidates in the orders that the live graph had from the beginning of a step on. The last ones are kept:
        a job as of one moment orders once, and others do well to ask step by step."""
        if self._index is None or self._step != step:
            positives = Positives.of(self.statistics.grid, *self.statistics.all_positives(step))
            index, self._step = self._index, step
            table = self.scorer.inputs.table
            self._index = CandidateIndex(table, positives) if index is None else index.ordered(positives)
        return self._index


class Models:
    """Loads models as they are asked for and keeps the last ones."""

    def __init__(
        self, root: Path, domain: Domain, catalogue: pa.Table, statistics: Statistics, device: torch.device
    ) -> None:
        """`statistics`: of the domain. A model that was trained before it changed reads those that it was trained
        on."""
        self._root, self._domain, self._statistics, self._device = root, domain, statistics, device
        names = item_schema(domain.attributes).names
        self._items = catalogue.select([name for name in names if name in catalogue.column_names])
        self._held: OrderedDict[str, BatchModel] = OrderedDict()

    def get(self, version: str) -> BatchModel:
        """Raises:
        PublishError: there is no such model, or it does not load.
        """
        if version not in self._held:
            loaded = load_model(self._root, version, self._domain)
            scorer, table = loaded.scorer, loaded.table
            if gone := deleted_rows(self._items, table):
                table = table.without(gone)
            if later := changed_items(self._items, loaded.table):
                table = table.with_items(later)
            if table is not loaded.table:
                scorer = scorer.with_table(table)
            same = reading_of(loaded.domain) == reading_of(self._domain)
            statistics = self._statistics if same else load_newest(self._root, loaded.domain)
            self._held[version] = BatchModel(version, on_device(scorer, self._device), statistics)
            while len(self._held) > MODELS_HELD:
                self._held.popitem(last=False)
        self._held.move_to_end(version)
        return self._held[version]


def on_device(scorer: Scorer, device: torch.device) -> Scorer:
    """The same scorer with its weights and tables on a device."""
    if device.type == "cpu":
        return scorer
    return dataclasses.replace(scorer, ranker=scorer.ranker.to(device), inputs=scorer.inputs.to(device))


def changed_items(catalogue: pa.Table, table: ItemTable) -> list[Item]:
    """Items of the catalogue that the table lacks or knows otherwise: put or changed since it was made. The live graph
    has them from the store's item log and embeds them with the table's own tower, and so do we."""
    rows = table.rows_of(hash64_column(catalogue["item_id"])).tolist()
    changed: list[Item] = []
    for row, item in zip(rows, catalogue.to_pylist(), strict=True):
        if not row or any(table.item(row).get(name) != value for name, value in item.items()):
            changed.append(item)
    return changed


def deleted_rows(catalogue: pa.Table, table: ItemTable) -> list[int]:
    """Rows of items that the catalogue holds no longer. No import takes an item out: it was deleted, and the live graph
    has that from the store's item log."""
    there_N = np.zeros(table.num_rows, bool)
    there_N[table.rows_of(hash64_column(catalogue["item_id"]))] = True
    there_N[ABSENT] = True
    return np.flatnonzero(~there_N).tolist()


def as_stored(events: History, timestamp_ms: int, watermark: int, vocabulary: Vocabulary) -> History:
    """What the sequence store would have held of a user's events, oldest first, that happened before: those that had
    arrived, newest first, at most DEFAULT_CAP that take a place of the sequence and as many that do not."""
    newest_first = events.take(slice(None, None, -1))
    if watermark == NO_WATERMARK:
        arrived = newest_first.received_at_ms_E <= timestamp_ms
    else:
        arrived = newest_first.commit_seq_E <= watermark
    known = newest_first.take(arrived)
    takes_place = vocabulary.flags(in_sequence=True)[known.action_E]
    return known.take(np.where(takes_place, np.cumsum(takes_place), np.cumsum(~takes_place)) <= DEFAULT_CAP)
