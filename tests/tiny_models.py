"""A root with two untrained models over one item table, for the tests of what reads published models."""

import dataclasses
from pathlib import Path

import numpy as np

from rayapp.contracts.config import Domain, Encoder
from rayapp.contracts.presets import nano
from rayapp.features.attributes import AttributeEncoder, Encoders
from rayapp.model.calibration import Calibration
from rayapp.model.inputs import items_as_table
from rayapp.model.item_table import ItemTable
from rayapp.model.ranker import Ranker
from rayapp.model.tower import LinearTower
from rayapp.registry.aliases import CHAMPION, promote
from rayapp.registry.item_tables import publish_table
from rayapp.registry.models import publish_model
from rayapp.root.facts import make_root


def item_table(domain: Domain, num_items: int = 30, width: int = 8) -> ItemTable:
    """Items of three genres; item n has n likes, was made at n, and its vector is its genre's."""
    items = [
        {
            "item_id": f"i{n}",
            "created_at_ms": n,
            "available": True,
            "title": f"film {n}",
            "genres": [f"g{n % 3}"],
            "year": 1990.0 + n,
        }
        for n in range(num_items)
    ]
    tower = LinearTower(np.random.default_rng(0).normal(size=(64, width)).astype(np.float32), domain.attributes)
    vectors = np.eye(width, dtype=np.float32)[np.arange(num_items) % 3]
    return ItemTable.make("table", tower, items, np.arange(num_items), vectors, 0)


def publish_models(root: Path, domain: Domain) -> None:
    """A root with the models `a` (champion) and `b` over one item table, both untrained."""
    make_root(root, domain, 4)
    table = item_table(domain)
    publish_table(root, table, {})
    publish_version(root, "a", "transact", domain, table)
    publish_version(root, "b", "none", domain, table)
    promote(root, CHAMPION, "a")


def publish_version(root: Path, version: str, encoder: Encoder, domain: Domain, table: ItemTable) -> None:
    """An untrained model over a published table."""
    nothing = AttributeEncoder({}, {}, {}, {})
    encoders = Encoders(AttributeEncoder.fit(items_as_table(table), table.tower.attributes), nothing, nothing)
    config = dataclasses.replace(nano().model, encoder=encoder)
    publish_model(
        root,
        version,
        ranker=Ranker(config, encoders, domain),
        config=config,
        domain=domain,
        encoders=encoders,
        calibration=Calibration.none(len(domain.heads)),
        item_table=table.name,
        metrics={},
        lineage={"created_at_ms": 1},
    )
