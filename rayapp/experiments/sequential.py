"""Boundaries that hold a false-alarm rate however often one looks.

The rate alpha is spent over the planned looks as a function of time alone (Lan and DeMets: Discrete sequential
boundaries for clinical trials, Biometrika 1983), with the function that resembles O'Brien and Fleming's boundaries:
next to nothing on the first days, most of it on the last. So an early look costs little, and a look that was left out
costs nothing.

Looks at one experiment share its users, so their test statistics are correlated, and how much depends on who comes
back. The correlation is estimated from the users; the boundaries are quantiles of many draws with that correlation.

Shapes: K looks, S draws.
"""

import functools
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
NUM_DRAWS: Final = 32_768
"""The standard error of a boundary's false-alarm rate of 5 % is then 0.12 %."""
FEW: Final = 20
"""Fewer draws than these tell no quantile; such a look gets the boundary that it would have alone, which is higher."""
NORMAL: Final = NormalDist()
JITTER: Final = 1e-9


def spent(alpha: float, fraction: float) -> float:
    """How much of `alpha` may be spent when this fraction of the plan is over (one-sided)."""
    if fraction <= 0:
        return 0.0
    return 2 * NORMAL.cdf(NORMAL.inv_cdf(alpha / 2) / min(fraction, 1.0) ** 0.5)


def boundaries(correlation_KK: Floats, fraction_K: Floats, alpha: float) -> Floats:
    """What the statistic of each look has to exceed, so that under no effect any does with probability `alpha`, once
    the plan is over.

    A look whose row of the correlation is not finite can't alarm; what it would have spent is left to the next.
    """
    bound_K = np.full(len(fraction_K), np.inf)
    usable = np.flatnonzero(np.isfinite(np.diagonal(correlation_KK)))
    if not len(usable):
        return bound_K
    factor = np.linalg.cholesky(correlation_KK[np.ix_(usable, usable)] + JITTER * np.eye(len(usable)))
    alive_S, before = np.ones(NUM_DRAWS, bool), 0.0
    for row, k in enumerate(usable):
        now = spent(alpha, float(fraction_K[k]))
        z_S = factor[row, : row + 1].astype(np.float32) @ _draws(len(usable))[: row + 1]
        count = round(now * NUM_DRAWS) - int((~alive_S).sum())
        if count >= FEW:
            bound_K[k] = -np.partition(-z_S[alive_S], count)[count]
        elif now > before:
            bound_K[k] = -NORMAL.inv_cdf(max(now - before, 1e-300))
        alive_S &= z_S <= bound_K[k]
        before = now
    return bound_K


@functools.lru_cache(maxsize=4)
def _draws(num_looks: int) -> NDArray[np.float32]:
    """The same for everybody, and those of k looks are the first of those of k + 1: a look never moves the bounds of
    the looks before it."""
    return np.random.default_rng(0).standard_normal((num_looks, NUM_DRAWS), np.float32)


def correlation(covariance_KK: Floats) -> Floats:
    """NaN for looks without any variance."""
    deviation_K = np.sqrt(np.where(np.diagonal(covariance_KK) > 0, np.diagonal(covariance_KK), np.nan))
    return np.asarray(covariance_KK / (deviation_K[:, None] * deviation_K[None, :]))
