"""Logs written file by file, as an import or an export leaves them, for the tests of what reads logs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from rayapp.contracts.config import Domain
from rayapp.contracts.schema import bucket_of
from rayapp.root.facts import read_root
from rayapp.root.logs import log_schema, sort_log, write_file
from rayapp.root.publish import commit_log, log_manifest


def add_file(root: Path, kind: str, rows: Sequence[dict[str, Any]], domain: Domain) -> None:
    """The rows as one more file of each bucket."""
    num_buckets, entries = read_root(root)[1], []
    number, manifest = log_manifest(root / kind)
    for bucket in range(num_buckets):
        mine = [row for row in rows if bucket_of(row["user_id"], num_buckets) == bucket]
        if mine:
            table = sort_log(pa.Table.from_pylist(mine, schema=log_schema(kind, domain)))
            entries.append(write_file(root / kind, "p", bucket, f"f{number}", table))
    commit_log(root / kind, number, {**manifest, "files": [*manifest["files"], *entries]})
