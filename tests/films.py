"""Made-up films for the tests of candidates: an item table of three genres, and what each source brought of it."""

from typing import Any

import numpy as np

from rayapp.contracts.hashing import hash64
from rayapp.contracts.schema import Attribute, AttributeKind
from rayapp.model.item_table import ItemTable
from rayapp.model.tower import LinearTower
from rayapp.retrieval.candidates import Candidates
from rayapp.retrieval.orders import Positives

ATTRIBUTES = (Attribute("title", AttributeKind.TEXT), Attribute("genres", AttributeKind.CATEGORIES))
NOW = 1_000
WIDTH = 16


def item(n: int, **changes: Any) -> dict[str, Any]:
    """The n-th item: made at n, of one of three genres."""
    return {"item_id": f"i{n}", "created_at_ms": n, "title": f"film {n}", "genres": [f"g{n % 3}"]} | changes


def table_of(items: list[dict[str, Any]], seed: int = 0) -> ItemTable:
    """The n-th item has n likes; vectors cluster by genre."""
    rng = np.random.default_rng(seed)
    tower = LinearTower(rng.normal(size=(4096, WIDTH)).astype(np.float32), ATTRIBUTES)
    centre = np.eye(WIDTH)[[int(each["genres"][0][1:]) for each in items]].reshape(-1, WIDTH)
    vectors = (centre + 0.1 * rng.normal(size=(len(items), WIDTH))).astype(np.float32)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    return ItemTable.make("table", tower, items, np.arange(len(items)), vectors, 0)


def positives(lately: dict[str, float], lasting: dict[str, float] | None = None) -> Positives:
    """Counts of items by id, as statistics tell them."""
    lasting = lasting or {}
    hashes = sorted((hash64(item_id), item_id) for item_id in lately.keys() | lasting.keys())
    counts = np.array([[of.get(item_id, 0.0) for _, item_id in hashes] for of in (lately, lasting)])
    return Positives(np.array([item_hash for item_hash, _ in hashes], np.uint64), *counts)


def by_source(found: Candidates) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for item_id, source in zip(found.item_ids, found.sources, strict=True):
        groups.setdefault(source, []).append(item_id)
    return groups
