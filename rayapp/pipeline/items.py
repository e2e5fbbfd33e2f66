"""The catalogue on disk: the items of an import, in the domain's schema."""

from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from rayapp.config import Domain
from rayapp.publish import Manifest, publish_directory
from rayapp.schema import item_schema

CATALOGUE: Final = "catalogue"


def publish_catalogue(root: Path, items: pa.Table, domain: Domain) -> None:
    """Writes the items of an import. Their schema is the domain's."""

    def write(directory: Path) -> Manifest:
        pq.write_table(items.cast(item_schema(domain.attributes)), directory / "items.parquet", compression="zstd")
        return {"num_items": items.num_rows}

    publish_directory(root / CATALOGUE, write)


def read_catalogue(root: Path) -> pa.Table:
    """All items of the import."""
    return pq.read_table(root / CATALOGUE / "items.parquet", partitioning=None)
