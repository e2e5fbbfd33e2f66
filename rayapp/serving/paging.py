"""Page tokens: what a user has been shown so far in one chain of pages, so that no page repeats an item.

A token carries it all, the server keeps nothing. It is not signed: whoever forges one only hides items from a feed that
is theirs to ask for anyway.

Layout, big-endian, in URL-safe base64: 1 format, 8 hash of the user, 6 time of the first page in ms, then 8 bytes an
item hash.
"""

import base64
import binascii
import struct
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rayapp.contracts.hashing import hash64

FORMAT: Final = 1
HEAD: Final = struct.Struct(">BQHI")
MAX_SHOWN: Final = 1_000
"""Items of one chain; a feed that was paged this far starts anew."""
MAX_AGE_MS: Final = 24 * 60 * 60 * 1000
MAX_TOKEN: Final = 4 * (HEAD.size + 8 * MAX_SHOWN) // 3 + 4


class BadToken(ValueError):
    """A token that can't be used; the message says why."""


class ExpiredToken(BadToken):
    """It was right once."""


@dataclass(frozen=True, slots=True)
class Page:
    """What came before this page."""

    started_ms: int
    shown_hash_S: NDArray[np.uint64]

    @staticmethod
    def first(now_ms: int) -> "Page":
        return Page(now_ms, np.zeros(0, np.uint64))

    def next_token(self, user_id: str, shown: list[str]) -> str | None:
        """The token of the page behind this one, which showed `shown`; None where the chain is at its end."""
        hashes = np.concatenate([self.shown_hash_S, np.array([hash64(i) for i in shown], np.uint64)])
        if not shown or len(hashes) >= MAX_SHOWN:
            return None
        head = HEAD.pack(FORMAT, hash64(user_id), self.started_ms >> 32, self.started_ms & 0xFFFF_FFFF)
        return base64.urlsafe_b64encode(head + hashes.astype(">u8").tobytes()).decode()


def read_token(token: str, user_id: str, now_ms: int) -> Page:
    """The page that a token of this user asks for.

    Raises:
        ExpiredToken: it is older than MAX_AGE_MS.
        BadToken: it is not one of ours, or another user's.
    """
    try:
        raw = base64.b64decode(token.encode("ascii"), altchars=b"-_", validate=True) if len(token) <= MAX_TOKEN else b""
    except (binascii.Error, UnicodeEncodeError):
        raw = b""
    if len(raw) < HEAD.size or (len(raw) - HEAD.size) % 8 or raw[0] != FORMAT:
        raise BadToken("page_token is not a token of this feed; leave it out to start at the first page")
    _, user_hash, high, low = HEAD.unpack_from(raw)
    if user_hash != hash64(user_id):
        raise BadToken("page_token belongs to another user")
    page = Page((high << 32) + low, np.frombuffer(raw, ">u8", offset=HEAD.size).astype(np.uint64))
    if not 0 <= now_ms - page.started_ms <= MAX_AGE_MS:
        raise ExpiredToken("page_token has expired; leave it out to start at the first page")
    return page
