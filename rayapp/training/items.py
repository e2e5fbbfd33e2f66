"""Trains the item tower and builds the item table, from the catalogue and the log before a moment in time."""

from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from rayapp.config import Domain
from rayapp.model.item_table import ItemTable
from rayapp.model.tower import category_vectors, co_engagement_vectors, fit_linear_tower
from rayapp.pipeline.catalogue import read_catalogue
from rayapp.pipeline.logs import read_log
from rayapp.publish import PublishError
from rayapp.registry.item_tables import publish_table
from rayapp.schema import ActionKind


def build_item_table(root: Path, name: str, domain: Domain, *, until_ms: int, width: int, seed: int) -> ItemTable:
    """Trains the tower on positive actions before `until_ms` and publishes `item_tables/<name>`.

    Nothing at or after `until_ms` is looked at, so a model tested on later requests leaks nothing through it.
    """
    items = read_catalogue(root)
    events = read_log(root, "events", ["user_id", "item_id", "action", "timestamp_ms"])
    positive = [a.name for a in domain.vocabulary.actions if a.kind is ActionKind.POSITIVE]
    events = events.filter((pc.field("timestamp_ms") < until_ms) & pc.field("action").isin(positive))
    row = pc.index_in(events["item_id"], value_set=items["item_id"].combine_chunks())
    events = events.append_column("row", row).filter(pc.is_valid(row))
    user_P = events["user_id"].combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
    item_P = events["row"].to_numpy().astype(np.int64)
    likes = np.bincount(item_P, minlength=items.num_rows).astype(np.int64)
    rows = items.to_pylist()
    # One half says who likes it, the other what it is: people who like one genre rate many, so co-engagement alone
    # tells genres apart poorly.
    co_engagement = co_engagement_vectors(user_P, item_P, items.num_rows, width - width // 2, seed)
    target = np.concatenate([co_engagement, category_vectors(rows, domain.attributes, width // 2)], axis=1)
    weight = np.minimum(likes, 50).astype(np.float32)
    tower = fit_linear_tower(rows, domain.attributes, target, weight)
    try:
        table = ItemTable.make(name, tower, rows, likes, tower.embed(rows), until_ms)
    except ValueError as error:  # two items of one id: the catalogue has to be mended
        raise PublishError(f"item table {name}: {error}") from None
    publish_table(root, table, {"until_ms": until_ms, "seed": seed, "positive_events": len(item_P)})
    return table
