"""The stage that owns the sequence store: appends are grouped into one durable transaction, look-ups read."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve import metrics

from rayapp.contracts.hashing import hash64
from rayapp.contracts.schema import FIRST_ACTION_ID, ActionKind, Event
from rayapp.root.catalogue import read_item
from rayapp.root.erasure import erase_user
from rayapp.root.facts import read_root
from rayapp.serving.trends import Trends
from rayapp.store import AppendStatus, Outbox, OutboxKind, StoreError, UserSequence
from rayapp.store.opening import open_for_graph

log = logging.getLogger(__name__)
GROUP_EVENTS = 5_000
"""Events committed together at the most; one fsync acknowledges every request in the group."""
MAX_PENDING_EVENTS = 20_000
"""Events that may wait for a commit; more are refused, to be sent again."""
PROBE_S = 0.5
"""How long whoever asks after the store waits for it."""
FAILED_FOR_S = 10.0
"""The store counts as unwell this long after a write that failed."""
TRENDING = 500
"""Items told to the candidates."""
WARM_UP_ROWS = 20_000
"""Rows of the outbox that a new replica counts as what happened lately."""
FRESHNESS_MS = [5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 60_000]


class Busy(StoreError):
    """Too much waits for a commit already."""


@serve.deployment
class Sequences:
    """Everything that is stored of users and items goes through here."""

    def __init__(self, root: str, store: str | None) -> None:
        self._root = Path(root)
        domain, num_buckets = read_root(self._root)
        self._store = open_for_graph(self._root, store)
        self._names = domain.vocabulary.names
        self._positive = {a.name for a in domain.vocabulary.actions if a.kind is ActionKind.POSITIVE}
        self._pending: list[tuple[list[Event], asyncio.Future[list[AppendStatus]]]] = []
        self._pending_events = 0
        self._rows: list[tuple[Sequence[dict[str, Any]], asyncio.Future[None]]] = []
        self._writer: asyncio.Task[None] | None = None
        self._problem: tuple[float, str] | None = None
        self._probe: asyncio.Task[UserSequence] | None = None
        self._trends = _recent(self._store, num_buckets, self._positive)
        self._measuring: asyncio.Task[None] | None = None
        self._freshness_ms = metrics.Histogram(
            "rayapp_freshness_ms", "From the receipt of an action to a look-up that shows it.", FRESHNESS_MS
        )

    # ---- events and requests ---------------------------------------------------------------------------------------

    async def append(self, events: list[Event]) -> list[AppendStatus]:
        """Answers when the events are durable. Requests that arrive during a commit share the next one.

        Raises:
            Busy: more than MAX_PENDING_EVENTS wait.
            StoreError: they can't be made durable now.
        """
        if self._pending_events + len(events) > MAX_PENDING_EVENTS:
            raise Busy(f"{self._pending_events} events wait to be made durable; send these again in a second")
        future: asyncio.Future[list[AppendStatus]] = asyncio.get_running_loop().create_future()
        self._pending.append((events, future))
        self._pending_events += len(events)
        self._wake()
        return await future

    async def log_requests(self, rows: Sequence[dict[str, Any]]) -> None:
        """Puts rows of the request log into the outbox."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._rows.append((rows, future))
        self._wake()
        await future

    def _wake(self) -> None:
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._commit_pending())

    async def _commit_pending(self) -> None:
        while self._pending or self._rows:
            if self._pending:
                await self._commit_events()
            if self._rows:
                groups, self._rows = self._rows, []
                if await self._write(groups, self._store.log_requests):
                    for _, future in groups:
                        _answer(future, None)

    async def _commit_events(self) -> None:
        groups, size = [self._pending.pop(0)], 0
        while self._pending and (size := size + len(groups[-1][0])) < GROUP_EVENTS:
            groups.append(self._pending.pop(0))
        self._pending_events -= sum(len(events) for events, _ in groups)
        written = await self._write(groups, self._store.append)
        if not written:
            return
        (outcomes,) = written
        at = 0
        for events, future in groups:
            _answer(future, outcomes[at : at + len(events)])
            at += len(events)
        # Behind the answers: nobody waits for this, and what goes wrong in it leaves nobody waiting.
        now_ms = time.time_ns() // 1_000_000
        every = (event for events, _ in groups for event in events)
        accepted = [event for event, outcome in zip(every, outcomes, strict=True) if outcome is AppendStatus.ACCEPTED]
        for event in accepted:
            if event.action in self._positive:
                self._trends.add([event.item_id], min(event.timestamp_ms, now_ms))
        if accepted and (self._measuring is None or self._measuring.done()):
            self._measuring = asyncio.create_task(self._measure(min(accepted, key=lambda e: e.received_at_ms)))

    async def _measure(self, event: Event) -> None:
        """How long an action took from its receipt until a look-up shows it: of a commit the one that waited longest.

        One look-up at a time; whoever reads the user's sequence, and when, is no part of it. A late action that is
        older than all that are stored is never shown, and not measured.
        """
        with contextlib.suppress(StoreError):
            found = await asyncio.to_thread(self._store.lookup, event.user_id)
            if hash64(event.event_id) in found.history.event_hash_E:
                self._freshness_ms.observe(max(time.time_ns() // 1_000_000 - event.received_at_ms, 0))

    async def _write(self, groups: list[tuple[Any, asyncio.Future[Any]]], write: Any) -> tuple[Any] | None:
        """What `write` returned for all groups at once; None where it failed, and then every waiting request has the
        store's own words."""
        try:
            result = await asyncio.to_thread(write, [row for rows, _ in groups for row in rows])
        except Exception as error:
            self._problem = (time.monotonic(), str(error))
            for _, future in groups:
                if not future.done():
                    future.set_exception(error)
            return None
        self._problem = None
        return (result,)

    async def lookup(self, user_id: str) -> UserSequence:
        return await asyncio.to_thread(self._store.lookup, user_id)

    async def trending(self) -> dict[str, float]:
        """What people liked lately, by item, the most liked 1."""
        return self._trends.top(TRENDING, time.time_ns() // 1_000_000)

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
        if self._problem is not None and time.monotonic() - self._problem[0] < FAILED_FOR_S:
            return self._problem[1]
        return None

    # ---- users and items -------------------------------------------------------------------------------------------

    async def put_item(self, item: dict[str, Any]) -> int:
        return await asyncio.to_thread(self._store.put_item, item)

    async def patch_item(self, item_id: str, changes: dict[str, Any]) -> dict[str, Any] | None:
        """The item with some fields changed; None where nobody knows it."""

        def patch() -> dict[str, Any] | None:
            imported = read_item(self._root, item_id)

            def change(stored: dict[str, Any] | None) -> dict[str, Any] | None:
                item = stored or imported
                return None if item is None else {**item, **changes}

            return self._store.change_item(item_id, change)

        return await asyncio.to_thread(patch)

    async def item(self, item_id: str) -> dict[str, Any] | None:
        """An item as it was put last, or else as it was imported."""
        return await asyncio.to_thread(lambda: self._store.item(item_id) or read_item(self._root, item_id))

    async def put_user(self, user: dict[str, Any]) -> None:
        await asyncio.to_thread(self._store.put_user, user)

    async def user(self, user_id: str) -> dict[str, Any] | None:
        return await asyncio.to_thread(self._store.user, user_id)

    async def merge(self, anonymous_id: str, user_id: str, now_ms: int) -> list[AppendStatus]:
        """Copies what is stored of an anonymous user to a known one, as actions that arrive now: no answer given
        before knew that they were this user's. A repeated merge adds nothing."""
        found = await asyncio.to_thread(self._store.lookup, anonymous_id)
        history = found.history
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
                action=self._names[action - FIRST_ACTION_ID],
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


def _answer(future: "asyncio.Future[Any]", value: Any) -> None:
    if not future.done():  # done: the client went away; what it sent is stored all the same
        future.set_result(value)


def _recent(store: Outbox, num_buckets: int, positive: set[str]) -> Trends:
    """What the outbox holds of the last hours, so that a new replica does not start without any trend."""
    trends = Trends()
    for bucket in range(num_buckets):
        for row in store.drain(bucket, 0, WARM_UP_ROWS // num_buckets):
            if row.kind is OutboxKind.EVENT and row.value["action"] in positive:
                trends.add([row.value["item_id"]], row.value["timestamp_ms"])
    return trends
