"""Statistics as of each step of the grid, once it is over: what was counted last, and all rows that came since."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from rayapp.contracts.config import Domain
from rayapp.features.item_values import ItemValues
from rayapp.features.statistics import Grid
from rayapp.serving.rows_since import RowsSince
from rayapp.statistics.known import Base, Statistics, load_base, newest_statistics
from rayapp.store import Store

GRACE_MS: Final = 2_000
"""A step is closed so long after its end: what was received in it is stored by then."""


class ClosedStep(NamedTuple):
    """What was known at the beginning of a step, on all replicas alike."""

    statistics: Statistics
    step: int


class ClosedSteps:
    """Of one replica. `read` and `close` are called by one thread at a time."""

    def __init__(self, root: Path, domain: Domain, store: Store, time_ns: Callable[[], int] = time.time_ns) -> None:
        """`time_ns`: the clock. Reads nothing yet."""
        self._root, self.domain, self._store, self._time_ns = root, domain, store, time_ns
        self._step_ms = Grid.of(domain).step_ms
        self._since: RowsSince | None = None
        self._over = -1
        """The last step that was over when `read` began: all its rows are read."""

    def last_over(self) -> int:
        """The last step that may be closed."""
        return (self._time_ns() // 1_000_000 - GRACE_MS) // self._step_ms

    def read(self) -> None:
        """Reads what is new.

        Raises:
            PublishError: the statistics that were counted last, or a log, can't be read.
            StoreError: the store does not answer.
        """
        self._over, name = self.last_over(), newest_statistics(self._root, self.domain) or ""
        if self._since is None or self._since.base.name != name:
            base = load_base(self._root, name, self.domain) if name else Base.nothing(self.domain)
            self._since = RowsSince(self._root, self.domain, self._store, base)
        while self._since.read():
            pass

    def close(self, values: Callable[[Base], ItemValues]) -> ClosedStep | None:
        """The last step that is over; None where that was closed before, or is not read whole yet.

        `values` tells the categories of the items, whose counts are part of the statistics.

        Raises:
            StoreError: the store does not answer.
        """
        step = self._over
        if self._since is None or self._since.step >= step:
            return None
        item_values = values(self._since.base)
        if not self._since.close(step, item_values):
            return None
        return ClosedStep(self._since.base.statistics.with_counted(item_values, self._since.counted), step)
