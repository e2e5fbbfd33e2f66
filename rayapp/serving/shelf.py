"""The models a replica holds: the champion, the one before it, and every other alias's; swapped while serving."""

import dataclasses
import logging
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from rayapp.contracts.config import Domain
from rayapp.features.requests import Requests, full_request
from rayapp.model.inputs import UserTable
from rayapp.model.item_table import ItemTable
from rayapp.registry.aliases import CHAMPION, read_aliases
from rayapp.registry.models import LoadedModel, load_model
from rayapp.root.catalogue import read_users
from rayapp.root.places import USERS
from rayapp.root.publish import PublishError, log_manifest
from rayapp.serving.candidates import CandidateIndex
from rayapp.store import ItemStore

log = logging.getLogger(__name__)
RETRY_S = 30.0
"""A model that did not load is tried again after this long: its files may have been mended."""
WARM_UP_CANDIDATES = 200
"""As many as a feed asks for unless told otherwise: on a GPU, calls of this size find their graphs captured."""


class ModelShelf:
    """Keeps loaded models in step with the alias files and with the item log. Readers never wait for a load."""

    def __init__(self, root: Path, domain: Domain, store: ItemStore, device: torch.device | None = None) -> None:
        """Loads what the aliases name; with a `device`, a GPU, for `score_many` on it.

        Raises:
            PublishError: there is no champion, or it does not load.
        """
        self._root, self._domain, self._store, self._device = root, domain, store, device
        self._lock = threading.Lock()
        self._item_sequence, self._new_items = store.items_since(0)
        self._users_number, _ = log_manifest(root / USERS)
        self._failed: dict[str, float] = {}
        self.refused: dict[str, str] = {}
        """Why a version that an alias names is not held."""
        aliases = read_aliases(root)
        if CHAMPION not in aliases:
            raise PublishError(f"{root} has no champion; train one: `rayapp train --root {root}`")
        self._champion, self._previous = aliases[CHAMPION], ""
        self._models: dict[str, LoadedModel] = {self._champion: self._load(self._champion, {})}
        self._indexes: dict[str, CandidateIndex] = {}
        """By item table; empty until somebody asks for one."""
        self.refresh()

    @property
    def champion(self) -> str:
        return self._champion

    @property
    def versions(self) -> list[str]:
        return list(self._models)

    def get(self, version: str) -> LoadedModel | None:
        """The model, or None when this replica does not hold it (yet)."""
        return self._models.get(version)

    def index(self, version: str) -> CandidateIndex | None:
        """The candidate index over that model's item table.

        The first call makes it; from then on `refresh` keeps one for every model, before the model is held.
        """
        model = self._models.get(version)
        if model is None:
            return None
        index = self._indexes.get(model.table.name)
        if index is None:
            with self._lock:
                self._indexes = self._indexes_of(self._models)
                index = self._indexes.get(model.table.name)
        return index

    def refresh(self) -> None:
        """Picks up moved aliases and new items. A model that does not load is refused; the old one stays live."""
        with self._lock:
            self._refresh_models()
            self._refresh_items()
            self._refresh_users()

    def _refresh_models(self) -> None:
        aliases = read_aliases(self._root)
        loaded, refused = dict(self._models), dict(self.refused)
        for version in dict.fromkeys(aliases.values()):
            if version in loaded or time.monotonic() - self._failed.get(version, -RETRY_S) < RETRY_S:
                continue
            try:
                loaded[version] = self._load(version, loaded)
                refused.pop(version, None)
            except PublishError as error:
                self._failed[version] = time.monotonic()
                refused[version] = str(error)
                log.error("model %s was refused and %s stays live: %s", version, self._champion, error)
        champion = aliases.get(CHAMPION, self._champion)
        if champion != self._champion and champion in loaded:
            self._previous, self._champion = self._champion, champion
        keep = {self._champion, self._previous, *aliases.values()}
        self._hold({version: model for version, model in loaded.items() if version in keep})
        self._failed = {v: when for v, when in self._failed.items() if v in aliases.values()}
        self.refused = {v: reason for v, reason in refused.items() if v in aliases.values()}

    def _refresh_items(self) -> None:
        sequence, items = self._store.items_since(self._item_sequence)
        if not items:
            return
        latest = {item["item_id"]: item for item in [*self._new_items, *items]}
        self._item_sequence, self._new_items = sequence, list(latest.values())
        # Models over one item table go on sharing it.
        tables = {table.name: table.with_items(items) for table in self._tables(self._models).values()}
        self._hold({version: _over(model, tables[model.table.name]) for version, model in self._models.items()})

    def _refresh_users(self) -> None:
        """Users' attributes as the last export or import left them."""
        number, _ = log_manifest(self._root / USERS)
        if number == self._users_number:
            return
        users = read_users(self._root, self._domain)
        self._hold({version: _told(model, users) for version, model in self._models.items()})
        self._users_number = number

    def _hold(self, models: dict[str, LoadedModel]) -> None:
        if self._indexes:
            self._indexes = self._indexes_of(models)
        self._models = models

    def _indexes_of(self, models: dict[str, LoadedModel]) -> dict[str, CandidateIndex]:
        indexes = {}
        for name, table in self._tables(models).items():
            old = self._indexes.get(name)
            indexes[name] = CandidateIndex(table) if old is None else old.extended(table)
        return indexes

    def _load(self, version: str, held: dict[str, LoadedModel]) -> LoadedModel:
        model = load_model(self._root, version, self._domain)
        # A first call costs half a second of set-up inside PyTorch; nobody's request should pay it.
        unknown = [np.zeros(size, np.uint64) for size in (model.config.history_length, WARM_UP_CANDIDATES)]
        request = full_request(self._domain.context_attributes, len(self._domain.heads) + 1, *unknown)
        model.scorer.score(request)
        if self._device is not None:
            model = _on(self._device, model, request)
        table = self._tables(held).get(model.table.name)
        if table is None:
            table = model.table.with_items(self._new_items) if self._new_items else model.table
        return _over(model, table)

    @staticmethod
    def _tables(models: dict[str, LoadedModel]) -> dict[str, ItemTable]:
        return {model.table.name: model.table for model in models.values()}


def _over(model: LoadedModel, table: ItemTable) -> LoadedModel:
    """The model over another form of its item table."""
    if table is model.table:
        return model
    return LoadedModel(model.version, model.config, model.head_names, model.scorer.with_table(table), table)


def _told(model: LoadedModel, users: pa.Table) -> LoadedModel:
    """The model, told of these users' attributes."""
    inputs = model.scorer.inputs
    inputs = dataclasses.replace(inputs, users=UserTable.of(users, inputs.encoders.user))
    return dataclasses.replace(model, scorer=dataclasses.replace(model.scorer, inputs=inputs))


def _on(device: torch.device, model: LoadedModel, request: Requests) -> LoadedModel:
    """The model, ready on a GPU."""
    try:
        scorer = model.scorer.on(device)
        assert scorer.batched is not None
        scorer.batched.warm_up(request)
    except torch.OutOfMemoryError as error:
        raise PublishError(f"model {model.version} does not fit the GPU beside those it holds ({error})") from None
    return dataclasses.replace(model, scorer=scorer)
