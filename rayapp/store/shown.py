"""What a user was shown last, as one value that both back ends keep beside the sequence: it lets shown items rest.

Layout: 14 bytes an item, the one shown last first: 6 when it was shown (`packed.packed_time`), 8 the hash of its id,
big-endian. Each item once. `SHOW` in `scripts.py` does the same as `with_shown`, inside Redis.

Shapes: S shown items.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from rayapp.contracts.hashing import hash64
from rayapp.features.seen import ShownItems
from rayapp.store.packed import BIAS, packed_time

ROW_BYTES: Final = 14
HASH_BYTES: Final = 8
_ROW: Final = np.dtype([("high", ">u4"), ("low", ">u2"), ("hash", ">u8")])
Show = tuple[str, bytes, list[bytes]]
"""A user, when (packed), and the hashes of the items."""


def shows(requests: Iterable[Mapping[str, Any]]) -> list[Show]:
    """What rows of the request log showed, the latest last."""
    return [
        (
            row["user_id"],
            packed_time(row["timestamp_ms"]),
            [hash64(item_id).to_bytes(HASH_BYTES, "big") for item_id in row["item_ids"]],
        )
        for row in requests
    ]


def with_shown(stored: bytes, at: bytes, hashes: Sequence[bytes], keep: int) -> bytes:
    """The value with a list that was shown in front of it; the last `keep` items stay."""
    new = list(dict.fromkeys(hashes))
    old = [stored[n : n + ROW_BYTES] for n in range(0, len(stored), ROW_BYTES)]
    known = set(new)
    rows = [at + one for one in new] + [row for row in old if row[-HASH_BYTES:] not in known]
    return b"".join(rows[:keep])


def unpack_shown(stored: bytes | None) -> ShownItems:
    """Raises:
    ValueError: it is no such value.
    """
    row_S = np.frombuffer(stored or b"", _ROW)
    at_ms_S = (row_S["high"].astype(np.int64) << 16) + row_S["low"] - BIAS
    return ShownItems(row_S["hash"].astype(np.uint64), at_ms_S)
