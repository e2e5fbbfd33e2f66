"""Rows of the outbox as LMDB keeps them: by bucket and commit_seq, each its kind and value as JSON."""

import json
import struct
from collections.abc import Iterable, Iterator
from typing import Final

import lmdb

from rayapp.store import Committed, OutboxKind

OUTBOX_KEY: Final = struct.Struct(">HQ")


def rows_of(rows: lmdb.Cursor, bucket: int, cursor: int, limit: int) -> Iterator[tuple[int, bytes]]:
    """`(commit_seq, body)` of the bucket's rows behind `cursor`."""
    found = rows.set_range(OUTBOX_KEY.pack(bucket, cursor + 1))
    for _ in range(limit):
        if not found or rows.key()[:2] != bucket.to_bytes(2, "big"):
            return
        yield OUTBOX_KEY.unpack(rows.key())[1], bytes(rows.value())
        found = rows.next()


def committed(rows: Iterable[tuple[int, bytes]]) -> list[Committed]:
    """These rows, read."""
    return [Committed(seq, OutboxKind(kind), value) for seq, body in rows for kind, value in [json.loads(body)]]
