"""The embedded back end on LMDB: any process of the node reads by mmap, writers take turns, a crash loses nothing.

Databases (keys big-endian, so that byte order is number order):
    meta       "store" -> JSON: format, id, num_buckets, vocabulary, cap; "restored_to" -> manifest number
    counters   bucket -> last commit_seq; "items" -> last item sequence number
    sequences  user_id -> packed events, newest first (`packed.py`)
    shown      user_id -> items shown last (`shown.py`), where the domain lets them rest
    erased     user_id -> events up to this packed time are not taken
    outbox     bucket, commit_seq -> kind and value as JSON
    agreed     time step -> cursors as JSON
    items      item_id -> sequence number and item as JSON;   item_log   sequence number -> item_id
    users      user_id -> attributes as JSON
"""

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import lmdb
import numpy as np

from rayapp.contracts.hashing import hash64
from rayapp.contracts.schema import FIRST_ACTION_ID, UNKNOWN, Event, Vocabulary, bucket_of
from rayapp.root.publish import sync_file
from rayapp.store import (
    DEFAULT_CAP,
    AppendStatus,
    Committed,
    ItemChange,
    OutboxFull,
    OutboxKind,
    StoreError,
    StoreStats,
    Tail,
    UserSequence,
    environment,
)
from rayapp.store.contents import (
    MEND,
    checked_cursors,
    checked_limit,
    checked_step,
    chunks,
    description,
    encoded,
    event_value,
    refuse_other,
    sequence_of,
)
from rayapp.store.lmdb_agreements import agree_on, agreed_after
from rayapp.store.lmdb_outbox import OUTBOX_KEY, committed, rows_of
from rayapp.store.packed import EMPTY, head, insert, packed_time
from rayapp.store.shown import shows, with_shown

FIRST_MAP_BYTES: Final = 1 << 30
"""Address space, not memory or disk: the file grows only as it fills, and the map doubles when it is used up."""
DEFAULT_MAX_OUTBOX: Final = 5_000_000
DATABASES: Final = (
    "meta",
    "counters",
    "sequences",
    "erased",
    "outbox",
    "items",
    "item_log",
    "users",
    "agreed",
    "shown",
)
_NUMBER: Final = struct.Struct(">Q")
_REBUILD_EVENTS: Final = 10_000
_INLINE: Final = 2_030
"""A value larger than this less its key moves from its leaf to pages of its own. LMDB joins leaves that became empty
by this only where a key is deleted: so it is, and a user with 100 actions costs 4.3 KB and not 6.5."""
_ACKNOWLEDGED_ROWS: Final = 5_000
"""Rows of the outbox that one transaction removes: appends wait no longer than that."""


