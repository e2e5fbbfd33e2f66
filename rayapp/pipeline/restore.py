"""The way back: what the event log holds goes into the sequence store, when the store is new, lost or old; so do the
items that were deleted, which item tables may still hold.

It lies beside the export because both go by the numbers that a log has seen of its stores.
"""

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Final

from rayapp.contracts.schema import EVENT_SCHEMA, Event, deleted_item
from rayapp.pipeline.export import exported
from rayapp.root.catalogue import read_deleted
from rayapp.root.erasure import hide, tombstones
from rayapp.root.logs import read_log
from rayapp.root.places import EVENTS
from rayapp.root.publish import log_manifest
from rayapp.store import Store
from rayapp.store.opening import open_store

ITEMS_AT_ONCE: Final = 1_000


def seed_store(root: Path, url: str | None = None) -> tuple[int, bool]:
    """Restores the store unless it holds all that the log holds; `(events written, whether it had to)`."""
    store = open_store(root, url)
    try:
        if store.restored_to() == log_manifest(root / EVENTS)[0]:
            return 0, False
        return _restore(root, store), True
    finally:
        store.close()


def restore_store(root: Path, url: str | None = None) -> int:
    """Puts what the event log holds into the sequence store, where it is missing; the number of events written."""
    store = open_store(root, url)
    try:
        return _restore(root, store)
    finally:
        store.close()


def _restore(root: Path, store: Store) -> int:
    number, manifest = log_manifest(root / EVENTS)
    written = store.rebuild(_logged_events(root))
    for bucket, commit_seq in exported(manifest).items():
        store.advance(bucket, commit_seq)  # what it numbers from now on is newer than all that is in the log
    missing = [item_id for item_id in read_deleted(root) if store.item(item_id) is None]
    for at in range(0, len(missing), ITEMS_AT_ONCE):
        store.put_items([deleted_item(item_id) for item_id in missing[at : at + ITEMS_AT_ONCE]])
    store.set_restored_to(number)
    return written


def _logged_events(root: Path) -> Iterator[Event]:
    names = [f.name for f in fields(Event)]
    table = hide(read_log(root, EVENTS, [n for n in EVENT_SCHEMA.names if n in names]), tombstones(root))
    # By user: a user's whole history is then written once and not row by row.
    for batch in table.sort_by("user_id").to_batches(max_chunksize=10_000):
        for row in batch.to_pylist():
            yield Event(**row)
