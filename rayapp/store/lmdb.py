"""The embedded back end on LMDB: any process of the node reads by mmap, writers take turns, a crash loses nothing.

Databases (keys big-endian, so that byte order is number order):
    meta       name -> JSON: format, num_buckets, vocabulary, cap
    counters   bucket -> last commit_seq; "items" -> last item sequence number
    sequences  user_id -> packed events, newest first
    outbox     bucket, commit_seq -> event as JSON
    items      item_id -> sequence number and item as JSON;   item_log   sequence number -> item_id
    users      user_id -> attributes as JSON (reserved; nothing writes it yet)
"""

import json
import struct
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import lmdb
import numpy as np

from rayapp.features.sequence import History
from rayapp.hashing import hash64
from rayapp.schema import FIRST_ACTION_ID, UNKNOWN, Event, Vocabulary, bucket_of
from rayapp.store import DEFAULT_CAP, Committed, OutboxFull, Outcome, StoreError, UserSequence

FORMAT: Final = 1
DEFAULT_MAP_BYTES: Final = 8 << 30
"""Address space, not memory or disk: the file grows only as it fills."""
DEFAULT_MAX_OUTBOX: Final = 5_000_000
DATABASES: Final = ("meta", "counters", "sequences", "outbox", "items", "item_log", "users")
_HEADER: Final = struct.Struct("<BH")  # format, number of events
_NUMBER: Final = struct.Struct(">Q")
_OUTBOX_KEY: Final = struct.Struct(">HQ")


