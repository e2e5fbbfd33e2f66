"""Reads the catalogue of items and the table of users, which imports write (`pipeline.catalogue`)."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rayapp.contracts.config import Domain
from rayapp.contracts.hashing import hash64_column
from rayapp.contracts.schema import attribute_fields, user_schema
from rayapp.root.facts import read_root
from rayapp.root.places import ITEMS, USERS
from rayapp.root.publish import PublishError, log_manifest

DELETED_FILE: Final = "deleted"
"""Key of a manifest."""


def read_catalogue(root: Path) -> pa.Table:
    """All items, with `vector` where the import had vectors; in the order of their first import.

    Raises:
        PublishError: nothing was imported.
    """
    table = read_version(root, ITEMS)
    if table is None:
        raise PublishError(f"{root} has no items yet; `rayapp import --items` brings them")
    return table


def read_item(root: Path, item_id: str) -> dict[str, Any] | None:
    """One item of the catalogue, without its vector; None where it holds no such item."""
    path = _newest(root, ITEMS)
    if path is None:
        return None
    with _readable(path):
        names = [name for name in pq.read_schema(path).names if name != "vector"]
        rows = pq.read_table(path, columns=names, filters=pc.field("item_id") == item_id, partitioning=None).to_pylist()
    return rows[0] if rows else None


def read_items_lacking(root: Path, known: Callable[[NDArray[np.uint64]], NDArray[np.bool_]]) -> list[dict[str, Any]]:
    """Items of the catalogue whose `hash64(item_id)` is not `known`, without their vectors. Where all are, only the ids
    are read."""
    path = _newest(root, ITEMS)
    if path is None:
        return []
    with _readable(path):
        lacking = ~known(hash64_column(pq.read_table(path, columns=["item_id"], partitioning=None)["item_id"]))
        if not lacking.any():
            return []
        names = [name for name in pq.read_schema(path).names if name != "vector"]
        table = pq.read_table(path, columns=names, partitioning=None)
    items: list[dict[str, Any]] = table.filter(pa.array(lacking)).to_pylist()
    return items


def read_deleted(root: Path) -> list[str]:
    """Ids of items that were deleted and are in the catalogue no more, for a store that lost what it knew of them."""
    _, manifest = log_manifest(root / ITEMS)
    if DELETED_FILE not in manifest:
        return []
    path = root / ITEMS / manifest[DELETED_FILE]
    with _readable(path):
        item_ids: list[str] = pq.read_table(path, partitioning=None)["item_id"].to_pylist()
    return item_ids


def read_users(root: Path, domain: Domain) -> pa.Table:
    """All users with attributes; empty where none were imported."""
    table = read_version(root, USERS)
    return user_schema(domain.user_attributes).empty_table() if table is None else table


def read_version(root: Path, kind: str) -> pa.Table | None:
    """The newest version of ITEMS or USERS, with nulls for attributes that the domain gained since; None where nothing
    was imported."""
    path = _newest(root, kind)
    if path is None:
        return None
    with _readable(path):
        table = pq.read_table(path, partitioning=None)
    domain = read_root(root)[0]
    for field in attribute_fields(domain.attributes if kind == ITEMS else domain.user_attributes):
        if field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    return table


def _newest(root: Path, kind: str) -> Path | None:
    number, manifest = log_manifest(root / kind)
    return root / kind / manifest["files"][0]["path"] if number else None


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowInvalid) as error:
        raise PublishError(f"{path} can't be read ({error}); restore it from a backup or import again") from None
