"""The one reader of the logs: each request once, each event once, nothing of erased users, and the labels.

Made in the driver, so that all tasks of a job read one state of the logs, however long it takes. A task reads a bucket.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from rayapp.contracts.config import Domain
from rayapp.pipeline.histories import LABEL_COLUMNS, Bucket, merge
from rayapp.pipeline.labels import LabelledRequests, label_requests
from rayapp.root.erasure import Tombstones, hide, tombstones
from rayapp.root.logs import read_bucket, without_copies
from rayapp.root.places import EVENTS, REQUESTS
from rayapp.root.publish import Manifest, log_manifest


@dataclass(frozen=True, slots=True)
class LogView:
    """Both logs of a root at one moment."""

    root: Path
    numbers: Mapping[str, int]
    """EVENTS and REQUESTS -> number of the manifest that is read."""
    manifests: Mapping[str, Manifest]
    erased: Tombstones

    @staticmethod
    def of(root: Path, span_ms: tuple[int, int] | None = None, numbers: Mapping[str, int] | None = None) -> "LogView":
        """The newest state, or that of the manifests of these `numbers`. With a span only files that may hold rows of
        `[since, until)` are read; rows outside of it may come along."""
        found = {kind: log_manifest(root / kind, (numbers or {}).get(kind)) for kind in (EVENTS, REQUESTS)}
        manifests = {
            kind: manifest if span_ms is None else _touching(manifest, *span_ms)
            for kind, (_, manifest) in found.items()
        }
        return LogView(root, {kind: number for kind, (number, _) in found.items()}, manifests, tombstones(root))

    def labelled(
        self, bucket: int, schema: pa.Schema, domain: Domain, span_ms: tuple[int, int] | None = None
    ) -> LabelledRequests:
        """Requests of `[since, until)`, or all, with their users' events and the labels of what they showed."""
        return label_requests(self.requests(bucket, schema), self.events(bucket).events, domain, span_ms)

    def requests(self, bucket: int, schema: pa.Schema) -> pa.Table:
        """The columns of `schema`, of which `request_id` is one.

        An export of a store that was brought back from a backup may log a request a second time.
        """
        tables = self.stored(REQUESTS, bucket, schema)
        return without_copies(pa.concat_tables(tables) if tables else schema.empty_table())

    def events(self, bucket: int, schema: pa.Schema = LABEL_COLUMNS) -> Bucket:
        """The events in the order of a log file."""
        return merge(self.stored(EVENTS, bucket, schema), schema)

    def stored(self, kind: str, bucket: int, schema: pa.Schema) -> list[pa.Table]:
        """What the files of one log hold, copies too: for those whom they don't disturb."""
        tables = read_bucket(self.root, kind, bucket, self.manifests[kind], schema)
        return [hide(table, self.erased) for table in tables]


def _touching(manifest: Manifest, since_ms: int, until_ms: int) -> Manifest:
    files = [file for file in manifest["files"] if file["max_ms"] >= since_ms and file["min_ms"] < until_ms]
    return {**manifest, "files": files}