class LmdbStore:
    """`SequenceStore` in one directory."""

    def __init__(
        self,
        path: Path,
        vocabulary: Vocabulary,
        num_buckets: int,
        *,
        cap: int = DEFAULT_CAP,
        max_outbox: int = DEFAULT_MAX_OUTBOX,
        map_bytes: int = DEFAULT_MAP_BYTES,
    ) -> None:
        """Opens the store, or makes it.

        Raises:
            StoreError: it can't be opened, or holds another bucket count or vocabulary.
        """
        self.vocabulary, self.num_buckets, self.cap, self.max_outbox = vocabulary, num_buckets, cap, max_outbox
        # Flags and priorities of a cut are the reader's affair; the store only needs names and "takes a slot".
        self._in_sequence = vocabulary.flags(in_sequence=True)
        self._ids = {name: i + FIRST_ACTION_ID for i, name in enumerate(vocabulary.names)}
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._env = lmdb.open(str(path), map_size=map_bytes, max_dbs=len(DATABASES), max_readers=1024)
            self._db = {name: self._env.open_db(name.encode()) for name in DATABASES}
            self._check(path)
        except (lmdb.Error, OSError) as error:
            raise StoreError(f"the sequence store {path} can't be opened: {error}") from None

    def _check(self, path: Path) -> None:
        wanted: dict[str, Any] = {
            "format": FORMAT,
            "num_buckets": self.num_buckets,
            "cap": self.cap,
            "vocabulary": list(self.vocabulary.names),
        }
        with self._env.begin(write=True, db=self._db["meta"]) as txn:
            raw = txn.get(b"store")
            found = json.loads(raw) if raw is not None else wanted
            for name in ("format", "num_buckets"):
                if found[name] != wanted[name]:
                    raise StoreError(
                        f"the sequence store {path} has {name} {found[name]}, expected {wanted[name]}; move it away "
                        "and it is rebuilt from the log at the next start"
                    )
            if list(self.vocabulary.names)[: len(found["vocabulary"])] != found["vocabulary"]:
                raise StoreError(
                    f"the sequence store {path} was written with the actions {found['vocabulary']}, the domain has "
                    f"{wanted['vocabulary']}; actions may only be appended"
                )
            txn.put(b"store", json.dumps(wanted).encode())

    def close(self) -> None:
        self._env.close()

    def append(self, events: Sequence[Event]) -> list[Outcome]:
        return self._write(events, outbox=True)

    def rebuild(self, events: Iterable[Event]) -> int:
        new, chunk = 0, list[Event]()
        for event in events:
            chunk.append(event)
            if len(chunk) == 50_000:
                new += self._write(chunk, outbox=False).count(Outcome.ACCEPTED)
                chunk = []
        return new + self._write(chunk, outbox=False).count(Outcome.ACCEPTED)

    def _write(self, events: Sequence[Event], *, outbox: bool) -> list[Outcome]:
        outcomes = [Outcome.ACCEPTED] * len(events)
        by_user: dict[str, list[int]] = {}
        for i, event in enumerate(events):
            by_user.setdefault(event.user_id, []).append(i)
        try:
            with self._env.begin(write=True) as txn:
                if outbox and txn.stat(self._db["outbox"])["entries"] + len(events) > self.max_outbox:
                    raise OutboxFull(f"the outbox holds {self.max_outbox} events that nobody has exported")
                for user_id, indices in by_user.items():
                    self._write_user(txn, user_id, [(i, events[i]) for i in indices], outcomes, outbox)
        except lmdb.MapFullError:
            raise StoreError("the sequence store is full: its map size is used up") from None
        except lmdb.Error as error:
            raise StoreError(f"the sequence store can't be written: {error}") from None
        return outcomes

    def _write_user(
        self,
        txn: lmdb.Transaction,
        user_id: str,
        events: list[tuple[int, Event]],
        outcomes: list[Outcome],
        outbox: bool,
    ) -> None:
        bucket = bucket_of(user_id, self.num_buckets)
        counter = _NUMBER.pack(bucket)
        raw = txn.get(counter, db=self._db["counters"])
        commit_seq = _NUMBER.unpack(raw)[0] if raw else 0
        key = user_id.encode()
        history, item_ids = _unpack(txn.get(key, db=self._db["sequences"]))
        seen = set(history.event_hash_E.tolist())
        fresh: list[tuple[Event, int, int]] = []
        for i, event in events:
            event_hash = hash64(event.event_id)
            if event_hash in seen:
                outcomes[i] = Outcome.DUPLICATE
                continue
            seen.add(event_hash)
            if outbox:
                commit_seq += 1
                body = json.dumps({k: v for k, v in asdict(event).items() if v is not None}, ensure_ascii=False)
                txn.put(_OUTBOX_KEY.pack(bucket, commit_seq), body.encode(), db=self._db["outbox"])
            fresh.append((event, event_hash, commit_seq if outbox else 0))
        if not fresh:
            return
        if outbox:
            txn.put(counter, _NUMBER.pack(commit_seq), db=self._db["counters"])
        history = History.concatenate([history, self._rows(fresh)])
        item_ids = (*item_ids, *(event.item_id for event, _, _ in fresh))
        keep = self._newest(history)
        txn.put(key, _pack(history.take(keep), [item_ids[i] for i in keep]), db=self._db["sequences"])

    def _rows(self, fresh: list[tuple[Event, int, int]]) -> History:
        return History(
            np.array([e.timestamp_ms for e, _, _ in fresh], np.int64),
            np.array([e.received_at_ms for e, _, _ in fresh], np.int64),
            np.array([seq for _, _, seq in fresh], np.int64),
            np.array([h for _, h, _ in fresh], np.uint64),
            np.array([hash64(e.item_id) for e, _, _ in fresh], np.uint64),
            np.array([self._ids.get(e.action, UNKNOWN) for e, _, _ in fresh], np.uint8),
        )

    def _newest(self, history: History) -> list[int]:
        """Row numbers newest first, the cap applied apart to events that take a slot and events that do not."""
        order = np.lexsort((~history.event_hash_E, -history.timestamp_ms_E))
        slot = self._in_sequence[history.action_E[order]]
        rank = np.where(slot, np.cumsum(slot), np.cumsum(~slot))
        return [int(i) for i in order[rank <= self.cap]]

    def lookup(self, user_id: str, *, before_ms: int | None = None, limit: int | None = None) -> UserSequence:
        with self._env.begin() as txn:
            raw = txn.get(_NUMBER.pack(bucket_of(user_id, self.num_buckets)), db=self._db["counters"])
            watermark = _NUMBER.unpack(raw)[0] if raw else 0
            history, item_ids = _unpack(txn.get(user_id.encode(), db=self._db["sequences"]))
        keep = np.flatnonzero(history.timestamp_ms_E < before_ms) if before_ms is not None else np.arange(len(history))
        keep = keep[:limit]
        return UserSequence(history.take(keep), tuple(item_ids[i] for i in keep), watermark)

    def drain(self, bucket: int, cursor: int, limit: int) -> list[Committed]:
        result: list[Committed] = []
        with self._env.begin(write=True, db=self._db["outbox"]) as txn:
            rows = txn.cursor()
            found = rows.set_range(_OUTBOX_KEY.pack(bucket, 0))
            while found and len(result) < limit:
                at, commit_seq = _OUTBOX_KEY.unpack(rows.key())
                if at != bucket:
                    break
                if commit_seq <= cursor:
                    found = rows.delete() and bool(rows.key())
                    continue
                result.append(Committed(commit_seq, Event(**json.loads(rows.value()))))
                found = rows.next()
        return result

    def put_item(self, item: dict[str, Any]) -> int:
        key = item["item_id"].encode()
        with self._env.begin(write=True) as txn:
            last = txn.get(b"items", db=self._db["counters"])
            number = (_NUMBER.unpack(last)[0] if last else 0) + 1
            if old := txn.get(key, db=self._db["items"]):
                txn.delete(old[: _NUMBER.size], db=self._db["item_log"])
            packed = _NUMBER.pack(number)
            txn.put(key, packed + json.dumps(item, ensure_ascii=False).encode(), db=self._db["items"])
            txn.put(packed, key, db=self._db["item_log"])
            txn.put(b"items", packed, db=self._db["counters"])
        return int(number)

    def items_since(self, sequence: int) -> tuple[int, list[dict[str, Any]]]:
        with self._env.begin() as txn:
            items, last = [], sequence
            rows = txn.cursor(db=self._db["item_log"])
            found = rows.set_range(_NUMBER.pack(sequence + 1))
            while found:
                last = _NUMBER.unpack(rows.key())[0]
                stored = txn.get(rows.value(), db=self._db["items"])
                assert stored is not None  # both databases change in one transaction
                items.append(json.loads(bytes(stored)[_NUMBER.size :]))
                found = rows.next()
        return last, items


