"""Writes the catalogue of items and the table of users: small beside the logs, so each version is one file.

An import merges: a row of an id that is there already replaces it, the others stay.
"""

import uuid
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rayapp.contracts.config import Domain
from rayapp.contracts.hashing import hash64_column
from rayapp.contracts.schema import item_schema, user_schema
from rayapp.root.catalogue import DELETED_FILE, read_deleted, read_version
from rayapp.root.erasure import Tombstones
from rayapp.root.places import ITEMS, USERS
from rayapp.root.publish import Manifest, commit_log, log_manifest


def merge(root: Path, kind: str, rows: pa.Table, domain: Domain) -> dict[str, Any]:
    """Adds rows of the item or the user schema; of two rows of one id the later one counts.

    Users keep a row for each `effective_at_ms`, because a request of the past must see the attributes of the past.
    An item keeps its vector when the new row comes from where there are none. A merge that changes nothing commits
    nothing.
    """
    schema = item_schema(domain.attributes) if kind == ITEMS else user_schema(domain.user_attributes)
    key = ["item_id"] if kind == ITEMS else ["user_id", "effective_at_ms"]
    if "vector" in rows.column_names:
        schema = schema.append(rows.schema.field("vector"))
    old = read_version(root, kind)
    rows = rows.select(schema.names).cast(schema)
    if old is not None and "vector" in old.column_names and "vector" not in rows.column_names:
        row_of = pc.index_in(rows["item_id"], value_set=old["item_id"].combine_chunks())
        rows = rows.append_column("vector", old["vector"].take(row_of))
    both = rows if old is None else pa.concat_tables([old, rows], promote_options="default")
    keys = both.select(key).to_pandas()
    last = ~keys.duplicated(keep="last").to_numpy()
    # The latest row, in the place of the id's first.
    first_place = pd.Series(np.arange(len(keys))).groupby([keys[k] for k in key]).transform("min").to_numpy()
    kept = np.flatnonzero(last)
    merged = both.take(pa.array(kept[np.argsort(first_place[kept], kind="stable")]))
    if old is None or not merged.equals(old):
        _commit(root, kind, merged)
    return {"read": rows.num_rows, "total": merged.num_rows, "duplicates": rows.num_rows - _distinct(rows, key)}


def _distinct(rows: pa.Table, key: list[str]) -> int:
    return int(rows.select(key).group_by(key).aggregate([]).num_rows)


def _commit(root: Path, kind: str, table: pa.Table, deleted: Collection[str] = ()) -> None:
    log = root / kind
    number, _ = log_manifest(log)
    log.mkdir(parents=True, exist_ok=True)
    name = _write(log, table)
    manifest: Manifest = {"files": [{"path": name, "rows": table.num_rows}]}
    if kind == ITEMS and (gone := {*read_deleted(root), *deleted}):
        left = pa.table({"item_id": pa.array(sorted(gone), pa.string())})
        left = left.filter(pc.invert(pc.is_in(left["item_id"], value_set=table["item_id"].combine_chunks())))
        manifest[DELETED_FILE] = _write(log, left)
    commit_log(log, number, manifest)


def _write(log: Path, table: pa.Table) -> str:
    name = f"{uuid.uuid4().hex[:12]}.parquet"
    pq.write_table(table, log / name, compression="zstd")
    return name


def remove_items(root: Path, item_ids: Sequence[str]) -> int:
    """Takes items out of the catalogue, which remembers their ids until they come back; how many it held."""
    table = read_version(root, ITEMS)
    if table is None:
        return 0
    gone = pc.is_in(table["item_id"], value_set=pa.array(item_ids, pa.string()))
    if pc.any(gone).as_py():
        _commit(root, ITEMS, table.filter(pc.invert(gone)), table["item_id"].filter(gone).to_pylist())
    return int(pc.sum(gone).as_py() or 0)


def remove_users(root: Path, erased: Tombstones) -> int:
    """Drops every row of erased users, and the older versions of the table; how many rows there were."""
    table = read_version(root, USERS)
    if table is None:
        return 0
    gone = np.isin(hash64_column(table["user_id"]), np.array(sorted(erased), np.uint64))
    if gone.any():
        _commit(root, USERS, table.filter(pa.array(~gone)))
    _, manifest = log_manifest(root / USERS)
    for path in (root / USERS).glob("*.parquet"):
        if path.name != manifest["files"][0]["path"]:
            path.unlink()
    return int(gone.sum())
