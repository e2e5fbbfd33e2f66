"""The stage that owns the sequence store: what users did, and what is told of users and items."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from rayapp.contracts.hashing import hash64
from rayapp.contracts.schema import FIRST_ACTION_ID, Event, deleted_item, is_deleted
from rayapp.root.catalogue import read_item
from rayapp.root.erasure import erase_user
from rayapp.serving.followed_domain import FollowedDomain
from rayapp.serving.group_commit import GroupCommit
from rayapp.store import AppendStatus, Store, StoreError, UserSequence

PROBE_S: Final = 0.5
"""How long whoever asks after the store waits for it."""
FAILED_FOR_S: Final = 10.0
"""The store counts as unwell this long after a write that failed."""


class SequenceStage:
    """Everything that is stored of users and items goes through here."""

    def __init__(self, root: Path, store: Store, freshness_ms: Callable[[int], Any]) -> None:
        """`freshness_ms` is told how long an action took from its receipt until a look-up shows it."""
        self._root, self._store, self._freshness_ms = root, store, freshness_ms
        self._domain = FollowedDomain(root)
        self._commits = GroupCommit(store, self._accepted)
        self._probe: asyncio.Task[UserSequence] | None = None
        self._measuring: asyncio.Task[None] | None = None

    # ---- events and requests ---------------------------------------------------------------------------------------

    async def append(self, events: list[Event]) -> list[AppendStatus]:
        """Answers when the events are durable.

        Raises:
            Busy: too many wait.
            StoreError: they can't be made durable now.
        """
        known = self._store.vocabulary.names
        if any(event.action not in known for event in events):
            await asyncio.to_thread(self._follow)
        return await self._commits.append(events)

    def _follow(self) -> None:
        """An ingress that takes an action has read the domain that has it; so does the store, before it stores one."""
        self._domain.refresh()
        if self._domain.now.vocabulary != self._store.vocabulary:
            self._store.follow(self._domain.now.vocabulary)

    async def log_requests(self, rows: Sequence[dict[str, Any]], rest_items: int = 0) -> None:
        """Puts rows of the request log into the outbox; of each user the last `rest_items` shown items are kept."""
        await self._commits.log_requests(rows, rest_items)

    def _accepted(self, events: list[Event]) -> None:
        if events and (self._measuring is None or self._measuring.done()):
            self._measuring = asyncio.create_task(self._measure(min(events, key=lambda e: e.received_at_ms)))

    async def _measure(self, event: Event) -> None:
        """How long an action took from its receipt until a look-up shows it: of a commit the one that waited longest.

        One look-up at a time; whoever reads the user's sequence, and when, is no part of it. A late action that is
        older than all that are stored is never shown, and not measured.
        """
        with contextlib.suppress(StoreError):
            found = await asyncio.to_thread(self._store.lookup, event.user_id)
            if hash64(event.event_id) in found.history.event_hash_E:
                self._freshness_ms(max(time.time_ns() // 1_000_000 - event.received_at_ms, 0))

    async def lookup(self, user_id: str, shown: bool = False) -> UserSequence:
        """`shown`: with the items shown last."""
        return await asyncio.to_thread(self._store.lookup, user_id, shown=shown)

    async def problem(self) -> str | None:
        """Why the store does not answer, or why writing failed in the last FAILED_FOR_S; None while all is well."""
        if self._probe is None or self._probe.done():  # one at a time: behind a store that hangs more would queue up
            self._probe = asyncio.create_task(asyncio.to_thread(self._store.lookup, "health"))
            self._probe.add_done_callback(lambda probe: probe.exception())  # whoever asked may have gone
        try:
            async with asyncio.timeout(PROBE_S):
                await asyncio.shield(self._probe)
        except TimeoutError:
            return "it does not answer"
        except Exception as error:
            return str(error) or type(error).__name__
        return self._commits.failure(FAILED_FOR_S)

    # ---- users and items -------------------------------------------------------------------------------------------

    async def put_items(self, items: Sequence[dict[str, Any]]) -> None:
        """Answers when all of them are durable."""
        await asyncio.to_thread(self._store.put_items, items)

    async def delete_item(self, item_id: str) -> None:
        """Takes the item out of feeds and of the catalogue until it is put again. Whether anybody knows it plays no
        part: a model may that was trained elsewhere. Repeated, it changes nothing."""
        gone = deleted_item(item_id)

        def change(stored: dict[str, Any] | None) -> dict[str, Any] | None:
            return None if stored == gone else gone

        await asyncio.to_thread(self._store.change_item, item_id, change)

    async def patch_item(self, item_id: str, changes: dict[str, Any]) -> dict[str, Any] | None:
        """The item with some fields changed; None where nobody knows it."""

        def patch() -> dict[str, Any] | None:
            imported = read_item(self._root, item_id)

            def change(stored: dict[str, Any] | None) -> dict[str, Any] | None:
                item = stored or imported
                return None if item is None or is_deleted(item) else {**item, **changes}

            return self._store.change_item(item_id, change)

        return await asyncio.to_thread(patch)

    async def item(self, item_id: str) -> dict[str, Any] | None:
        """An item as it was put last, or else as it was imported."""

        def find() -> dict[str, Any] | None:
            item = self._store.item(item_id) or read_item(self._root, item_id)
            return None if item is None or is_deleted(item) else item

        return await asyncio.to_thread(find)

    async def put_user(self, user: dict[str, Any]) -> None:
        await asyncio.to_thread(self._store.put_user, user)

    async def user(self, user_id: str) -> dict[str, Any] | None:
        return await asyncio.to_thread(self._store.user, user_id)

    async def merge(self, anonymous_id: str, user_id: str, now_ms: int) -> list[AppendStatus]:
        """Copies what is stored of an anonymous user to a known one, as actions that arrive now: no answer given
        before knew that they were this user's. A repeated merge adds nothing."""
        found = await self.lookup(anonymous_id)
        history, names = found.history, self._domain.knowing(found.history.action_E).vocabulary.names
        rows = zip(
            history.event_hash_E.tolist(),
            found.item_ids,
            history.action_E.tolist(),
            history.timestamp_ms_E.tolist(),
            strict=True,
        )
        events = [
            Event(
                event_id=f"m-{event_hash:016x}",
                user_id=user_id,
                item_id=item_id,
                action=names[action - FIRST_ACTION_ID],
                timestamp_ms=timestamp_ms,
                received_at_ms=now_ms,
            )
            for event_hash, item_id, action, timestamp_ms in rows
            if action >= FIRST_ACTION_ID
        ]
        return await self.append(events) if events else []

    async def erase(self, user_id: str, now_ms: int) -> None:
        """Hides the user from feeds, and from everything that is built from the logs from now on. `rayapp compact`
        removes what is on disk."""

        def erase() -> None:
            erase_user(self._root, user_id, now_ms)
            self._store.erase(user_id, now_ms)

        await asyncio.to_thread(erase)

    def close(self) -> None:
        self._store.close()
