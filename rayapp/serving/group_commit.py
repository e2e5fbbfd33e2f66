"""Appends that arrive while the store commits share its next commit: one fsync acknowledges them all."""

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from rayapp.contracts.schema import Event
from rayapp.store import AppendStatus, Store, StoreError

GROUP_EVENTS: Final = 5_000
"""Events committed together at the most."""
MAX_PENDING_EVENTS: Final = 20_000
"""Events that may wait for a commit; more are refused, to be sent again."""


class Busy(StoreError):
    """Too much waits for a commit already."""


class GroupCommit:
    """Writes events, and rows of the request log, from one task at a time of the event loop that it is used in."""

    def __init__(self, store: Store, accepted: Callable[[list[Event]], None]) -> None:
        """`accepted` is told, once their senders have their answers, which events of a commit were new."""
        self._store, self._accepted = store, accepted
        self._pending: list[tuple[list[Event], asyncio.Future[list[AppendStatus]]]] = []
        self._pending_events = 0
        self._rows: list[tuple[Sequence[dict[str, Any]], asyncio.Future[None]]] = []
        self._rest_items = 0
        self._writer: asyncio.Task[None] | None = None
        self._failure: tuple[float, str] | None = None

    async def append(self, events: list[Event]) -> list[AppendStatus]:
        """Answers when the events are durable.

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

    async def log_requests(self, rows: Sequence[dict[str, Any]], rest_items: int = 0) -> None:
        """Puts rows of the request log into the outbox; of each user the last `rest_items` shown items are kept."""
        self._rest_items = rest_items
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._rows.append((rows, future))
        self._wake()
        await future

    def failure(self, within_s: float) -> str | None:
        """Why the last write failed, if it did so in the last `within_s` seconds."""
        if self._failure is not None and time.monotonic() - self._failure[0] < within_s:
            return self._failure[1]
        return None

    def _wake(self) -> None:
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._commit_pending())

    async def _commit_pending(self) -> None:
        while self._pending or self._rows:
            if self._pending:
                await self._commit_events()
            if self._rows:
                groups, self._rows = self._rows, []
                if await self._write(groups, partial(self._store.log_requests, rest_items=self._rest_items)):
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
        every = (event for events, _ in groups for event in events)
        self._accepted([e for e, outcome in zip(every, outcomes, strict=True) if outcome is AppendStatus.ACCEPTED])

    async def _write(self, groups: list[tuple[Any, asyncio.Future[Any]]], write: Any) -> tuple[Any] | None:
        """What `write` returned for all groups at once; None where it failed, and then every waiting request has the
        store's own words."""
        try:
            result = await asyncio.to_thread(write, [row for rows, _ in groups for row in rows])
        except Exception as error:
            self._failure = (time.monotonic(), str(error))
            for _, future in groups:
                if not future.done():
                    future.set_exception(error)
            return None
        self._failure = None
        return (result,)


def _answer(future: "asyncio.Future[Any]", value: Any) -> None:
    if not future.done():  # done: the client went away; what it sent is stored all the same
        future.set_result(value)
