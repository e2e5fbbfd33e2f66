"""The item table of a run: trained anew when it is due, else the last one with the items that came since."""

from pathlib import Path

import numpy as np

from rayapp.contracts.config import DAY_MS, Domain, day_name
from rayapp.contracts.presets import Preset
from rayapp.features.attributes import ABSENT
from rayapp.features.content import Item
from rayapp.loop.artifacts import Prepared, item_table, reads_all
from rayapp.model.item_table import ItemTable
from rayapp.pipeline.engagements import read_engagements
from rayapp.registry.item_tables import load_table, publish_table
from rayapp.root.catalogue import read_catalogue
from rayapp.root.places import ITEM_TABLES
from rayapp.root.publish import PublishError, read_manifest
from rayapp.training.build_table import given_vectors, read_covisits


def table_for(root: Path, prepared: Prepared, preset: Preset, last: str | None, every_days: float) -> str:
    """The name of a published item table that knows what the training knows, and no more.

    `last` is the table of the model that is live. While its tower is younger than `every_days` its vectors are kept and
    the catalogue's new items are added. Vectors that the catalogue gives are taken from there every time.

    Raises:
        PublishError: the catalogue has two items of one id.
    """
    given = given_vectors(read_catalogue(root)) is not None
    if last is not None and not given:
        old = load_table(root, last)
        age_days = (prepared.validation_ms - old.trained_until_ms) / DAY_MS
        fits = old.vectors_NE.shape[1] == preset.model.item_dim and reads_all(old, prepared.domain)
        if fits and 0 <= age_days < every_days:
            return _extended(root, prepared.domain, old, prepared.validation_ms)
    return item_table(root, prepared, preset)[0]


def same_space(root: Path, a: str, b: str) -> bool:
    """Whether a vector means the same in both tables; weights that read the one may then read the other."""
    one, other = (read_manifest(root / ITEM_TABLES / name) for name in (a, b))
    same: bool = one.get("extends", a) == other.get("extends", b) or one["vectors"] == other["vectors"] == "given"
    return same


def _extended(root: Path, domain: Domain, old: ItemTable, until_ms: int) -> str:
    """The old vectors, the new items' from the old tower, everybody's likes counted up to `until_ms`."""
    catalogue = read_catalogue(root)
    base = read_manifest(root / ITEM_TABLES / old.name).get("extends", old.name)
    name = f"{base}-to-{day_name(until_ms)}"
    if (root / ITEM_TABLES / name).exists():
        return name
    items: list[Item] = catalogue.select([c for c in catalogue.column_names if c != "vector"]).to_pylist()
    row_N = old.rows_of_ids([item["item_id"] for item in items])
    new = [item for item, row in zip(items, row_N, strict=True) if row == ABSENT]
    vectors_NE = old.vectors_NE[row_N].copy()
    if new:
        vectors_NE[row_N == ABSENT] = old.tower.embed(new)
    likes_N = np.bincount(read_engagements(root, catalogue, domain).before(until_ms).item_P, minlength=len(items))
    beside = None if old.covisits is None else read_covisits(root, catalogue, domain, until_ms)
    try:
        table = ItemTable.make(name, old.tower, items, likes_N, vectors_NE, old.trained_until_ms, beside)
    except ValueError as error:
        raise PublishError(f"item table {name}: {error}") from None
    manifest = read_manifest(root / ITEM_TABLES / old.name)
    lineage = {"extends": base, "vectors": manifest["vectors"], "until_ms": until_ms, "new_items": len(new)}
    publish_table(root, table, lineage)
    return name