class LmdbStore:
    """`Store` in one directory."""

    def __init__(
        self,
        path: Path,
        vocabulary: Vocabulary,
        num_buckets: int,
        *,
        cap: int = DEFAULT_CAP,
        max_outbox: int = DEFAULT_MAX_OUTBOX,
        map_bytes: int = FIRST_MAP_BYTES,
        sync: bool = True,
    ) -> None:
        """Opens the store, or makes it. `sync=False` loses acknowledged events in a power failure: for rebuilding.

        Raises:
            StoreError: it can't be opened, is damaged, or holds another bucket count or vocabulary.
        """
        self.num_buckets, self.cap, self.max_outbox = num_buckets, cap, max_outbox
        self._path = path
        self._learn(vocabulary)
        self._shared: environment.Environment | None = None
        try:
            path.mkdir(parents=True, exist_ok=True)
            new = not environment.data_bytes(path)
            self._shared = environment.acquire(path, max(map_bytes, environment.data_bytes(path)), len(DATABASES), sync)
            self._env, self._reading, self._writing = self._shared.env, self._shared.reading, self._shared.writing
            if new:  # LMDB syncs the file, but not the directory that names it
                sync_file(path)
                sync_file(path.parent)
            environment.refuse_truncated(self._env, path)
            self._env.reader_check()  # a reader that was killed keeps old pages from being used again
            self._db = self._shared.alone(lambda: {n: self._env.open_db(n.encode()) for n in DATABASES})
            self.identity = self._shared.alone(self._check)
        except StoreError:
            self.close()
            raise
        except (lmdb.ReadonlyError, OSError) as error:
            self.close()
            reason = error.strerror if isinstance(error, OSError) else error
            raise StoreError(f"the sequence store {path} can't be opened: {reason}; it must be writable") from None
        except (lmdb.Error, ValueError) as error:
            self.close()
            raise StoreError(f"the sequence store {path} can't be opened: {error}. {MEND}") from None

    def _learn(self, vocabulary: Vocabulary) -> None:
        """Flags and priorities of a cut are the reader's affair; the store only needs names and "takes a slot"."""
        self.vocabulary = vocabulary
        self._takes_slot = bytes(vocabulary.flags(in_sequence=True).astype(np.uint8)).ljust(256, b"\0")
        self._ids = {name: i + FIRST_ACTION_ID for i, name in enumerate(vocabulary.names)}

    def follow(self, vocabulary: Vocabulary) -> None:
        before = self.vocabulary
        self._learn(vocabulary)
        try:
            assert self._shared is not None
            self._shared.alone(self._check)
        except (StoreError, lmdb.Error):
            self._learn(before)
            raise

    def _check(self) -> str:
        wanted = description(self.vocabulary, self.num_buckets) | {"cap": self.cap}
        with self._env.begin(write=True, db=self._db["meta"]) as txn:
            raw = txn.get(b"store")
            found = json.loads(bytes(raw)) if raw is not None else wanted
            refuse_other(f"the sequence store {self._path}", found, wanted)
            wanted["id"] = found.get("id", wanted["id"])
            if raw is None or found != wanted:
                txn.put(b"store", json.dumps(wanted).encode())
        return str(wanted["id"])

    def close(self) -> None:
        if self._shared is not None:
            self._shared.release()
            self._shared = None

    def _get(self, txn: lmdb.Transaction, database: str, key: bytes) -> bytes | None:
        return txn.get(key, db=self._db[database])  # type: ignore[return-value]  # no buffers: bytes

    # ---- events ----------------------------------------------------------------------------------------------------

    def append(self, events: Sequence[Event]) -> list[AppendStatus]:
        return self._writing(lambda txn: self._append(txn, events, outbox=True))

    def rebuild(self, events: Iterable[Event]) -> int:
        return sum(map(self._rebuild, chunks(events, _REBUILD_EVENTS)))

    def _rebuild(self, events: list[Event]) -> int:
        return self._writing(lambda txn: self._append(txn, events, outbox=False)).count(AppendStatus.ACCEPTED)

    def _append(self, txn: lmdb.Transaction, events: Sequence[Event], *, outbox: bool) -> list[AppendStatus]:
        if outbox:
            self._refuse_overflow(txn, len(events))
        outcomes = [AppendStatus.ACCEPTED] * len(events)
        before: dict[str, bytes] = {}
        after: dict[str, bytes] = {}
        erased: dict[str, bytes | None] = {}
        last: dict[int, int] = {}
        for i, event in enumerate(events):
            user_id, bucket = event.user_id, bucket_of(event.user_id, self.num_buckets)
            if user_id not in before:
                key = user_id.encode()
                before[user_id] = after[user_id] = self._get(txn, "sequences", key) or EMPTY
                erased[user_id] = self._get(txn, "erased", key)
            if outbox and bucket not in last:
                last[bucket] = self._last(txn, bucket)
            front = head(event, hash64(event.event_id))
            if (until := erased[user_id]) is not None and front[:6] <= until:
                outcomes[i] = AppendStatus.ERASED
                continue
            item_id = event.item_id.encode()
            behind = bytes((self._ids.get(event.action, UNKNOWN), len(item_id)))
            commit_seq = last[bucket] + 1 if outbox else 0
            row = front + commit_seq.to_bytes(6, "big") + behind
            stored = insert(after[user_id], row, item_id, self._takes_slot, self.cap)
            if stored is None:
                outcomes[i] = AppendStatus.DUPLICATE
                continue
            after[user_id] = stored
            if outbox:
                last[bucket] = commit_seq
                self._put_outbox(txn, bucket, commit_seq, OutboxKind.EVENT, event_value(event))
        for user_id, stored in after.items():
            if stored is not before[user_id]:
                key = user_id.encode()
                if len(before[user_id]) <= _INLINE - len(key) < len(stored):
                    txn.delete(key, db=self._db["sequences"])
                txn.put(key, stored, db=self._db["sequences"])
        self._put_last(txn, last)
        return outcomes

    def log_requests(self, requests: Sequence[dict[str, Any]], rest_items: int = 0) -> None:
        def write(txn: lmdb.Transaction) -> None:
            self._commit(txn, OutboxKind.REQUEST, requests)
            for user_id, at, hashes in shows(requests) if rest_items else ():
                key = user_id.encode()
                if at > (self._get(txn, "erased", key) or b""):
                    stored = with_shown(self._get(txn, "shown", key) or b"", at, hashes, rest_items)
                    txn.put(key, stored, db=self._db["shown"])

        self._writing(write)

    def _commit(self, txn: lmdb.Transaction, kind: OutboxKind, values: Sequence[dict[str, Any]]) -> None:
        self._refuse_overflow(txn, len(values))
        last: dict[int, int] = {}
        for value in values:
            bucket = bucket_of(value["user_id"], self.num_buckets)
            last[bucket] = (last[bucket] if bucket in last else self._last(txn, bucket)) + 1
            self._put_outbox(txn, bucket, last[bucket], kind, value)
        self._put_last(txn, last)

    def _refuse_overflow(self, txn: lmdb.Transaction, rows: int) -> None:
        if txn.stat(self._db["outbox"])["entries"] + rows > self.max_outbox:
            raise OutboxFull(f"the outbox holds {self.max_outbox} rows that nobody has exported; run `rayapp export`")

    def _last(self, txn: lmdb.Transaction, bucket: int) -> int:
        raw = self._get(txn, "counters", _NUMBER.pack(bucket))
        return int(_NUMBER.unpack(raw)[0]) if raw else 0

    def _put_last(self, txn: lmdb.Transaction, last: Mapping[int, int]) -> None:
        for bucket, commit_seq in last.items():
            txn.put(_NUMBER.pack(bucket), _NUMBER.pack(commit_seq), db=self._db["counters"])

    def _put_outbox(
        self, txn: lmdb.Transaction, bucket: int, commit_seq: int, kind: OutboxKind, value: dict[str, Any]
    ) -> None:
        body = f'["{kind}",{encoded(value)}]'.encode()
        txn.put(OUTBOX_KEY.pack(bucket, commit_seq), body, db=self._db["outbox"])

    def lookup(
        self, user_id: str, *, before_ms: int | None = None, limit: int | None = None, shown: bool = False
    ) -> UserSequence:
        key = user_id.encode()
        with self._reading() as txn:
            watermark = self._last(txn, bucket_of(user_id, self.num_buckets))
            stored, items = self._get(txn, "sequences", key), self._get(txn, "shown", key) if shown else None
        return sequence_of(stored, watermark, before_ms, limit, items)

    def drain(self, bucket: int, cursor: int, limit: int) -> list[Committed]:
        while self._writing(lambda txn: self._acknowledge(txn, bucket, cursor)):
            pass
        with self._reading() as txn:
            rows = list(rows_of(txn.cursor(db=self._db["outbox"]), bucket, cursor, limit))
        return committed(rows)

    def read(self, after: Sequence[int], limit: int) -> list[Tail]:
        cursors = checked_cursors(after, self.num_buckets)
        limit = checked_limit(limit)
        with self._reading() as txn:
            outbox = txn.cursor(db=self._db["outbox"])
            found = [(self._last(txn, b), list(rows_of(outbox, b, cursor, limit))) for b, cursor in enumerate(cursors)]
        return [Tail(cursor, committed(rows), last) for cursor, (last, rows) in zip(cursors, found, strict=True)]

    def _acknowledge(self, txn: lmdb.Transaction, bucket: int, cursor: int) -> bool:
        """Removes rows up to `cursor`; whether some are left. A transaction that changes nothing costs no sync."""
        rows = txn.cursor(db=self._db["outbox"])
        found = rows.set_range(OUTBOX_KEY.pack(bucket, 0))
        for _ in range(_ACKNOWLEDGED_ROWS):
            if not found or OUTBOX_KEY.unpack(rows.key()) > (bucket, cursor):
                return False
            found = rows.delete() and bool(rows.key())
        return True

    def advance(self, bucket: int, commit_seq: int) -> None:
        def write(txn: lmdb.Transaction) -> None:
            if self._last(txn, bucket) >= commit_seq:
                return
            outbox, last = self._db["outbox"], commit_seq
            for seq, body in list(rows_of(txn.cursor(db=outbox), bucket, 0, self.max_outbox)):
                last += 1
                txn.delete(OUTBOX_KEY.pack(bucket, seq), db=outbox)
                txn.put(OUTBOX_KEY.pack(bucket, last), body, db=outbox)
            self._put_last(txn, {bucket: last})

        self._writing(write)

    # ---- agreements ------------------------------------------------------------------------------------------------

    def agree(self, step: int, cursors: Sequence[int]) -> tuple[int, ...]:
        named = checked_cursors(cursors, self.num_buckets)
        return self._writing(lambda txn: agree_on(txn, self._db["agreed"], checked_step(step), named))

    def agreed(self, after_step: int = -1) -> dict[int, tuple[int, ...]]:
        with self._reading() as txn:
            return agreed_after(txn, self._db["agreed"], after_step)

    # ---- users and items -------------------------------------------------------------------------------------------

    def erase(self, user_id: str, at_ms: int) -> None:
        key = user_id.encode()

        def write(txn: lmdb.Transaction) -> None:
            for name in ("sequences", "users", "shown"):
                txn.delete(key, db=self._db[name])
            latest = max(packed_time(at_ms), self._get(txn, "erased", key) or b"")
            txn.put(key, latest, db=self._db["erased"])

        self._writing(write)

    def put_user(self, user: dict[str, Any]) -> None:
        key = user["user_id"].encode()

        def write(txn: lmdb.Transaction) -> None:
            stored = self._get(txn, "users", key)
            if stored is None or json.loads(stored)["effective_at_ms"] <= user["effective_at_ms"]:
                txn.put(key, json.dumps(user, ensure_ascii=False).encode(), db=self._db["users"])
            self._commit(txn, OutboxKind.USER, [user])

        self._writing(write)

    def user(self, user_id: str) -> dict[str, Any] | None:
        with self._reading() as txn:
            stored = self._get(txn, "users", user_id.encode())
        return None if stored is None else dict(json.loads(stored))

    def restored_to(self) -> int | None:
        with self._reading() as txn:
            raw = self._get(txn, "meta", b"restored_to")
        return None if raw is None else int(_NUMBER.unpack(raw)[0])

    def set_restored_to(self, manifest: int) -> None:
        self._writing(lambda txn: txn.put(b"restored_to", _NUMBER.pack(manifest), db=self._db["meta"]))

    def put_item(self, item: dict[str, Any]) -> int:
        return self.put_items([item])

    def put_items(self, items: Sequence[dict[str, Any]]) -> int:
        return self._writing(lambda txn: max(self._put_item(txn, item) for item in items))

    def _put_item(self, txn: lmdb.Transaction, item: dict[str, Any]) -> int:
        key = item["item_id"].encode()
        last = self._get(txn, "counters", b"items")
        number = (int(_NUMBER.unpack(last)[0]) if last else 0) + 1
        if old := self._get(txn, "items", key):
            txn.delete(old[: _NUMBER.size], db=self._db["item_log"])
        packed = _NUMBER.pack(number)
        txn.put(key, packed + json.dumps(item, ensure_ascii=False).encode(), db=self._db["items"])
        txn.put(packed, key, db=self._db["item_log"])
        txn.put(b"items", packed, db=self._db["counters"])
        return number

    def change_item(self, item_id: str, change: ItemChange) -> dict[str, Any] | None:
        def write(txn: lmdb.Transaction) -> dict[str, Any] | None:
            item = change(self._item(txn, item_id))
            if item is not None:
                self._put_item(txn, item)
            return item

        return self._writing(write)

    def item(self, item_id: str) -> dict[str, Any] | None:
        with self._reading() as txn:
            return self._item(txn, item_id)

    def _item(self, txn: lmdb.Transaction, item_id: str) -> dict[str, Any] | None:
        stored = self._get(txn, "items", item_id.encode())
        return None if stored is None else dict(json.loads(stored[_NUMBER.size :]))

    def items_since(self, sequence: int) -> tuple[int, list[dict[str, Any]]]:
        with self._reading() as txn:
            items, last = [], sequence
            rows = txn.cursor(db=self._db["item_log"])
            found = rows.set_range(_NUMBER.pack(sequence + 1))
            while found:
                last = _NUMBER.unpack(rows.key())[0]
                stored = self._get(txn, "items", bytes(rows.value()))
                assert stored is not None  # both databases change in one transaction
                items.append(json.loads(stored[_NUMBER.size :]))
                found = rows.next()
        return last, items

    def stats(self) -> StoreStats:
        with self._reading() as txn:
            outbox_rows = int(txn.stat(self._db["outbox"])["entries"])
            found = [txn.stat(db) for db in self._db.values()]
            pages = sum(db["branch_pages"] + db["leaf_pages"] + db["overflow_pages"] for db in found)
            used_bytes = pages * found[0]["psize"]
        return StoreStats(outbox_rows, self.max_outbox, used_bytes, None)
