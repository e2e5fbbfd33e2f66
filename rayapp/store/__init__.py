"""The sequence store: what each user did last, durable before it is acknowledged, and the outbox towards the log.

Knows nothing of HTTP or models. What it keeps are five small contracts, and whoever uses a store asks for those that
it needs: `SequenceStore`, `Outbox`, `Agreements`, `UserStore`, `ItemStore`. Two back ends keep them all: `lmdb.py`,
embedded, for one node, and `redis.py`, for clusters; `opening.py` chooses by URL.

To add a back end: a module here with a class that keeps `Store`, its URLs in `opening.py`, and a branch in `make_store`
of `tests/test_store.py`, whose tests are what a store must do.
"""

import enum
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from rayapp.contracts.errors import RayappError
from rayapp.contracts.schema import Event, Vocabulary
from rayapp.features.seen import ShownItems
from rayapp.features.sequence import History
from rayapp.root.places import EVENTS, REQUESTS

DEFAULT_CAP = 256
"""Stored events a user: more than the longest sequence, so that late events and duplicates still find their place."""
KEPT_STEPS = 4_096
"""Time steps whose cursors a store keeps; the oldest go."""


class StoreError(RayappError):
    """The store can't be opened or used; the message says why and what to do."""


class OutboxFull(StoreError):
    """Appending would overflow the outbox: drain it (export), or let clients retry later. Nothing was written."""


class StepTooOld(StoreError):
    """The cursors of a time step can't be agreed on any more; what may have been agreed is forgotten."""


class AppendStatus(enum.StrEnum):
    """What became of one appended event."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    ERASED = "erased"
    """Not taken: the user was erased, and the event is from before."""


@dataclass(frozen=True, slots=True)
class UserSequence:
    """What one read saw of a user, newest first."""

    history: History
    item_ids: tuple[str, ...]
    watermark: int
    """The last commit_seq of the user's bucket at the read."""
    shown: ShownItems = field(default_factory=ShownItems.none)
    """Where they were asked for."""

    @staticmethod
    def unknown(watermark: int = 0) -> "UserSequence":
        return UserSequence(History.empty(), (), watermark)


class OutboxKind(enum.StrEnum):
    """What a row of the outbox is."""

    EVENT = "event"
    REQUEST = "request"
    USER = "user"


LOG_OF: Final = {OutboxKind.EVENT: EVENTS, OutboxKind.REQUEST: REQUESTS}
"""The log that an export brings such rows into."""


@dataclass(frozen=True, slots=True)
class Committed:
    """A row of the outbox with the number its bucket gave it."""

    commit_seq: int
    kind: OutboxKind
    value: dict[str, Any]
    """An event, a request or a user's attributes, fields that are None left out."""


@dataclass(frozen=True, slots=True)
class Tail:
    """What one read saw of a bucket's outbox behind a cursor."""

    after: int
    """The cursor: the last commit_seq that had been read before."""
    rows: list[Committed]
    """The next ones, in order and without a gap between them."""
    last: int
    """The last commit_seq of the bucket at the read. Less than `after` in a store that is an older copy, or that took
    a lost one's place, and was not advanced yet."""

    @property
    def missing_until(self) -> int | None:
        """The last commit_seq behind the cursor that was removed before this read, so it is in a log; None where none
        was."""
        until = self.rows[0].commit_seq - 1 if self.rows else self.last
        return until if until > self.after else None


@dataclass(frozen=True, slots=True)
class StoreStats:
    """How full a store is."""

    outbox_rows: int
    max_outbox_rows: int
    used_bytes: int
    """Without what the next appends will use again: LMDB's file is larger and never shrinks."""
    max_bytes: int | None
    """None: no limit is set."""


ItemChange = Callable[[dict[str, Any] | None], dict[str, Any] | None]


class SequenceStore(Protocol):
    """What users did last."""

    def append(self, events: Sequence[Event]) -> list[AppendStatus]:
        """Adds all events to their users' sequences and to the outbox in one durable transaction.

        Idempotent by `event_id` over a user's stored events. Late events are inserted in order; beyond the cap the
        oldest go. Answers only when a crash can no longer lose anything.

        Raises:
            OutboxFull: the events were not taken. In Redis those of other buckets may have been; sending all of them
                again is harmless.
            StoreError: they can't be made durable now; the same holds.
        """

    def lookup(
        self, user_id: str, *, before_ms: int | None = None, limit: int | None = None, shown: bool = False
    ) -> UserSequence:
        """The user's stored events, newest first, with `timestamp_ms < before_ms`; empty for an unknown user. `shown`:
        with the items shown last."""

    @property
    def vocabulary(self) -> Vocabulary:
        """The actions that it takes; others are stored as UNKNOWN."""

    def follow(self, vocabulary: Vocabulary) -> None:
        """Takes actions from now on that were appended to those it knows.

        Raises:
            StoreError: these are others, or the store does not answer.
        """

    def rebuild(self, events: Iterable[Event]) -> int:
        """Puts events of the log back into the sequences, without the outbox; returns how many were new."""


