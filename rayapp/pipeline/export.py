"""`rayapp export`: what the store's outbox holds goes into the event and request logs, exactly once.

A bucket's cursor in each log, the last commit_seq of this store that the log holds, is committed with the log's
manifest; rows at or below it are skipped. So an export that is killed between two commits, or before it could tell the
store, repeats nothing and loses nothing. A round frees what the round before it has brought into all logs. A store that
took a lost one's place has another identity and so no cursors yet; an older copy is made to count on behind them.

The time steps that the store's replicas agreed on go along, before the rows: a request that the log holds finds its
step in the root.
"""

import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import pyarrow as pa

from rayapp.contracts.config import Domain, day_name
from rayapp.contracts.hashing import hash64_column
from rayapp.contracts.schema import is_deleted, item_schema, user_schema
from rayapp.root.agreed_steps import add_agreed_steps
from rayapp.root.catalogue_writer import merge, remove_items
from rayapp.root.facts import read_root
from rayapp.root.logs import log_schema, sort_log, write_file
from rayapp.root.places import EVENTS, ITEMS, REQUESTS, USERS
from rayapp.root.publish import Manifest, commit_log, log_manifest
from rayapp.store import LOG_OF, Agreements, Committed, ItemStore, Outbox, OutboxKind

CURSORS: Final = "cursors"
"""In a log's manifest: identity of a store -> bucket, or "items" -> last number of it that the log holds."""
CHUNK_ROWS: Final = 100_000


class ExportedStore(Outbox, Agreements, ItemStore, Protocol):
    """What an export reads of a store."""


@dataclass(slots=True)
class Exported:
    """What an export brought into the logs."""

    events: int = 0
    requests: int = 0
    users: int = 0
    items: int = 0
    more: bool = False
    """A bucket held more rows than one round takes."""

    def add(self, other: "Exported") -> None:
        for name in ("events", "requests", "users", "items"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def __bool__(self) -> bool:
        return bool(self.events or self.requests or self.users or self.items)


@dataclass(slots=True)
class _Log:
    """One log while it is exported to."""

    path: Path
    number: int
    manifest: Manifest
    store: str
    """Identity of the store that is exported."""
    entries: list[dict[str, Any]] = field(default_factory=list)

    def cursor(self, place: int | str) -> int:
        """Of a bucket or of ITEMS."""
        return int(self.manifest.get(CURSORS, {}).get(self.store, {}).get(str(place), 0))

    def advance(self, place: int | str, number: int) -> None:
        self.manifest.setdefault(CURSORS, {}).setdefault(self.store, {})[str(place)] = number


def export(root: Path, store: ExportedStore, now_ms: int) -> Exported:
    """One round: up to CHUNK_ROWS rows of each bucket go into new files of the logs, and the items put since the last
    round into the catalogue, out of which those go that were deleted. A round that brings nothing has freed the outbox.

    Whoever calls it holds `EXPORTS`.

    Raises:
        StoreError: the store can't be read. Nothing is lost: the next export goes on where this one stopped.
    """
    domain, num_buckets = read_root(root)
    done = Exported()
    logs = {kind: _Log(root / kind, *log_manifest(root / kind), store.identity) for kind in (EVENTS, REQUESTS)}
    restored = store.restored_to() == logs[EVENTS].number
    place = (f"export-{day_name(now_ms)}", uuid.uuid4().hex[:12])
    users: list[dict[str, Any]] = []
    for bucket in range(num_buckets):
        cursors = [log.cursor(bucket) for log in logs.values()]
        store.advance(bucket, max(cursors))
        rows = store.drain(bucket, min(cursors), CHUNK_ROWS)
        if not rows:
            continue
        done.more |= len(rows) == CHUNK_ROWS
        users += [row.value for row in rows if row.kind is OutboxKind.USER]
        for kind, name in LOG_OF.items():
            log = logs[name]
            fresh = [row for row in rows if row.kind is kind and row.commit_seq > log.cursor(bucket)]
            if fresh:
                table = _table(fresh, name, domain)
                log.entries.append(write_file(log.path, place[0], bucket, place[1], table))
            log.advance(bucket, rows[-1].commit_seq)
            setattr(done, name, getattr(done, name) + len(fresh))
    done.items = _export_items(root, store, logs[EVENTS], domain)
    if users:  # before the cursors that cover them; a merge that is done twice changes nothing
        schema = user_schema(domain.user_attributes)
        done.users = merge(root, USERS, pa.Table.from_pylist(users, schema=schema), domain)["read"]
    add_agreed_steps(root, store.identity, store.agreed())  # behind the rows, whose steps were agreed on before them
    if done:
        for log in logs.values():
            log.manifest["files"] += log.entries
            commit_log(log.path, log.number, log.manifest)
        if restored:  # these events came from the store, so it still holds all that the log holds
            store.set_restored_to(logs[EVENTS].number + 1)
    return done


def export_all(root: Path, store: ExportedStore, now_ms: int) -> Exported:
    """Rounds until all that stood in the outbox at the start is in the logs, and freed.

    What comes meanwhile waits for the next time: beside clients that never rest it would not end otherwise.
    """
    total = Exported(more=True)
    while total.more:
        done = export(root, store, now_ms)
        total.add(done)
        total.more = done.more
    manifests = [log_manifest(root / kind)[1].get(CURSORS, {}).get(store.identity, {}) for kind in (EVENTS, REQUESTS)]
    for bucket in range(read_root(root)[1]):
        store.drain(bucket, min(int(cursors.get(str(bucket), 0)) for cursors in manifests), 1)
    return total


def _table(rows: list[Committed], kind: str, domain: Domain) -> pa.Table:
    schema = log_schema(kind, domain)
    values = [{**row.value, "commit_seq": row.commit_seq} for row in rows]
    if kind == REQUESTS:
        return sort_log(pa.Table.from_pylist(values, schema=schema))
    table = pa.Table.from_pylist(values, schema=pa.schema([f for f in schema if f.name != "event_hash"]))
    hashes = pa.array(np.asarray(hash64_column(table["event_id"])), pa.uint64())
    place = schema.get_field_index("event_hash")
    return sort_log(table.add_column(place, schema.field("event_hash"), hashes))


def _export_items(root: Path, store: ItemStore, log: _Log, domain: Domain) -> int:
    last, items = store.items_since(log.cursor(ITEMS))
    if items:
        put = [item for item in items if not is_deleted(item)]
        if put:
            merge(root, ITEMS, pa.Table.from_pylist(put, schema=item_schema(domain.attributes)), domain)
        remove_items(root, [item["item_id"] for item in items if is_deleted(item)])
        log.advance(ITEMS, last)
    return len(items)


def exported(manifest: Manifest) -> dict[int, int]:
    """Bucket -> the highest number that the log of this manifest has seen of any store."""
    highest: dict[int, int] = {}
    for cursors in manifest.get(CURSORS, {}).values():
        for place, number in cursors.items():
            if place != ITEMS:
                highest[int(place)] = max(highest.get(int(place), 0), number)
    return highest