def _pack(history: History, item_ids: list[str]) -> bytes:
    """Header, then the columns one after another, id lengths and the ids' bytes. `item_hash` is made again at read."""
    ids = [i.encode() for i in item_ids]
    lengths = np.array([len(i) for i in ids], np.uint8)
    return b"".join(
        [
            _HEADER.pack(FORMAT, len(ids)),
            *(
                c.astype(c.dtype.newbyteorder("<")).tobytes()
                for c in (
                    history.timestamp_ms_E,
                    history.received_at_ms_E,
                    history.commit_seq_E,
                    history.event_hash_E,
                    history.action_E,
                )
            ),
            lengths.tobytes(),
            *ids,
        ]
    )


def _unpack(stored: bytes | memoryview | None) -> tuple[History, tuple[str, ...]]:
    if stored is None:
        return History.empty(), ()
    raw = bytes(stored)
    version, n = _HEADER.unpack_from(raw)
    if version != FORMAT:
        raise StoreError(f"a stored sequence has format {version}, this version reads {FORMAT}")
    at = _HEADER.size
    columns = []
    for dtype in ("<i8", "<i8", "<i8", "<u8", "u1", "u1"):
        columns.append(np.frombuffer(raw, dtype, n, at))
        at += n * np.dtype(dtype).itemsize
    timestamp, received, commit_seq, event_hash, action, lengths = columns
    ends = at + np.cumsum(lengths, dtype=np.int64)
    ids = tuple(raw[e - m : e].decode() for e, m in zip(ends.tolist(), lengths.tolist(), strict=True))
    item_hash = np.fromiter((hash64(i) for i in ids), np.uint64, n)
    return History(timestamp, received, commit_seq, event_hash, item_hash, action), ids
