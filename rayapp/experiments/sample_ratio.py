"""Are the arms' users as many as were dealt to them?

When not, users of one arm were lost or counted twice on the way, and every comparison of the arms is one of different
people (Fabijan et al.: Diagnosing Sample Ratio Mismatch in Online Controlled Experiments, KDD 2019).

Shapes: K steps in which the shares grew, A arms.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

ALARM_P: Final = 0.001
MIN_EXPECTED: Final = 5.0
"""Users expected in each arm of a step that is tested: below, the statistic does not follow its distribution."""


@dataclass(frozen=True, slots=True)
class SampleRatio:
    """The test's result. `p_value` is None while there are too few users."""

    statistic: float
    degrees: int
    p_value: float | None
    misplaced: int
    """Users seen in an arm that their slot does not give, or in two."""

    @property
    def alarm(self) -> bool:
        return self.misplaced > 0 or (self.p_value is not None and self.p_value < ALARM_P)


def sample_ratio(users_KA: NDArray[np.int64], slots_KA: NDArray[np.int64], misplaced: int = 0) -> SampleRatio:
    """The chi-square test of users against slots.

    Users are counted by the step of growth that gave their slot. Within a step all arms began together, so users are
    expected in proportion to slots whatever the shares were before; over steps the statistics add up.
    """
    statistic, degrees = 0.0, 0
    for users_A, slots_A in zip(users_KA, slots_KA, strict=True):
        dealt = slots_A > 0
        if dealt.sum() < 2:
            continue
        expected = slots_A[dealt] * (users_A.sum() / slots_A.sum())
        if expected.min() >= MIN_EXPECTED:
            statistic += float(((users_A[dealt] - expected) ** 2 / expected).sum())
            degrees += int(dealt.sum()) - 1
    return SampleRatio(statistic, degrees, chi_square_tail(statistic, degrees) if degrees else None, misplaced)


def chi_square_tail(statistic: float, degrees: int) -> float:
    """The chance of a larger value; the closed form for whole degrees of freedom (Abramowitz and Stegun, 26.4.4-5)."""
    half = statistic / 2
    if degrees % 2:
        total, term, power = math.erfc(math.sqrt(half)), math.exp(-half) * math.sqrt(half) / math.gamma(1.5), 1.5
    else:
        total, term, power = 0.0, math.exp(-half), 1.0
    while power <= degrees / 2:
        total += term
        term *= half / power
        power += 1
    return total