class Outbox(Protocol):
    """What the store took in and the logs have not seen, numbered within each bucket; and how far the two are apart."""

    @property
    def identity(self) -> str:
        """Made with the store and unlike any other's: a store that takes a lost one's place counts from anew."""

    def log_requests(self, requests: Sequence[dict[str, Any]], rest_items: int = 0) -> None:
        """Puts rows of the request log into the outbox, and what they showed beside their users' sequences, of which
        the last `rest_items` stay.

        Raises:
            OutboxFull: as for `append`.
        """

    def drain(self, bucket: int, cursor: int, limit: int) -> list[Committed]:
        """The next rows of the bucket's outbox after `cursor`, which at the same time acknowledges that all up to
        `cursor` are safe elsewhere: they are removed."""

    def read(self, after: Sequence[int], limit: int) -> list[Tail]:
        """Of each bucket up to `limit` rows behind its cursor `after[bucket]`, in one round trip. Removes nothing.

        A bucket's rows and its last commit_seq are of one moment; in Redis those of another bucket may be of another.

        Raises:
            ValueError: not one cursor of 0 or more for each bucket, or a limit below 1.
        """

    def advance(self, bucket: int, commit_seq: int) -> None:
        """Makes the bucket count on behind `commit_seq`, which a log has seen already.

        For a store that took a lost one's place or that is an older copy. Rows of its outbox get new numbers, so they
        are exported, perhaps once more; copies in the log are dropped where it is read.
        """

    def restored_to(self) -> int | None:
        """The number of the event log's manifest whose events are all in the store; None for a new store."""

    def set_restored_to(self, manifest: int) -> None:
        """Records it."""


class Agreements(Protocol):
    """Which rows count at a time step, so that whatever all replicas compute of them is the same."""

    def agree(self, step: int, cursors: Sequence[int]) -> tuple[int, ...]:
        """The cursors of the time step, the commit_seq of every bucket up to which rows count: those that were named
        first for it, by whichever replica. Once given, other cursors are never given for it; a crash changes nothing.

        The last KEPT_STEPS steps are kept.

        Raises:
            StepTooOld: as many are kept, and all are of later steps. This one's cursors may have been agreed on and
                dropped, so nobody may name others.
            ValueError: not one cursor of 0 or more for each bucket, or a step outside of [0, 2^53).
        """

    def agreed(self, after_step: int = -1) -> dict[int, tuple[int, ...]]:
        """The kept steps after that one, ascending, with their cursors."""


class UserStore(Protocol):
    """Users' attributes, and their erasure."""

    def put_user(self, user: dict[str, Any]) -> None:
        """Records a user's attributes (`user_id`, `effective_at_ms`, attributes) and puts them into the outbox."""

    def user(self, user_id: str) -> dict[str, Any] | None:
        """The attributes recorded with the latest `effective_at_ms`."""

    def erase(self, user_id: str, at_ms: int) -> None:
        """Forgets the user, and takes no event up to `at_ms` (or an erasure before, if later) any more.

        What stands in the outbox stays there.
        """


class ItemStore(Protocol):
    """Items as they were put, in the order of their changes. A deleted one stays, as `schema.deleted_item`."""

    def put_item(self, item: dict[str, Any]) -> int:
        """Records an item durably in the item log and returns its sequence number."""

    def put_items(self, items: Sequence[dict[str, Any]]) -> int:
        """`put_item` of one or more at once, of two with one id the later; the last sequence number. In Redis some may
        have been recorded when it fails; sending all of them again is harmless."""

    def change_item(self, item_id: str, change: ItemChange) -> dict[str, Any] | None:
        """Records what `change` makes of the stored item, and returns it; nobody changes the item in between.

        `change` is given None for an item that is not stored, and records nothing by returning None. It may be called
        more than once.
        """

    def item(self, item_id: str) -> dict[str, Any] | None:
        """The item as it was recorded last."""

    def items_since(self, sequence: int) -> tuple[int, list[dict[str, Any]]]:
        """`(last sequence number, items put after it)`, each item once, in its newest form."""


class Store(SequenceStore, Outbox, Agreements, UserStore, ItemStore, Protocol):
    """All that a back end keeps."""

    def stats(self) -> StoreStats:
        """How full it is."""

    def close(self) -> None:
        """Releases files and locks."""
