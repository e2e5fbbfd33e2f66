"""Item tables on disk: `item_tables/<name>/{items.parquet, vectors.safetensors, manifest.json}`."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from rayapp.contracts.json_values import from_json, to_json
from rayapp.contracts.schema import Attribute, item_schema
from rayapp.model.covisits import Covisits
from rayapp.model.item_table import ItemTable
from rayapp.model.tower import LinearTower
from rayapp.root.places import ITEM_TABLES
from rayapp.root.publish import Manifest, PublishError, publish_directory, read_manifest

ROWS, WEIGHTS = "covisits.rows", "covisits.weights"


def publish_table(root: Path, table: ItemTable, lineage: Manifest) -> None:
    """Writes `item_tables/<name>`."""
    attributes = table.tower.attributes
    schema = item_schema(attributes).append(pa.field("likes", pa.int64()))

    def write(directory: Path) -> Manifest:
        rows = [{**item, "likes": int(n)} for item, n in zip(table.items, table.likes_N[1:], strict=True)]
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), directory / "items.parquet", compression="zstd")
        arrays: dict[str, NDArray[Any]] = {"vectors": table.vectors_NE[1:], "tower.weight": table.tower.weight_TE}
        if table.covisits is not None:
            arrays |= {ROWS: table.covisits.row_NK, WEIGHTS: table.covisits.weight_NK}
        save_file(arrays, directory / "vectors.safetensors")
        return {
            **lineage,
            "trained_until_ms": table.trained_until_ms,
            "num_items": len(table.items),
            "width": table.vectors_NE.shape[1],
            "attributes": [to_json(attribute) for attribute in attributes],
        }

    publish_directory(root / ITEM_TABLES / table.name, write)


def load_table(root: Path, name: str) -> ItemTable:
    """Reads `item_tables/<name>`.

    Raises:
        PublishError: it is absent or damaged.
    """
    directory = root / ITEM_TABLES / name
    manifest = read_manifest(directory)
    attributes = tuple(from_json(Attribute, values) for values in manifest["attributes"])
    try:
        table = pq.read_table(directory / "items.parquet", partitioning=None)
        arrays = load_file(directory / "vectors.safetensors")
    except (OSError, pa.ArrowInvalid, SafetensorError) as error:
        raise PublishError(f"item table {directory} is damaged ({error}); restore it or build it again") from None
    items: list[dict[str, Any]] = table.drop_columns(["likes"]).to_pylist()
    return ItemTable.make(
        name,
        LinearTower(arrays["tower.weight"], attributes),
        items,
        table["likes"].to_numpy(),
        arrays["vectors"],
        manifest["trained_until_ms"],
        Covisits(arrays[ROWS], arrays[WEIGHTS]) if ROWS in arrays else None,
    )
