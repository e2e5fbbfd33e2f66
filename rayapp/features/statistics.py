"""Decayed counts as of a moment: how often something was shown, and how often what was done, with the past fading.

Forward decay (Cormode et al., ICDE 2009) in fixed point. Time is cut into steps of a grid. An increment of step j
weighs 2 ** (position of j in its epoch / half-life), rounded to an integer, and an epoch spans EPOCH_HALF_LIVES
half-lives; sums of integers are the same in any order. What is kept is the count right after each increment, so that a
look-up finds one row and lets it fade. What a count at time t holds was received before the last boundary of the grid
at or before t.

Shapes: E increments, K keys, Q queries, S half-lives, A counted kinds (impressions and actions).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rayapp.contracts.config import FOREVER, Domain
from rayapp.contracts.hashing import places_of

Ints = NDArray[np.int64]
Hashes = NDArray[np.uint64]
Counts = NDArray[np.float32]
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

    def half_life(self, s: int) -> int:
        """In steps; 0 where nothing fades."""
        return self.half_lives_ms[s] // self.step_ms

    def faded(self, age_Q: Ints) -> NDArray[np.float64]:
        """`[Q, S]`: what is left of a count after so many steps."""
        left_QS = np.ones((len(age_Q), len(self.half_lives_ms)))
        for s, half_life_ms in enumerate(self.half_lives_ms):
            if half_life_ms != FOREVER:
                left_QS[:, s] = np.exp2(-age_Q / self.half_life(s))
        return left_QS


@dataclass(frozen=True, slots=True)
class Increments:
    """What happened to keys in steps of a grid."""

    key_E: Hashes
    step_E: Ints
    count_EA: Ints

    def __len__(self) -> int:
        return len(self.key_E)

    @staticmethod
    def none(num_kinds: int) -> "Increments":
        return Increments(np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros((0, num_kinds), np.int64))

    @staticmethod
    def added_up(parts: "list[Increments]") -> "Increments":
        """One for each key and step, in their order. `parts` must not be empty."""
        key_E, step_E, count_EA = (np.concatenate(column) for column in zip(*map(_columns, parts), strict=True))
        if not len(key_E):
            return Increments(key_E, step_E, count_EA)
        order = np.lexsort((step_E, key_E))
        key_E, step_E, count_EA = key_E[order], step_E[order], count_EA[order]
        first_E = np.r_[True, (key_E[1:] != key_E[:-1]) | (step_E[1:] != step_E[:-1])]
        return Increments(key_E[first_E], step_E[first_E], np.add.reduceat(count_EA, np.flatnonzero(first_E)))

    def take(self, rows: NDArray[Any]) -> "Increments":
        """Some of them."""
        return Increments(self.key_E[rows], self.step_E[rows], self.count_EA[rows])


def _columns(increments: Increments) -> tuple[Hashes, Ints, Ints]:
    return increments.key_E, increments.step_E, increments.count_EA


@dataclass(frozen=True, slots=True)
class DecayedCounts:
    """The counts of any key as of any moment. `of` makes them; arrays may lie in files that are mapped."""

    grid: Grid
    key_K: Hashes
    """Ascending."""
    place_E: Ints
    """Rank of the key * SPAN + step, ascending."""
    count_ESA: Counts
    """Right after each increment."""

    @staticmethod
    def of(grid: Grid, increments: Increments) -> "DecayedCounts":
        """Of what `Increments.added_up` gives."""
        key_K, rank_E = np.unique(increments.key_E, return_inverse=True)
        place_E, step_E = rank_E * SPAN + increments.step_E, increments.step_E
        num_kinds, num_half_lives = increments.count_EA.shape[1], len(grid.half_lives_ms)
        count_ESA = np.zeros((len(place_E), num_half_lives, num_kinds), np.float32)
        for s in range(num_half_lives):
            count_ESA[:, s] = _after_each(grid, s, place_E, step_E, increments.count_EA)
        return DecayedCounts(grid, key_K, place_E, count_ESA)

    def at(self, key_Q: Hashes, step_Q: Ints) -> NDArray[np.float64]:
        """`[Q, S, A]`: the counts of each key as of the beginning of its step; zeros for a key that nothing had
        happened to."""
        _, num_half_lives, num_kinds = self.count_ESA.shape
        count_QSA = np.zeros((len(key_Q), num_half_lives, num_kinds))
        rank_Q, known_Q = places_of(self.key_K, key_Q)
        at_Q = np.flatnonzero(known_Q)
        first_Q = rank_Q[at_Q] * SPAN
        place_Q = np.searchsorted(self.place_E, first_Q + step_Q[at_Q]) - 1
        some_Q = (place_Q >= 0) & (self.place_E[place_Q] >= first_Q)
        at_Q, place_Q, first_Q = at_Q[some_Q], place_Q[some_Q], first_Q[some_Q]
        since_Q = self.place_E[place_Q] - first_Q
        count_QSA[at_Q] = self.count_ESA[place_Q] * self.grid.faded(step_Q[at_Q] - since_Q)[:, :, None]
        return count_QSA

    def advanced(self, step: int, increments: Increments) -> "DecayedCounts":
        """With increments of steps before `step`, for look-ups at it or later: one row a key is kept."""
        new = DecayedCounts.of(self.grid, increments)
        key_K = np.union1d(self.key_K, new.key_K)
        step_K = np.full(len(key_K), step)
        left_S = self.grid.faded(np.ones(1, np.int64))[0]  # a look-up at `step` lets a count of the step before fade
        count_KSA = (self.at(key_K, step_K) + new.at(key_K, step_K)) / left_S[:, None]
        return DecayedCounts(self.grid, key_K, np.arange(len(key_K)) * SPAN + step - 1, count_KSA.astype(np.float32))

    def save(self, directory: Path) -> None:
        """As files that `load` maps into memory."""
        directory.mkdir(parents=True)
        for name in ARRAYS:
            np.save(directory / f"{name}.npy", getattr(self, name))

    @staticmethod
    def load(directory: Path, grid: Grid) -> "DecayedCounts":
        """Pages are read as they are asked for, and shared by all processes of a machine.

        Raises:
            OSError: a file is missing.
            ValueError: a file is damaged.
        """
        # As plain arrays of the same memory: a memmap object takes 40 µs for each look at it.
        mapped = (np.asarray(np.load(directory / f"{name}.npy", mmap_mode="r")) for name in ARRAYS)
        return DecayedCounts(grid, *mapped)


ARRAYS: Final = ("key_K", "place_E", "count_ESA")


def _after_each(grid: Grid, s: int, place_E: Ints, step_E: Ints, count_EA: Ints) -> NDArray[np.float64]:
    """`[E, A]`: the count of the s-th half-life right after each increment."""
    rank_E = place_E // SPAN
    if grid.half_lives_ms[s] == FOREVER:
        weight_E, steps = np.full(len(step_E), UNIT), int(SPAN)
    else:
        half_life, steps = grid.half_life(s), EPOCH_HALF_LIVES * grid.half_life(s)
        of_place = np.rint(UNIT * np.exp2(np.arange(steps) / half_life)).astype(np.int64)
        weight_E = of_place[step_E % steps]
    up_to_EA = np.concatenate([np.zeros((1, count_EA.shape[1]), np.int64), np.cumsum(count_EA * weight_E[:, None], 0)])
    total_EA = np.zeros(count_EA.shape)
    until_E = np.arange(1, len(step_E) + 1)
    for back in range(KEPT_EPOCHS):
        since_E = (step_E // steps - back) * steps
        first_E = np.searchsorted(place_E, rank_E * SPAN + since_E.clip(0))
        fades_E = np.ones(len(step_E)) if steps == SPAN else np.exp2(-(step_E - since_E) / grid.half_life(s))
        total_EA += (up_to_EA[until_E] - up_to_EA[first_E]) * (fades_E / UNIT)[:, None]
        if steps == SPAN:
            break
        until_E = first_E
    return total_EA
