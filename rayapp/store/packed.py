"""A user's stored events as one value, which both back ends keep.

Layout, every number big-endian:
    1  format
    2  number of events n
    n × 28  rows, newest first: 6 timestamp_ms, 8 event_hash, 6 received_at_ms, 6 commit_seq, 1 action id, 1 id length
    the item ids, one behind the other

Times are stored from 1970 minus 2^47 ms on, so that byte order is time order; a row's first 14 bytes are its sort key
(newer first, and of one millisecond the larger hash first). 100 events with ids of 12 bytes are 4,003 bytes, one page
of LMDB. `append.lua` does the same as `insert`, inside Redis; a property test holds both to the same bytes.

Shapes: E events of one user.
"""

import struct
from typing import Final

import numpy as np

from rayapp.contracts.hashing import hash64
from rayapp.contracts.schema import Event
from rayapp.features.sequence import History
from rayapp.store import StoreError

FORMAT: Final = 2
HEADER: Final = struct.Struct(">BH")
EMPTY: Final = HEADER.pack(FORMAT, 0)
ROW_BYTES: Final = 28
KEY_BYTES: Final = 14
_HASH: Final = slice(6, 14)
_ACTION, _LENGTH = 26, 27
BIAS: Final = 1 << 47
_ROW: Final = np.dtype(
    [
        ("time_high", ">u4"),
        ("time_low", ">u2"),
        ("hash", ">u8"),
        ("received_high", ">u4"),
        ("received_low", ">u2"),
        ("seq_high", ">u2"),
        ("seq_low", ">u4"),
        ("action", "u1"),
        ("length", "u1"),
    ]
)


def packed_time(time_ms: int) -> bytes:
    return (time_ms + BIAS).to_bytes(6, "big")


def head(event: Event, event_hash: int) -> bytes:
    """The part of a row that stands in front of the commit_seq: 20 bytes."""
    return packed_time(event.timestamp_ms) + event_hash.to_bytes(8, "big") + packed_time(event.received_at_ms)


def insert(stored: bytes, row: bytes, item_id: bytes, takes_slot: bytes, cap: int) -> bytes | None:
    """The value with one more event, or None where it holds an event of that hash.

    `takes_slot[action id]` is 1 for an action that takes a slot of the user's sequence. At most `cap` events that do
    and `cap` that do not are kept; the oldest of the kind goes.
    """
    rows, ids = _split(stored)
    event_hash = row[_HASH]
    if event_hash in rows and any(rows[at + 6 : at + KEY_BYTES] == event_hash for at in range(0, len(rows), ROW_BYTES)):
        return None
    place, id_place = 0, 0
    while rows[place : place + KEY_BYTES] > row[:KEY_BYTES]:  # most events are newer than all: no step
        id_place += rows[place + _LENGTH]
        place += ROW_BYTES
    rows = rows[:place] + row + rows[place:]
    ids = ids[:id_place] + item_id + ids[id_place:]
    if len(rows) > cap * ROW_BYTES:
        rows, ids = _capped(rows, ids, takes_slot, takes_slot[row[_ACTION]], cap)
    return HEADER.pack(FORMAT, len(rows) // ROW_BYTES) + rows + ids


def _capped(rows: bytes, ids: bytes, takes_slot: bytes, kind: int, cap: int) -> tuple[bytes, bytes]:
    kinds = rows[_ACTION::ROW_BYTES].translate(takes_slot)
    if kinds.count(kind) <= cap:
        return rows, ids
    last = kinds.rindex(kind)
    end = last * ROW_BYTES + ROW_BYTES
    behind = sum(rows[end + _LENGTH :: ROW_BYTES])
    id_end = len(ids) - behind
    id_start = id_end - rows[end - 1]
    return rows[: end - ROW_BYTES] + rows[end:], ids[:id_start] + ids[id_end:]


def _split(stored: bytes) -> tuple[bytes, bytes]:
    version, n = HEADER.unpack_from(stored)
    if version != FORMAT:
        raise StoreError(f"a stored sequence has format {version}, this version reads {FORMAT}")
    end = HEADER.size + n * ROW_BYTES
    if len(stored) < end:
        raise StoreError(f"a stored sequence is damaged: {len(stored)} bytes for {n} events")
    return stored[HEADER.size : end], stored[end:]


def unpack(stored: bytes) -> tuple[History, tuple[str, ...]]:
    """`(events newest first, their item ids)`."""
    rows, ids = _split(stored)
    row_E = np.frombuffer(rows, _ROW)
    ends = np.cumsum(row_E["length"], dtype=np.int64).tolist()
    item_ids = tuple(ids[a:b].decode() for a, b in zip([0, *ends], ends, strict=False))
    history = History(
        (row_E["time_high"].astype(np.int64) << 16) + row_E["time_low"] - BIAS,
        (row_E["received_high"].astype(np.int64) << 16) + row_E["received_low"] - BIAS,
        (row_E["seq_high"].astype(np.int64) << 32) + row_E["seq_low"],
        row_E["hash"].astype(np.uint64),
        np.fromiter((hash64(i) for i in item_ids), np.uint64, len(item_ids)),
        row_E["action"].copy(),
    )
    return history, item_ids
