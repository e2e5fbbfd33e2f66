"""The report of one experiment: everything that `rayapp experiment report` says, as values.

Shapes: P periods, K daily looks, A arms.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rayapp.contracts.config import DAY_MS, Domain
from rayapp.experiments.assignment import Running, record_steps
from rayapp.experiments.collect import Tally, collect, complete_days, newest_request_ms
from rayapp.experiments.decision import Guarded, judge, repeated_interval
from rayapp.experiments.declaration import Experiment, ExperimentError
from rayapp.experiments.effects import Estimate, rates
from rayapp.experiments.moments import Moments
from rayapp.experiments.sample_ratio import SampleRatio, sample_ratio
from rayapp.registry.retrainings import Retraining, read_retrainings
from rayapp.root.places import EXPERIMENTS_FILE
from rayapp.root.publish import PublishError


@dataclass(frozen=True, slots=True)
class ArmRow:
    """What was seen of one arm. Rates have the 95 % interval of one look."""

    arm: str
    alias: str
    share: float
    users: int
    requests: int
    shown: int
    fallbacks: int
    versions: dict[str, int]
    per_item: dict[str, Estimate]
    per_request: dict[str, Estimate]


@dataclass(frozen=True, slots=True)
class DifferenceRow:
    """An arm's rate per shown item less the control's, with an interval that holds under daily looks."""

    arm: str
    head: str
    control: float | None
    difference: Estimate


@dataclass(frozen=True, slots=True)
class Around:
    """The difference to the control before a retraining and after it, each up to the next retraining or the end."""

    arm: str
    head: str
    before: Estimate
    after: Estimate
    change: Estimate
    """After less before, with users on both sides taken into account."""


@dataclass(frozen=True, slots=True)
class RetrainingRow:
    """One retraining within the experiment."""

    at_ms: int
    window: str
    aliases: dict[str, dict[str, str | None]]
    together: bool
    """Whether the model of every arm was trained anew in this run."""
    pooled: dict[str, float]
    """Who was shown the lists of the experiment so far, which the new models may have learned from: arm, or `others`
    -> share of requests."""
    around: list[Around]


@dataclass(frozen=True, slots=True)
class Report:
    """All of it."""

    experiment: str
    status: str
    starts_ms: int
    data_until_ms: int
    days: int
    planned_days: int
    arms: list[ArmRow]
    differences: list[DifferenceRow]
    guardrails: list[Guarded]
    sample_ratio: SampleRatio | None
    retrainings: list[RetrainingRow]
    changes: list[str]
    """What was changed in the file while the experiment was on."""

    @property
    def crossed(self) -> list[Guarded]:
        return [guarded for guarded in self.guardrails if guarded.crossed_day is not None]


def find(root: Path, domain: Domain, name: str | None, now_ms: int) -> Running | None:
    """The experiment of that name; without a name the one that is on, or else the last that has started, if any.

    Raises:
        ExperimentError: there is none of that name, or the file is wrong.
    """
    declared = record_steps(root, domain, now_ms)
    if name is not None:
        for running in declared:
            if running.experiment.name == name:
                return running
        known = ", ".join(running.experiment.name for running in declared) or "none"
        raise ExperimentError(f"there is no experiment {name!r} in {root / EXPERIMENTS_FILE}; known: {known}")
    started = [running for running in declared if running.experiment.starts_ms <= now_ms]
    return max(started, key=lambda r: (now_ms < r.until_ms, r.experiment.starts_ms), default=None)


def make_report(root: Path, domain: Domain, running: Running, now_ms: int) -> Report:
    """Counts the logs (with Ray Data) and reports.

    Raises:
        PublishError: a file of a log, or of the retrainings, can't be read.
    """
    newest_ms, experiment = newest_request_ms(root), running.experiment
    if not newest_ms:
        raise PublishError(f"{root} has no request log yet; `rayapp export --root {root}` brings live requests into it")
    days = complete_days(running, newest_ms, domain)
    ends_ms = experiment.starts_ms + days * DAY_MS
    aliases = {arm["alias"] for step in running.steps for arm in step["arms"]}
    events = [
        r for r in read_retrainings(root) if experiment.starts_ms < r.at_ms < ends_ms and aliases & set(r.aliases)
    ]
    day_starts = [experiment.starts_ms + day * DAY_MS for day in range(days + 1)]
    bounds_ms = sorted({*day_starts, *(event.at_ms for event in events)})
    tally = collect(root, running, bounds_ms) if days else None
    return build(running, tally, bounds_ms, events, domain, running.status(now_ms))


def build(
    running: Running,
    tally: Tally | None,
    bounds_ms: Sequence[int],
    events: Sequence[Retraining],
    domain: Domain,
    status: str,
) -> Report:
    """The report from what was counted. Pure. `tally` is None while no day is complete."""
    experiment = running.experiment
    common = (experiment.name, status, experiment.starts_ms, bounds_ms[-1])
    changes = _changes(running)
    if tally is None:
        return Report(*common, 0, experiment.planned_days, [], [], [], None, [], changes)
    period_starts = np.array(bounds_ms[:-1])
    ends_ms = np.arange(experiment.starts_ms + DAY_MS, bounds_ms[-1] + 1, DAY_MS)
    looks_KP = period_starts[None, :] < ends_ms[:, None]
    per_item = [moments.grouped(looks_KP) for moments in tally.per_item]
    slots_KA = running.layout.count(running.num_steps, len(experiment.arms))
    return Report(
        *common,
        len(ends_ms),
        experiment.planned_days,
        [_arm_row(experiment, a, tally, looks_KP[-1:], domain) for a in range(len(experiment.arms))],
        _differences(experiment, per_item, domain),
        judge(experiment, per_item, domain.head_names),
        sample_ratio(tally.users_KA, slots_KA, tally.misplaced),
        [_retraining(experiment, tally, period_starts, events, n, domain) for n in range(len(events))],
        changes,
    )


def _arm_row(experiment: Experiment, a: int, tally: Tally, all_1P: NDArray[np.bool_], domain: Domain) -> ArmRow:
    arm, items, lists = experiment.arms[a], tally.per_item[a].grouped(all_1P), tally.per_request[a].grouped(all_1P)
    return ArmRow(
        arm.name,
        arm.alias,
        arm.share,
        int(tally.users_KA[:, a].sum()),
        int(lists.n_P[0]),
        int(items.n_P[0]),
        tally.fallbacks[a],
        dict(sorted(tally.versions[a].items())),
        {name: rates(items, h).estimate(0) for h, name in enumerate(domain.head_names)},
        {name: rates(lists, h).estimate(0) for h, name in enumerate(domain.head_names)},
    )


def _differences(experiment: Experiment, per_item: list[Moments], domain: Domain) -> list[DifferenceRow]:
    rows = []
    for arm, treatment in zip(experiment.arms[1:], per_item[1:], strict=True):
        for h, name in enumerate(domain.head_names):
            control = rates(per_item[0], h)
            interval = repeated_interval(rates(treatment, h) - control, experiment.planned_days)
            rows.append(DifferenceRow(arm.name, name, control.estimate(-1).value, interval))
    return rows


def _retraining(
    experiment: Experiment,
    tally: Tally,
    period_starts: NDArray[np.int64],
    events: Sequence[Retraining],
    n: int,
    domain: Domain,
) -> RetrainingRow:
    event = events[n]
    since_ms = events[n - 1].at_ms if n else experiment.starts_ms
    until_ms = events[n + 1].at_ms if n + 1 < len(events) else np.iinfo(np.int64).max
    before_P = (period_starts >= since_ms) & (period_starts < event.at_ms)
    after_P = (period_starts >= event.at_ms) & (period_starts < until_ms)
    sides = [moments.grouped(np.stack([before_P, after_P])) for moments in tally.per_item]
    around = []
    for arm, treatment in zip(experiment.arms[1:], sides[1:], strict=True):
        for h, name in enumerate(domain.head_names):
            both = rates(treatment, h) - rates(sides[0], h)
            variance = float(np.array([-1, 1]) @ both.covariance_QQ @ np.array([-1, 1]))
            change = Estimate.of(float(both.rate_Q[1] - both.rate_Q[0]), max(variance, 0.0) ** 0.5)
            around.append(Around(arm.name, name, both.estimate(0), both.estimate(1), change))
    shown = {
        arm.name: float(m.n_P[period_starts < event.at_ms].sum())
        for arm, m in zip(experiment.arms, tally.per_request, strict=True)
    }
    shown["others"] = float(np.array(tally.others_P)[period_starts < event.at_ms].sum())
    total = max(sum(shown.values()), 1.0)
    return RetrainingRow(
        event.at_ms,
        event.window,
        event.aliases,
        {arm.alias for arm in experiment.arms} <= set(event.aliases),
        {name: count / total for name, count in shown.items()},
        around,
    )


def _changes(running: Running) -> list[str]:
    """In words, from step to step."""
    said = []
    for old, new in itertools.pairwise(running.steps):
        for before, after in zip(old["arms"], new["arms"], strict=True):
            said += [
                f"day {(new['at_ms'] - running.experiment.starts_ms) // DAY_MS + 1}: {after['name']} {key} from "
                f"{before[key]} to {after[key]}"
                for key in ("share", "alias", "utilities", "mix")
                if before[key] != after[key]
            ]
    return said
