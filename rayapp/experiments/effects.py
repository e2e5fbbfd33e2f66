"""Rates, differences of rates, and their covariances over looks, by user.

A rate is a ratio of two sums over users, and users are what was dealt to the arms, so its variance is the delta
method's over users, not over shown items (Deng, Knoblich, Lu: Applying the Delta Method in Metric Analytics, KDD 2018).

Shapes: Q spans of time (looks, or before and after), H heads.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rayapp.experiments.moments import Moments

NORMAL_95: Final = 1.959964
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with the two ends of its interval; None where there are no data."""

    value: float | None
    low: float | None = None
    high: float | None = None

    @staticmethod
    def of(value: float, deviation: float, width: float = NORMAL_95) -> "Estimate":
        if not (np.isfinite(value) and np.isfinite(deviation)):
            return Estimate(None)
        if not np.isfinite(width):
            return Estimate(float(value))
        return Estimate(float(value), float(value - width * deviation), float(value + width * deviation))


@dataclass(frozen=True, slots=True)
class Rates:
    """A head's rate in each span, and the covariance of these rates; NaN where nothing was shown."""

    rate_Q: Floats
    covariance_QQ: Floats

    def __sub__(self, other: "Rates") -> "Rates":
        """Of two arms: they have no user in common."""
        return Rates(self.rate_Q - other.rate_Q, self.covariance_QQ + other.covariance_QQ)

    @property
    def deviations(self) -> Floats:
        return np.sqrt(np.maximum(np.diagonal(self.covariance_QQ), 0.0))

    def estimate(self, q: int, width: float = NORMAL_95) -> Estimate:
        return Estimate.of(self.rate_Q[q], self.deviations[q], width)


def rates(moments: Moments, head: int) -> Rates:
    """The head's rates in the spans of `moments`."""
    with np.errstate(divide="ignore", invalid="ignore"):
        rate_Q = moments.x_PH[:, head] / moments.n_P
        xn_QQ = moments.xn_PPH[:, :, head]
        residual_QQ = (
            moments.xx_PPH[:, :, head]
            - rate_Q[None, :] * xn_QQ
            - rate_Q[:, None] * xn_QQ.T
            + rate_Q[:, None] * rate_Q[None, :] * moments.nn_PP
        )
        return Rates(rate_Q, residual_QQ / (moments.n_P[:, None] * moments.n_P[None, :]))
