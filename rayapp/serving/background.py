"""Functions that are called again and again beside the requests, to keep what a replica holds fresh."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

log = logging.getLogger(__name__)
POLL_S: Final = 0.5
"""How often replicas look for a moved alias, a new item or a changed file."""


class Background:
    """The tasks of one replica."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []

    def every(self, seconds: float, refresh: Callable[[], Awaitable[Any]]) -> None:
        """Calls `refresh` again and again. What it raises is logged once in a row: what is broken may be mended."""
        self.run(self._forever(seconds, refresh))

    def run(self, forever: Any) -> None:
        """A coroutine that never ends."""
        self._tasks.append(asyncio.get_running_loop().create_task(forever))

    def check(self) -> None:
        """Raises:
        RuntimeError: one of them has ended.
        """
        if any(task.done() for task in self._tasks):
            raise RuntimeError("a task that keeps this replica fresh has ended")

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()

    @staticmethod
    async def _forever(seconds: float, refresh: Callable[[], Awaitable[Any]]) -> None:
        failed = False
        while True:
            await asyncio.sleep(seconds)
            try:
                await refresh()
                failed = False
            except Exception:
                if not failed:
                    log.exception("refreshing failed; keeping what is there")
                failed = True
