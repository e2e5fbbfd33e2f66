"""Whether an experiment has to stop: a guardrail was crossed, or not, at any of the daily looks so far.

The decision is a function of the days' data alone. It does not depend on how often it was asked for: a day on which
nobody looked is looked at later, with that day's data and that day's boundary.

Shapes: K daily looks.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from rayapp.experiments.declaration import Experiment
from rayapp.experiments.effects import Estimate, Rates, rates
from rayapp.experiments.moments import Moments
from rayapp.experiments.sequential import boundaries, correlation

ALPHA: Final = 0.05
"""The chance that an experiment without any effect is ever stopped, over all guardrails, arms and days together."""


@dataclass(frozen=True, slots=True)
class Guarded:
    """One guardrail in one arm."""

    arm: str
    head: str
    must_not: str
    statistics: list[float | None]
    """Of each daily look, in standard errors of the difference; above 0 is the wrong direction."""
    boundaries: list[float | None]
    """None: no difference would have been enough."""
    crossed_day: int | None
    """The first day, counted from 1, whose statistic exceeds its boundary."""


def judge(
    experiment: Experiment, per_item: list[Moments], head_names: tuple[str, ...], alpha: float = ALPHA
) -> list[Guarded]:
    """Each guardrail in each arm but the first, which is the control. `per_item` holds each arm's moments of the days
    up to each look.

    The rate `alpha` is divided by the number of guardrails and arms (Bonferroni), so all together stay within it.
    """
    control, *treatments = per_item
    tests = len(experiment.guardrails) * len(treatments)
    found = []
    for arm, treatment in zip(experiment.arms[1:], treatments, strict=True):
        for guardrail in experiment.guardrails:
            head = head_names.index(guardrail.head)
            difference = rates(treatment, head) - rates(control, head)
            bound_K = daily_boundaries(difference, experiment.planned_days, alpha / tests)
            sign = 1.0 if guardrail.must_not == "rise" else -1.0
            with np.errstate(divide="ignore", invalid="ignore"):
                statistic_K = sign * difference.rate_Q / difference.deviations
            crossed = np.flatnonzero(statistic_K > bound_K)
            found.append(
                Guarded(
                    arm.name,
                    guardrail.head,
                    guardrail.must_not,
                    [float(z) if np.isfinite(z) else None for z in statistic_K],
                    [float(b) if np.isfinite(b) else None for b in bound_K],
                    int(crossed[0]) + 1 if len(crossed) else None,
                )
            )
    return found


def daily_boundaries(
    difference: Rates, planned_days: int, alpha: float
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """One-sided, for each look so far."""
    fraction_K = np.arange(1, len(difference.rate_Q) + 1) / planned_days
    return boundaries(correlation(difference.covariance_QQ), fraction_K, alpha)


def repeated_interval(difference: Rates, planned_days: int) -> Estimate:
    """The difference so far, with an interval that holds the truth on all days at once with 95 % (Jennison and
    Turnbull: Interim analyses: the repeated confidence interval approach, JRSS B 1989). Wide on the first days; on the
    last day little wider than the interval of somebody who looks once."""
    bound_K = daily_boundaries(difference, planned_days, ALPHA / 2)
    return difference.estimate(-1, float(bound_K[-1]))
