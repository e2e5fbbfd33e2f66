"""Erased users: a tombstone hides at once what is stored of them, `rayapp compact` removes it.

A tombstone is a small file named by the hash of the user's id, and it stays: old files imported again bring nothing
back. What the user does after the erasure is a new beginning and is kept.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rayapp.contracts.hashing import hash64, hash64_column, places_of
from rayapp.root.places import ERASED
from rayapp.root.publish import read_json, write_json

Tombstones = Mapping[int, int]
"""hash64 of a user id -> rows up to this time (ms) are erased."""


def erase_user(root: Path, user_id: str, at_ms: int) -> None:
    """Hides all that the user did up to `at_ms` from everything that is built from now on."""
    directory = root / ERASED
    directory.mkdir(exist_ok=True)
    write_json(directory / f"{hash64(user_id):016x}.json", {"at_ms": at_ms})


def tombstones(root: Path) -> dict[int, int]:
    """All erasures of a root."""
    return {int(path.stem, 16): int(read_json(path)["at_ms"]) for path in (root / ERASED).glob("*.json")}


def erased_rows(table: pa.Table, erased: Tombstones) -> NDArray[np.bool_]:
    """Which rows of a log an erasure covers."""
    if not erased:
        return np.zeros(table.num_rows, bool)
    hashes = np.array(sorted(erased), np.uint64)
    until_ms = np.array([erased[int(h)] for h in hashes], np.int64)
    user_N = hash64_column(table["user_id"])
    place, known = places_of(hashes, user_N)
    return np.asarray(known & (table["timestamp_ms"].to_numpy() <= until_ms[place]))


def hide(table: pa.Table, erased: Tombstones) -> pa.Table:
    """The table without erased rows."""
    covered = erased_rows(table, erased)
    return table.filter(pa.array(~covered)) if covered.any() else table
