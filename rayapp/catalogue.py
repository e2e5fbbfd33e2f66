"""Reads the catalogue of items and the table of users, which imports write (`pipeline.catalogue`)."""

from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from rayapp.config import Domain
from rayapp.publish import PublishError, log_manifest
from rayapp.schema import user_schema

ITEMS: Final = "catalogue"
USERS: Final = "users"


def read_catalogue(root: Path) -> pa.Table:
    """All items, with `vector` where the import had vectors; in the order of their first import.

    Raises:
        PublishError: nothing was imported.
    """
    table = read_version(root, ITEMS)
    if table is None:
        raise PublishError(f"{root} has no items yet; `rayapp import --items` brings them")
    return table


def read_users(root: Path, domain: Domain) -> pa.Table:
    """All users with attributes; empty where none were imported."""
    table = read_version(root, USERS)
    return user_schema(domain.user_attributes).empty_table() if table is None else table


def read_version(root: Path, kind: str) -> pa.Table | None:
    """The newest version of ITEMS or USERS; None where nothing was imported."""
    number, manifest = log_manifest(root / kind)
    if not number:
        return None
    path = root / kind / manifest["files"][0]["path"]
    try:
        return pq.read_table(path, partitioning=None)
    except (OSError, pa.ArrowInvalid) as error:
        raise PublishError(f"{path} can't be read ({error}); restore it from a backup or import again") from None
