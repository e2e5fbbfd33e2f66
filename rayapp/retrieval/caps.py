"""Caps: at most so many items of one value of an attribute among so many neighbouring places of a list.

A cap never shortens a list: where all that is left would break it, the best of that follows.

Shapes: C candidates, W values of one attribute that a candidate has, padded.
"""

from collections import Counter, deque
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from rayapp.contracts.config import Cap

Rows = NDArray[np.int64]
Values = Mapping[str, Sequence[tuple[str, ...]]]
"""Attribute -> of each candidate the values it has."""


class Places:
    """A list that fills place by place, from the top, under caps."""

    def __init__(self, caps: Mapping[str, Cap], values: Values) -> None:
        """Attributes that `values` lack, as where no candidates came, have no cap."""
        self._attributes = [_Attribute(caps[name], values[name]) for name in caps if name in values]

    def blocked(self, candidates: Rows) -> NDArray[np.bool_]:
        """Which of these candidates would break a cap at the next place; none where all would."""
        blocked = np.zeros(len(candidates), bool)
        for attribute in self._attributes:
            blocked |= attribute.blocked(candidates)
        return blocked if not blocked.all() else np.zeros(len(candidates), bool)

    def take(self, candidate: int) -> None:
        """Puts a candidate at the next place."""
        for attribute in self._attributes:
            attribute.take(candidate)


class _Attribute:
    """One cap, and what stands at the last places."""

    def __init__(self, cap: Cap, values: Sequence[tuple[str, ...]]) -> None:
        self._most, self._of = cap.most, cap.of
        ids: dict[str, int] = {}
        numbered = [[ids.setdefault(value, len(ids) + 1) for value in dict.fromkeys(has)] for has in values]
        self._value_CW = np.zeros((len(numbered), max(map(len, numbered), default=0)), np.int64)
        for c, has in enumerate(numbered):
            self._value_CW[c, : len(has)] = has
        self._full = np.zeros(len(ids) + 1, bool)
        """By number of a value; 0 stands for none and is never full."""
        self._count: Counter[int] = Counter()
        self._places: deque[list[int]] = deque()
        self._numbered = numbered

    def blocked(self, candidates: Rows) -> NDArray[np.bool_]:
        return np.asarray(self._full[self._value_CW[candidates]].any(axis=1))

    def take(self, candidate: int) -> None:
        self._places.append(self._numbered[candidate])
        self._change(self._numbered[candidate], 1)
        if len(self._places) == self._of:  # the next place has this many above it, less one
            self._change(self._places.popleft(), -1)

    def _change(self, has: list[int], by: int) -> None:
        for value in has:
            self._count[value] += by
            self._full[value] = self._count[value] >= self._most


def capped_by_tier(order: Rows, tier_C: Rows, count: int, places: Places) -> list[int]:
    """`capped`, where candidates of a lower tier stand above all others, cap or not."""
    chosen: list[int] = []
    for tier in np.unique(tier_C[order]).tolist():
        chosen += capped(order[tier_C[order] == tier], count - len(chosen), places)
    return chosen


def capped(order: Rows, count: int, places: Places) -> list[int]:
    """The first `count` candidates of an order that is best first, each as far up as `places` let it."""
    left, chosen = order, list[int]()
    while len(chosen) < count and len(left):
        best = int(np.argmin(places.blocked(left)))
        chosen.append(int(left[best]))
        places.take(chosen[-1])
        left = np.delete(left, best)
    return chosen
