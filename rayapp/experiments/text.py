"""The report as people read it: at the shell and in Markdown."""

import time

from rayapp.contracts.config import day_name
from rayapp.experiments.effects import Estimate
from rayapp.experiments.report import Report, RetrainingRow
from rayapp.experiments.sample_ratio import ALARM_P

PER = 1000
"""Rates are told per this many: most heads are rare."""


def told(estimate: Estimate, sign: str = "") -> str:
    """`12.3 [11.0, 13.6]`, per thousand."""
    if estimate.value is None:
        return "no data"
    if estimate.low is None or estimate.high is None:
        return f"{PER * estimate.value:{sign}.2f} [too early]"
    return f"{PER * estimate.value:{sign}.2f} [{PER * estimate.low:{sign}.2f}, {PER * estimate.high:{sign}.2f}]"


def render(report: Report) -> str:
    """Markdown that reads well unrendered."""
    lines = [
        f"experiment {report.experiment}: {report.status}; "
        f"day {report.days} of {report.planned_days}, {day_name(report.starts_ms)} to {day_name(report.data_until_ms)}",
        "",
    ]
    if not report.days:
        return lines[0] + "\nno day is complete yet: a day counts when the time to act on what it showed is over"
    return "\n".join(
        [
            *lines,
            *(f"- {said}" for said in _verdict(report)),
            "",
            *_arms(report),
            "",
            *_differences(report),
            *_rest(report),
        ]
    )


def _verdict(report: Report) -> list[str]:
    ratio, said = report.sample_ratio, []
    if ratio is not None and ratio.misplaced:
        said.append(f"DO NOT TRUST: {ratio.misplaced} users were logged in an arm that is not theirs")
    if ratio is not None and ratio.alarm and ratio.p_value is not None and ratio.p_value < ALARM_P:
        said.append(
            f"DO NOT TRUST: the arms' users are not as many as were dealt to them (p = {ratio.p_value:.1e}); "
            "users of an arm are lost or counted twice on the way, find out where"
        )
    elif ratio is not None:
        p = "too few users to tell" if ratio.p_value is None else f"p = {ratio.p_value:.2f}"
        said.append(f"users per arm as dealt: {p}")
    for guarded in report.guardrails:
        z, bound = guarded.statistics[-1], guarded.boundaries[-1]
        now = f"{0 if z is None else z:+.2f} standard errors" + ("" if bound is None else f", boundary {bound:.2f}")
        crossed = f"CROSSED on day {guarded.crossed_day}" if guarded.crossed_day else "holds"
        said.append(f"guardrail {guarded.head} must not {guarded.must_not} in {guarded.arm}: {crossed} ({now})")
    return said


def _arms(report: Report) -> list[str]:
    heads = list(report.arms[0].per_item)
    lines = [
        f"| arm | alias | share | users | requests | shown | fallbacks | per {PER} | {' | '.join(heads)} |",
        f"|{'---|' * (8 + len(heads))}",
    ]
    for row in report.arms:
        facts = f"| {row.arm} | {row.alias} | {row.share:g} | {row.users} | {row.requests} | {row.shown}"
        facts += f" | {row.fallbacks}"
        for unit, of_head in (("shown", row.per_item), ("requests", row.per_request)):
            lines.append(f"{facts} | {unit} | {' | '.join(told(of_head[head]) for head in heads)} |")
            facts = "| " + " | ".join([""] * 7)
    lines += ["", *(f"- {row.arm} was answered by {_versions(row.versions)}" for row in report.arms)]
    return lines


def _versions(versions: dict[str, int]) -> str:
    total = max(sum(versions.values()), 1)
    return ", ".join(f"{version} ({count / total:.0%})" for version, count in versions.items()) or "nothing"


def _differences(report: Report) -> list[str]:
    lines = [f"| per {PER} shown | head | control | difference, under daily looks |", "|---|---|---|---|"]
    for row in report.differences:
        control = "no data" if row.control is None else f"{PER * row.control:.2f}"
        lines.append(f"| {row.arm} | {row.head} | {control} | {told(row.difference, '+')} |")
    return lines


def _rest(report: Report) -> list[str]:
    lines = []
    if report.changes:
        lines += ["", "changed while it was on:", "", *(f"- {change}" for change in report.changes)]
    for row in report.retrainings:
        lines += ["", *_retraining(row)]
    return lines


def _retraining(row: RetrainingRow) -> list[str]:
    pooled = ", ".join(f"{name} {share:.1%}" for name, share in row.pooled.items())
    when = time.strftime("%Y-%m-%d %H:%M", time.gmtime(row.at_ms / 1000))
    moved = ", ".join(sorted(row.aliases))
    lines = [f"retraining {when} UTC on {row.window}, of {moved}; the lists shown so far were of: {pooled}"]
    if not row.together:
        lines.append("CAREFUL: not every arm's model was trained anew; fresh against stale is not what is compared")
    lines += ["", f"| per {PER} shown | head | difference before | after | change |", "|---|---|---|---|---|"]
    lines += [
        f"| {a.arm} | {a.head} | {told(a.before, '+')} | {told(a.after, '+')} | {told(a.change, '+')} |"
        for a in row.around
    ]
    return lines
