"""The models a replica holds: the champion, the one before it, and every other alias's; swapped while serving."""

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from rayapp.contracts.config import Domain
from rayapp.features.requests import Requests, full_request
from rayapp.features.statistic_columns import Columns
from rayapp.model.inputs import UserTable
from rayapp.model.item_table import ItemTable
from rayapp.registry.aliases import CHAMPION, read_aliases, read_champion
from rayapp.registry.models import LoadedModel, load_model
from rayapp.root.catalogue import read_users
from rayapp.root.places import ITEMS, USERS
from rayapp.root.publish import PublishError, log_manifest
from rayapp.serving.refreshed import PutItems, Refusals, with_imported
from rayapp.store import ItemStore

WARM_UP_CANDIDATES = 200
"""As many as a feed asks for unless told otherwise: on a GPU, calls of this size find their graphs captured."""


class ModelShelf:
    """Keeps loaded models in step with the alias files and with the item log. Readers never wait for a load."""

    def __init__(
        self,
        root: Path,
        domain: Domain,
        store: ItemStore,
        device: torch.device | None = None,
        read_for: Callable[[Domain], None] = lambda _: None,
    ) -> None:
        """Loads what the aliases name; with a `device`, a GPU, for `score_many` on it. `read_for` is told of the domain
        of each model before it is held.

        Raises:
            PublishError: there is no champion, or it does not load.
        """
        self._root, self._domain, self._device, self._read_for = root, domain, device, read_for
        self._items, self._refusals = PutItems(store), Refusals()
        self._lock = threading.Lock()
        self._users_number, _ = log_manifest(root / USERS)
        self._imported_number, _ = log_manifest(root / ITEMS)
        self._champion, self._previous = read_champion(root), ""
        self._models = {self._champion: self._load(self._champion, {})}
        self.refresh()

    @property
    def champion(self) -> str:
        return self._champion

    @property
    def versions(self) -> list[str]:
        return list(self._models)

    @property
    def refused(self) -> dict[str, str]:
        """Why a version that an alias names is not held."""
        return self._refusals.reasons

    @property
    def domains(self) -> list[Domain]:
        """Those that the models were trained under."""
        return [model.domain for model in self._models.values()]

    def follow(self, domain: Domain) -> None:
        """What is loaded from now on is checked against it, and what was refused is tried again."""
        if domain != self._domain:
            self._domain, self._refusals = domain, Refusals()

    def get(self, version: str) -> LoadedModel | None:
        """The model, or None when this replica does not hold it (yet)."""
        return self._models.get(version)

    def refresh(self) -> None:
        """Picks up moved aliases and new items. A model that does not load is refused; the old one stays live."""
        with self._lock:
            self._refresh_models()
            self._refresh_items()
            self._refresh_users()
            self._refresh_imported()

    def _refresh_models(self) -> None:
        aliases = read_aliases(self._root)
        loaded = dict(self._models)
        for version in dict.fromkeys(aliases.values()):
            if version not in loaded and not self._refusals.blocks(version):
                try:
                    loaded[version] = self._load(version, loaded)
                except PublishError as error:
                    self._refusals.add(version, error)
        champion = aliases.get(CHAMPION, self._champion)
        if champion != self._champion and champion in loaded:
            self._previous, self._champion = self._champion, champion
        keep = {self._champion, self._previous, *aliases.values()}
        self._models = {version: model for version, model in loaded.items() if version in keep}
        self._refusals.keep(set(aliases.values()) - loaded.keys())

    def _refresh_items(self) -> None:
        if items := self._items.news():
            self._extend(lambda table: table.with_items(items))

    def _refresh_imported(self) -> None:
        number, _ = log_manifest(self._root / ITEMS)
        if number != self._imported_number:
            self._extend(lambda table: with_imported(table, self._root, self._items.items))
            self._imported_number = number

    def _extend(self, extended: Callable[[ItemTable], ItemTable]) -> None:
        """Models over one item table go on sharing it."""
        tables = {name: extended(table) for name, table in self._tables(self._models).items()}
        self._models = {version: _over(model, tables[model.table.name]) for version, model in self._models.items()}

    def _refresh_users(self) -> None:
        """Users' attributes as the last export or import left them."""
        number, _ = log_manifest(self._root / USERS)
        if number == self._users_number:
            return
        users = read_users(self._root, self._domain)
        self._models = {version: _told(model, users) for version, model in self._models.items()}
        self._users_number = number

    def _load(self, version: str, held: dict[str, LoadedModel]) -> LoadedModel:
        model = load_model(self._root, version, self._domain)
        self._read_for(model.domain)
        # A first call costs half a second of set-up inside PyTorch; nobody's request should pay it.
        unknown = [np.zeros(size, np.uint64) for size in (model.config.history_length, WARM_UP_CANDIDATES)]
        request = full_request(model.domain.context_attributes, Columns.of(model.domain).widths, *unknown)
        model.scorer.score(request)
        if self._device is not None:
            model = _on(self._device, model, request)
        table = self._tables(held).get(model.table.name)
        if table is None:
            table = with_imported(model.table, self._root, self._items.items)
            table = table.with_items(self._items.items) if self._items.items else table
        return _over(model, table)

    @staticmethod
    def _tables(models: dict[str, LoadedModel]) -> dict[str, ItemTable]:
        return {model.table.name: model.table for model in models.values()}


def _over(model: LoadedModel, table: ItemTable) -> LoadedModel:
    """The model over another form of its item table."""
    if table is model.table:
        return model
    return dataclasses.replace(model, scorer=model.scorer.with_table(table), table=table)


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
