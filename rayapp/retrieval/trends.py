"""Trending items: exponentially decayed counts of positive actions, as they arrive.

A count halves every HALF_LIFE_MS. Counts are kept as they would be at one reference time, at which an event weighs
`2 ** ((its time - reference) / half-life)`: then nothing has to be decayed when an event arrives, and late events weigh
what they should. (Forward decay: Cormode et al., ICDE 2009.)
"""

import heapq
from collections.abc import Iterable
from typing import Final

HALF_LIFE_MS: Final = 6 * 60 * 60 * 1000
MAX_ITEMS: Final = 50_000
"""Items kept when the counts are pruned, which is at twice as many."""
LEAST_COUNT: Final = 0.05
"""An item that has decayed to less does not trend: one action 26 hours ago."""
MAX_HALF_LIVES: Final = 64.0
"""The reference moves before an event would weigh more than 2 to this."""


class Trends:
    """Counts of one feed. Not for several threads at once."""

    def __init__(self) -> None:
        self._count: dict[str, float] = {}
        self._reference_ms: int | None = None

    def __len__(self) -> int:
        return len(self._count)

    def add(self, item_ids: Iterable[str], timestamp_ms: int) -> None:
        """One positive action on each of the items."""
        if self._reference_ms is None:
            self._reference_ms = timestamp_ms
        half_lives = (timestamp_ms - self._reference_ms) / HALF_LIFE_MS
        if half_lives > MAX_HALF_LIVES:
            self._move(timestamp_ms)
            half_lives = 0.0
        weight = 2.0**half_lives if half_lives > -MAX_HALF_LIVES else 0.0
        if not weight:
            return
        for item_id in item_ids:
            self._count[item_id] = self._count.get(item_id, 0.0) + weight
        if len(self._count) > 2 * MAX_ITEMS:
            self._count = dict(heapq.nlargest(MAX_ITEMS, self._count.items(), key=lambda pair: pair[1]))

    def top(self, num_items: int, now_ms: int) -> dict[str, float]:
        """The items of the highest counts, best first, and their counts over the highest one, in (0, 1]."""
        if self._reference_ms is None or not self._count:
            return {}
        half_lives = (now_ms - self._reference_ms) / HALF_LIFE_MS
        if half_lives > 10 * MAX_HALF_LIVES:
            return {}
        least = LEAST_COUNT * 2.0 ** max(half_lives, -MAX_HALF_LIVES)
        # Ties by id, so that replicas that saw the same events agree.
        best = heapq.nsmallest(num_items, self._count.items(), key=lambda pair: (-pair[1], pair[0]))
        highest = best[0][1] if best else 1.0
        return {item_id: count / highest for item_id, count in best if count >= least}

    def _move(self, reference_ms: int) -> None:
        assert self._reference_ms is not None
        half_lives = (reference_ms - self._reference_ms) / HALF_LIFE_MS
        factor = 2.0**-half_lives if half_lives < 10 * MAX_HALF_LIVES else 0.0
        moved = ((item_id, count * factor) for item_id, count in self._count.items())
        self._count = {item_id: count for item_id, count in moved if count > 2.0**-MAX_HALF_LIVES}
        self._reference_ms = reference_ms
