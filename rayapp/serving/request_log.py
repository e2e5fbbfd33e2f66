"""The request log on its way out: rows wait in memory for a moment, so that no answer waits for them.

What can be lost is bounded and counted: rows beyond MAX_WAITING while the store is away, and those of a process that is
killed.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

log = logging.getLogger(__name__)
FLUSH_S: Final = 0.2
MAX_ROWS: Final = 500
"""Sent at once."""
MAX_WAITING: Final = 10_000
Row = dict[str, Any]


class RequestLog:
    """Collects rows and hands them to `send` in order, from one task at a time."""

    def __init__(self, send: Callable[[Sequence[Row]], Awaitable[Any]], lost: Callable[[int], None]) -> None:
        """`lost` is told how many rows were dropped."""
        self._send, self._lost = send, lost
        self._rows: deque[Row] = deque()

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, row: Row) -> None:
        """Never waits; beyond MAX_WAITING the oldest row goes."""
        if len(self._rows) >= MAX_WAITING:
            self._rows.popleft()
            self._lost(1)
        self._rows.append(row)

    async def flush(self) -> None:
        """Sends what waits.

        Raises:
            Exception: what `send` raised; its rows wait on.
        """
        while self._rows:
            part = [self._rows.popleft() for _ in range(min(MAX_ROWS, len(self._rows)))]
            try:
                await self._send(part)
            except BaseException:
                self._rows.extendleft(reversed(part))
                while len(self._rows) > MAX_WAITING:
                    self._rows.popleft()
                    self._lost(1)
                raise

    async def run(self) -> None:
        """Flushes again and again; a store that is away is told once and tried on."""
        told = False
        while True:
            await asyncio.sleep(FLUSH_S)
            try:
                await self.flush()
                told = False
            except Exception as error:
                if not told:
                    log.warning("the request log waits: %s", error)
                told = True
