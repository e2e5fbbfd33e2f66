"""Calibrated re-ranking: a list whose categories are those of what the user liked lately (Steck, RecSys 2018).

Place by place the greedy choice weighs an item's score against how far the list with it would be from the target, by
the Kullback-Leibler divergence of their categories. The target mixes what the user liked lately less what they hid, the
newest most, with what the feed would show by score alone: a new user's feed is the feed's own.

Shapes: C candidates, P candidates that are still free, G categories of the target.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rayapp.retrieval.candidates import Judged

Floats = NDArray[np.float64]
HALF_LIFE: Final = 5.0
"""A like counts half as much as the one that came so many likes or hidden items later; what was hidden counts against
its categories, as much."""
FEED_LIKES: Final = 2.0
"""The feed's own categories count as so many of the newest likes."""
SMOOTHING: Final = 0.01
"""Of the target in the list's categories, as in the paper: a category that the list lacks must not cost infinitely."""
CALIBRATED_PLACES: Final = 50
"""Below them a list goes by score again: each place costs a look at all candidates and categories."""


class Target:
    """What a list's categories should be, and what they are so far. Filled from the top."""

    def __init__(self, values: Sequence[tuple[str, ...]], judged: Sequence[Judged], first: Sequence[int]) -> None:
        """`values`: of each candidate; `judged`: likes and hidden items, newest first; `first`: the candidates that
        would be shown by score alone."""
        net: dict[str, float] = {}
        for n, one in enumerate(judged):
            weight = 0.5 ** (n / HALF_LIFE) * (1 if one.liked else -1)
            for value in one.values:
                net[value] = net.get(value, 0.0) + weight / len(one.values)
        wanted = {value: weight for value, weight in net.items() if weight > 0}
        for c in first:
            for value in values[c]:
                wanted[value] = wanted.get(value, 0.0) + FEED_LIKES / len(first) / len(values[c])
        number = {value: g for g, value in enumerate(wanted)}
        total = sum(wanted.values())
        self._wanted_G = np.array(list(wanted.values())) / max(total, 1e-12)
        self._share_CG = np.zeros((len(values), len(wanted)))
        """Of each candidate's categories; a row sums to less than 1 where the target lacks some of them."""
        for c, has in enumerate(values):
            for value in has:
                if value in number:
                    self._share_CG[c, number[value]] += 1 / len(has)
        self._sum_G, self._places = np.zeros(len(wanted)), 0

    def divergence(self, candidate_P: NDArray[np.int64]) -> Floats:
        """`[P]`: of the target from the list with one candidate more; zeros where nothing is calibrated any more."""
        if self._places >= CALIBRATED_PLACES or not len(self._wanted_G):
            return np.zeros(len(candidate_P))
        list_PG = (self._sum_G + self._share_CG[candidate_P]) / (self._places + 1)
        list_PG = (1 - SMOOTHING) * list_PG + SMOOTHING * self._wanted_G
        return np.asarray((self._wanted_G * np.log(self._wanted_G / list_PG)).sum(axis=1))

    def take(self, candidate: int) -> None:
        """Puts a candidate at the next place."""
        self._sum_G += self._share_CG[candidate]
        self._places += 1
