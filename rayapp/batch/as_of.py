"""The models, past rates and stored sequences of a job as the live graph would hold them at the time of each request.

Shapes: R requests, N candidates of all of them, K rate features, H heads.
"""

import dataclasses
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from rayapp.batch.grouped_rows import BY_TIME
from rayapp.contracts.config import Domain, day_name
from rayapp.contracts.hashing import hash64_column
from rayapp.contracts.schema import Vocabulary, item_schema
from rayapp.features.content import Item
from rayapp.features.sequence import NO_WATERMARK, History
from rayapp.model.item_table import ItemTable
from rayapp.model.scorer import Scorer
from rayapp.registry.models import load_model
from rayapp.retrieval.candidates import Query, fetch
from rayapp.retrieval.index import CandidateIndex
from rayapp.retrieval.sources import SOURCES, Need, default_mix
from rayapp.root.rates import Snapshot, load_items, load_users, snapshot_start
from rayapp.store import DEFAULT_CAP

MODELS_HELD: Final = 2
DAYS_HELD: Final = 4


def settled_mix() -> dict[str, float]:
    """The live graph's sources, but none that draws: a job that runs again gives the same lists."""
    return {name: share for name, share in default_mix().items() if Need.CHANCE not in SOURCES[name].needs}


@dataclass(frozen=True)
class BatchModel:
    """One loaded model over its item table and the items that came later."""

    version: str
    scorer: Scorer

    @cached_property
    def _index(self) -> CandidateIndex:
        return CandidateIndex(self.scorer.inputs.table)

    def candidates(
        self, history: History, vocabulary: Vocabulary, num_candidates: int, as_of_ms: int, fewest: int
    ) -> tuple[list[str], list[str]]:
        """`(item ids, the source of each)` for a user's stored history, newest first, as the live graph fetches them;
        items that appeared only later are left out."""
        query = Query(num_candidates, as_of_ms, settled_mix(), fewest=fewest)
        found = fetch(self._index, history, vocabulary, query)
        return found.item_ids, found.sources


class Models:
    """Loads models as they are asked for and keeps the last ones."""

    def __init__(self, root: Path, domain: Domain, catalogue: pa.Table, device: torch.device) -> None:
        self._root, self._domain, self._device = root, domain, device
        names = item_schema(domain.attributes).names
        self._items = catalogue.select([name for name in names if name in catalogue.column_names])
        self._held: OrderedDict[str, BatchModel] = OrderedDict()

    def get(self, version: str) -> BatchModel:
        """Raises:
        PublishError: there is no such model, or it does not load.
        """
        if version not in self._held:
            loaded = load_model(self._root, version, self._domain)
            scorer = loaded.scorer
            if later := changed_items(self._items, loaded.table):
                scorer = scorer.with_table(loaded.table.with_items(later))
            self._held[version] = BatchModel(version, on_device(scorer, self._device))
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


class PastRates:
    """Rates of users and items by the snapshot of each request, zeros where there is none."""

    def __init__(self, root: Path, domain: Domain, days: Sequence[str]) -> None:
        self._root, self._domain, self._days = root, domain, days
        self._items: OrderedDict[str, Snapshot] = OrderedDict()
        self._users: tuple[Any, Snapshot] | None = None

    def days_of(self, given_R: NDArray[np.object_], timestamp_ms_R: NDArray[np.int64]) -> NDArray[np.object_]:
        """Each request's snapshot: the given one or, BY_TIME, the newest of that time; None for none."""
        start_R = snapshot_start(timestamp_ms_R, self._domain)
        day_R = given_R.copy()
        for start in np.unique(start_R[given_R == BY_TIME]):
            newest = max((day for day in self._days if day <= day_name(int(start))), default=None)
            day_R[(given_R == BY_TIME) & (start_R == start)] = newest
        return day_R

    def features(
        self,
        bucket: int,
        day_R: NDArray[np.object_],
        user_hash_R: NDArray[np.uint64],
        item_hash_N: NDArray[np.uint64],
        request_N: NDArray[np.int64],
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """`(users' [R, K], candidates' [N, K])`.

        Raises:
            PublishError: a snapshot that a request names is gone or damaged.
        """
        width = len(self._domain.heads) + 1
        user_RK = np.zeros((len(user_hash_R), width), np.float32)
        item_NK = np.zeros((len(item_hash_N), width), np.float32)
        for day in {day for day in day_R.tolist() if day is not None}:
            of_R = day_R == day
            of_N = of_R[request_N]
            user_RK[of_R] = self._of_users(day, bucket).features(user_hash_R[of_R])
            item_NK[of_N] = self._of_items(day).features(item_hash_N[of_N])
        return user_RK, item_NK

    def _of_users(self, day: str, bucket: int) -> Snapshot:
        if self._users is None or self._users[0] != (day, bucket):
            self._users = ((day, bucket), load_users(self._root, day, bucket, self._domain))
        return self._users[1]

    def _of_items(self, day: str) -> Snapshot:
        if day not in self._items:
            self._items[day] = load_items(self._root, day, self._domain)
            while len(self._items) > DAYS_HELD:
                self._items.popitem(last=False)
        self._items.move_to_end(day)
        return self._items[day]
