"""The sequence store: what each user did last, durable before it is acknowledged, and the outbox towards the log.

Knows nothing of HTTP or models. `lmdb.py` is the embedded back end.
"""

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rayapp.features.sequence import History
from rayapp.schema import Event

DEFAULT_CAP = 256
"""Stored events a user: more than the longest sequence, so that late events and duplicates still find their place."""


class StoreError(RuntimeError):
    """The store can't be opened or used; the message says why and what to do."""


class OutboxFull(StoreError):
    """Appending would overflow the outbox: drain it (export), or let clients retry later. Nothing was written."""


class Outcome(enum.StrEnum):
    """What became of one appended event."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"


@dataclass(frozen=True, slots=True)
class UserSequence:
    """What one read transaction saw of a user, newest first."""

    history: History
    item_ids: tuple[str, ...]
    watermark: int
    """The last commit_seq of the user's bucket at the read."""

    @staticmethod
    def unknown(watermark: int = 0) -> "UserSequence":
        return UserSequence(History.empty(), (), watermark)


@dataclass(frozen=True, slots=True)
class Committed:
    """An event of the outbox with the number its bucket gave it."""

    commit_seq: int
    event: Event


class SequenceStore(Protocol):
    """The contract both back ends keep."""

    def append(self, events: Sequence[Event]) -> list[Outcome]:
        """Adds all events to their users' sequences and to the outbox in one durable transaction.

        Idempotent by `event_id` over a user's stored events. Late events are inserted in order; beyond the cap the
        oldest go. Answers only when a crash can no longer lose anything.

        Raises:
            OutboxFull: nothing was written.
        """

    def lookup(self, user_id: str, *, before_ms: int | None = None, limit: int | None = None) -> UserSequence:
        """The user's stored events, newest first, with `timestamp_ms < before_ms`; empty for an unknown user."""

    def drain(self, bucket: int, cursor: int, limit: int) -> list[Committed]:
        """The next events of the bucket's outbox after `cursor`, which at the same time acknowledges that all up
        to `cursor` are safe elsewhere: they are removed."""

    def rebuild(self, events: Iterable[Event]) -> int:
        """Puts events of the log back into the sequences, without the outbox; returns how many were new."""

    def put_item(self, item: dict[str, Any]) -> int:
        """Records an item durably in the item log and returns its sequence number."""

    def items_since(self, sequence: int) -> tuple[int, list[dict[str, Any]]]:
        """`(last sequence number, items put after it)`, each item once, in its newest form."""

    def close(self) -> None:
        """Releases files and locks."""
