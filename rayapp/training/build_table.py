"""Builds an item table: given vectors or a trained tower, from the catalogue and the log before a moment in time."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rayapp.contracts.config import Domain
from rayapp.features.content import Item
from rayapp.model.covisits import Covisits
from rayapp.model.item_table import ItemTable
from rayapp.model.tower import fit_linear_tower
from rayapp.pipeline.engagements import read_engagements
from rayapp.registry.item_tables import publish_table
from rayapp.root.catalogue import read_catalogue
from rayapp.root.publish import PublishError
from rayapp.training.covisits import count_covisits
from rayapp.training.recall import recall_report
from rayapp.training.two_tower import TowerConfig, train_two_tower


def build_item_table(
    root: Path, name: str, domain: Domain, *, until_ms: int, width: int, seed: int, covisits: bool = False
) -> ItemTable:
    """Publishes `item_tables/<name>` with vectors that know nothing of `until_ms` or later.

    Where the catalogue has vectors they are taken, at their own width, and a tower learns to say them from content, for
    items that come without one. Else a tower of `width` is trained on positive actions.

    With `covisits` it also holds what people act on beside each item. Its manifest holds recall@20 on the engagements
    after `until_ms`, where the log has any.
    """
    catalogue = read_catalogue(root)
    items: list[Item] = catalogue.select([c for c in catalogue.column_names if c != "vector"]).to_pylist()
    engagements = read_engagements(root, catalogue, domain)
    train = engagements.before(until_ms)
    given = given_vectors(catalogue)
    if given is None:
        tower = train_two_tower(items, domain.attributes, train, TowerConfig(width=width, seed=seed))
        vectors_NE = tower.embed(items)
    else:
        has_N = np.linalg.norm(given, axis=1) > 0
        tower = fit_linear_tower(items, domain.attributes, given, has_N.astype(np.float32))
        vectors_NE = np.where(has_N[:, None], given, tower.embed(items)).astype(np.float32)
    likes_N = np.bincount(train.item_P, minlength=len(items)).astype(np.int64)
    beside = read_covisits(root, catalogue, domain, until_ms) if covisits else None
    try:
        table = ItemTable.make(name, tower, items, likes_N, vectors_NE, until_ms, beside)
    except ValueError as error:  # two items of one hash: the catalogue has to be mended
        raise PublishError(f"item table {name}: {error}") from None
    lineage = {
        "until_ms": until_ms,
        "seed": seed,
        "vectors": "trained" if given is None else "given",
        "positive_events": len(train),
        "recall_at_20": recall_report(vectors_NE, engagements, until_ms, seed),
    }
    publish_table(root, table, lineage)
    return table


def read_covisits(root: Path, catalogue: pa.Table, domain: Domain, until_ms: int) -> Covisits:
    """What people acted on beside each item before a moment."""
    acts = read_engagements(root, catalogue, domain, all_but_negative=True)
    return count_covisits(acts.before(until_ms), catalogue.num_rows)


def given_vectors(catalogue: pa.Table) -> NDArray[np.float32] | None:
    """Unit vectors `[N, E]` of the catalogue, zeros for items without one; None where no item has any.

    Raises:
        PublishError: vectors of different length.
    """
    if "vector" not in catalogue.column_names:
        return None
    size_N = pc.fill_null(pc.list_value_length(catalogue["vector"]), 0).to_numpy()
    widths = np.unique(size_N[size_N > 0])
    if not len(widths):
        return None
    if len(widths) > 1:
        raise PublishError(f"the items' vectors have different lengths: {widths.tolist()[:5]}; give all the same")
    given_NE = np.zeros((len(size_N), int(widths[0])), np.float32)
    given_NE[size_N > 0] = pc.list_flatten(catalogue["vector"]).to_numpy().reshape(-1, widths[0])
    norm_N1 = np.linalg.norm(given_NE, axis=1, keepdims=True)
    np.divide(given_NE, norm_N1, out=given_NE, where=norm_N1 > 1e-8)
    return given_NE
