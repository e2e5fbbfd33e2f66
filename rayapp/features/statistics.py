"""Decayed counts as of a moment: how often something was shown, and how often what was done, with the past fading.

Forward decay (Cormode et al., ICDE 2009) in fixed point. Time is cut into steps of a grid. An increment of step j
weighs 2 ** (position of j in its epoch / half-life), rounded to an integer, and an epoch spans EPOCH_HALF_LIVES
half-lives; sums of integers are the same in any order, so a count that was folded from the log and one that was folded
live, bucket by bucket, are equal. A count at step k is made of the sums of the newest KEPT_EPOCHS epochs, each scaled
down to k. What a count at time t holds was received before the last boundary of the grid at or before t.

Shapes: E increments, Q queries, S half-lives, A counted kinds (impressions and actions).
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rayapp.contracts.config import FOREVER as FOREVER  # noqa: PLC0414
from rayapp.contracts.config import Domain
from rayapp.contracts.hashing import places_of

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
EPOCH_HALF_LIVES: Final = 12
KEPT_EPOCHS: Final = 3
"""What is older than two whole epochs weighs less than 2 ** -24 and is left out."""
SPAN: Final = np.int64(1) << 32
"""More steps than any grid has: key rank and step fit one integer."""
UNIT: Final = 1 << 8
"""Weight of an increment at the start of an epoch: rounding is off by 0.2 % at the most."""


@dataclass(frozen=True, slots=True)
class Grid:
    """How finely time is cut, and how fast counts fade."""

    step_ms: int
    half_lives_ms: tuple[int, ...]
    """Multiples of `step_ms`; FOREVER for a count that does not fade."""

    def __post_init__(self) -> None:
        if self.step_ms <= 0:
            raise ValueError(f"a step of the grid takes more than {self.step_ms} ms")
        if bad := [h for h in self.half_lives_ms if h < 0 or h % self.step_ms]:
            raise ValueError(f"half-lives are multiples of the grid's step of {self.step_ms} ms, not {bad}")

    @staticmethod
    def of(domain: Domain) -> "Grid":
        """The one that the domain's statistics are known on."""
        return Grid(domain.statistics_step_ms, domain.half_lives_ms)

    def step(self, timestamp_ms: Ints) -> Ints:
        """The step that a moment lies in."""
        return np.asarray(timestamp_ms // self.step_ms)

    def epoch_steps(self, s: int) -> int:
        """Steps of an epoch of the s-th half-life; 0 where nothing fades."""
        return EPOCH_HALF_LIVES * self.half_lives_ms[s] // self.step_ms

    def weight(self, step_E: Ints, s: int) -> Ints:
        """Integer weights of increments for the s-th half-life."""
        if self.half_lives_ms[s] == FOREVER:
            return np.full(len(step_E), UNIT)
        half_life = self.half_lives_ms[s] // self.step_ms
        of_place = np.rint(UNIT * 2.0 ** (np.arange(self.epoch_steps(s)) / half_life)).astype(np.int64)
        return of_place[step_E % self.epoch_steps(s)]


class DecayedCounts:
    """Increments of many keys, sorted, and the counts of any key as of any moment."""

    def __init__(self, grid: Grid, key_E: NDArray[np.uint64], step_E: Ints, count_EA: Ints) -> None:
        """`key_E`: what is counted; `count_EA`: what happened to it in that step. Any order; repeats add up."""
        order = np.lexsort((step_E, key_E))
        self.grid, step_E = grid, step_E[order]
        self._key_K, rank_E = np.unique(key_E[order], return_inverse=True)
        self._place_E = rank_E * SPAN + step_E
        zero_A = np.zeros((1, count_EA.shape[1]), np.int64)
        self._up_to = [
            np.concatenate([zero_A, np.cumsum(count_EA[order] * grid.weight(step_E, s)[:, None], axis=0)])
            for s in range(len(grid.half_lives_ms))
        ]

    def at(self, key_Q: NDArray[np.uint64], timestamp_ms_Q: Ints) -> Floats:
        """`[Q, S, A]`: the counts of each key at its moment; zeros for a key that nothing happened to."""
        grid, num_kinds = self.grid, self._up_to[0].shape[1]
        count_QSA = np.zeros((len(key_Q), len(grid.half_lives_ms), num_kinds))
        rank_Q, known_Q = places_of(self._key_K, key_Q)
        rank_Q, step_Q = rank_Q[known_Q], grid.step(timestamp_ms_Q[known_Q])
        for s, half_life_ms in enumerate(grid.half_lives_ms):
            if half_life_ms == FOREVER:
                count_QSA[known_Q, s] = self._between(s, rank_Q, np.zeros_like(step_Q), step_Q) / UNIT
                continue
            epoch_steps, half_life = grid.epoch_steps(s), half_life_ms // grid.step_ms
            for back in range(KEPT_EPOCHS):
                since_Q = (step_Q // epoch_steps - back) * epoch_steps
                sum_QA = self._between(s, rank_Q, since_Q, np.minimum(since_Q + epoch_steps, step_Q))
                count_QSA[known_Q, s] += sum_QA * (2.0 ** (-(step_Q - since_Q) / half_life) / UNIT)[:, None]
        return count_QSA

    def _between(self, s: int, rank_Q: Ints, since_Q: Ints, until_Q: Ints) -> Ints:
        """Sums of the weighted increments of the steps `[since, until)`."""
        low_Q, high_Q = (np.searchsorted(self._place_E, rank_Q * SPAN + step.clip(0)) for step in (since_Q, until_Q))
        return np.asarray(self._up_to[s][high_Q] - self._up_to[s][low_Q])
