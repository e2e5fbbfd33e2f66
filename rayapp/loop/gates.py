"""The gates between a trained model and going live. Pure: measured numbers in, a list of gates with words out.

Harm is told from chance by the bootstrap over users that `training.compare` makes: champion and challenger are drawn on
the same people, so a difference is a difference on the same people.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import PlainSerializer

from rayapp.features.segments import SEGMENTS
from rayapp.loop.limits import GateLimits
from rayapp.training.comparison import BootstrapInterval, Row

CHAMPION, CHALLENGER = "champion", "challenger"
ERRORS_OF_INTERVAL: Final = 1.96
"""A 95 % interval reaches this many standard errors to each side."""
PSI_BINS: Final = 10
SMALLEST_SHARE: Final = 1e-4


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(float(value), 6)


@dataclass(frozen=True, slots=True)
class Gate:
    """One question and its answer."""

    name: str
    passed: bool
    value: Annotated[float | None, PlainSerializer(_rounded)]
    """None where there was too little to judge by; such a gate passes."""
    limit: float
    words: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Challenge:
    """What the gates said of one challenger."""

    window: str
    """What both were tested on."""
    champion: str | None
    """The version that it was held against."""
    version: str
    gates: tuple[Gate, ...]
    tables: str
    """Behind the gates, in Markdown."""
    why: str
    """What failed, in words; empty where all passed."""

    def why_kept(self, alias: str, live: str | None) -> str:
        """Why an alias has not this challenger: a gate failed, or somebody moved it to `live` before the run ended."""
        return self.why or f"{alias} was moved to {live} while this run trained, so it was left there"


def failed(gates: Iterable[Gate]) -> list[Gate]:
    return [gate for gate in gates if not gate.passed]


def reasons(gates: Iterable[Gate]) -> list[str]:
    """Those that failed, in words."""
    return [f"{gate.name}: {gate.words}" for gate in failed(gates)]


def not_judged(name: str, limit: float, why: str) -> Gate:
    return Gate(name, True, None, limit, f"not judged: {why}")


def absolute_gates(rows: Sequence[Row], labels: Mapping[tuple[str, str], int], limits: GateLimits) -> list[Gate]:
    """AUC and calibration of the challenger on everyone. `labels`: (head, segment) -> number of labels.

    Each fails when its whole interval lies outside of the limits, so that a small day's chance does not count.
    """
    gates = []
    for row in rows:
        if row.model != CHALLENGER or row.segment != "all" or row.metric not in ("auc", "calibration"):
            continue
        name, estimate = f"{row.metric} of {row.head}", row.estimate
        limit = limits.min_auc if row.metric == "auc" else limits.max_calibration
        if labels[row.head, "all"] < limits.min_labels or math.isnan(estimate.value):
            gates.append(not_judged(name, limit, f"{labels[row.head, 'all']} labels in the window"))
        elif row.metric == "auc":
            passed = estimate.high >= limits.min_auc
            gates.append(Gate(name, passed, estimate.value, limit, f"{_told(estimate)}, at least {limit:g} is asked"))
        else:
            passed = estimate.high >= limits.min_calibration and estimate.low <= limits.max_calibration
            asked = f"between {limits.min_calibration:g} and {limits.max_calibration:g} is asked"
            gates.append(
                Gate(name, passed, estimate.value, limit, f"predicts {_told(estimate)} times the labels, {asked}")
            )
    return gates


def relative_gates(rows: Sequence[Row], labels: Mapping[tuple[str, str], int], limits: GateLimits) -> list[Gate]:
    """No head may do harm beyond its margin: AUC in every segment, normalised entropy on everyone."""
    gates = []
    for row in rows:
        everyone = row.segment == "all"
        if row.model != CHALLENGER or not (row.metric == "auc" or (row.metric == "normalised_entropy" and everyone)):
            continue
        name = f"{row.metric.replace('_', ' ')} of {row.head}, {'everyone' if everyone else row.segment} users"
        name = name.replace("everyone users", "everyone")
        if row.metric == "auc":
            margin, sign = limits.auc_margin if everyone else limits.segment_auc_margin, 1.0
        else:
            margin, sign = limits.entropy_margin, -1.0  # lower is better
        gap = row.differences.get(CHAMPION)
        count = labels[row.head, row.segment]
        if gap is None or count < limits.min_labels or not all(map(math.isfinite, (gap.value, gap.low, gap.high))):
            gates.append(not_judged(name, -margin, f"{count} labels in the window"))
            continue
        error = (gap.high - gap.low) / (2 * ERRORS_OF_INTERVAL)
        harm = -sign * gap.value
        clear = harm > limits.harm_errors * error
        worse = "worse" if harm > 0 else "better"
        words = f"{abs(gap.value):.4f} {worse} than the champion [{gap.low:+.4f}, {gap.high:+.4f}]"
        words += f", a loss of {margin:g} is borne" + ("" if clear or harm <= margin else ", and it may be chance")
        gates.append(Gate(name, not (harm > margin and clear), -harm, -margin, words))
    return gates


def shift_gates(
    champion_R: NDArray[np.float32],
    challenger_R: NDArray[np.float32],
    means: Mapping[str, tuple[float, float]],
    limits: GateLimits,
) -> list[Gate]:
    """Feed scores of the same shown items by both models, and each head's mean probability `(champion, challenger)`.

    A shift is not harm, but whatever was tuned on the old scores (utilities, blending, alerts) meets other ones.
    """
    spread = max(float(champion_R.std()), 1e-9)
    shift = float(challenger_R.mean() - champion_R.mean()) / spread
    psi = stability_index(champion_R, challenger_R)
    gates = [
        Gate(
            "mean feed score",
            abs(shift) <= limits.max_score_shift,
            shift,
            limits.max_score_shift,
            f"moved by {shift:+.2f} of the champion's standard deviations, {limits.max_score_shift:g} is borne",
        ),
        Gate(
            "spread of the feed score",
            psi <= limits.max_score_psi,
            psi,
            limits.max_score_psi,
            f"stability index {psi:.3f}, at most {limits.max_score_psi:g} is asked",
        ),
    ]
    for head, (old, new) in means.items():
        ratio, limit = new / max(old, 1e-9), limits.max_prediction_ratio
        words = f"{new:.4f} on average, the champion's {old:.4f}; a factor of {limit:g} is borne"
        gates.append(Gate(f"predictions of {head}", within(ratio, limit), ratio, limit, words))
    return gates


def within(ratio: float, limit: float) -> bool:
    """Whether the ratio lies between `1 / limit` and `limit`."""
    return 1 / limit <= ratio <= limit


def stability_index(old_N: NDArray[np.float32], new_N: NDArray[np.float32]) -> float:
    """Population stability index: sum of (q - p) ln(q / p) over the deciles of `old_N`; 0 for equal distributions.

    0.25 is the customary sign of a major shift (Siddiqi, Credit Risk Scorecards, 2006); two models that were trained
    apart on small data differ by as much.
    """
    edges = np.unique(np.quantile(old_N, np.linspace(0, 1, PSI_BINS + 1)[1:-1]))
    p, q = (
        np.bincount(np.searchsorted(edges, x, side="right"), minlength=len(edges) + 1) / len(x) for x in (old_N, new_N)
    )
    p, q = p.clip(SMALLEST_SHARE), q.clip(SMALLEST_SHARE)
    return float(((q - p) * np.log(q / p)).sum())


def recall_gate(name: str, measured: str, champion: str, gap: BootstrapInterval, limits: GateLimits) -> Gate:
    """`gap`: the challenger's recall less the champion's on the same next actions."""
    error = (gap.high - gap.low) / (2 * ERRORS_OF_INTERVAL)
    margin, harm = limits.recall_margin, -gap.value
    clear = harm > limits.harm_errors * error
    words = (
        f"{measured} {gap.value:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}] over {champion}, a loss of {margin:g} is borne"
    )
    words += "" if clear or harm <= margin else ", and it may be chance"
    return Gate(name, not (harm > margin and clear), gap.value, -margin, words)


def baseline_gate(name: str, words: str, gain: BootstrapInterval) -> Gate:
    """`gain`: a model's AUC less a baseline's, which `words` say."""
    passed = not gain.high < 0  # NaN, where no label tells, passes
    words += "" if passed else ": a count of the past orders these lists better"
    return Gate(name, passed, gain.value, 0.0, words)


def latency_gate(champion_s: Sequence[float], challenger_s: Sequence[float], limits: GateLimits) -> Gate:
    """Medians of interleaved times of one full request."""
    old, new = float(np.median(champion_s)), float(np.median(challenger_s))
    ratio, limit = new / max(old, 1e-9), limits.max_latency_ratio
    words = (
        f"{new * 1e3:.1f} ms for a full request, the champion's {old * 1e3:.1f} ms; {limit:g} times as long is borne"
    )
    return Gate("latency", ratio <= limit, ratio, limit, words)


def reload_gate(
    before: Mapping[str, Mapping[str, Any]], after: Mapping[str, Mapping[str, Any]], limits: GateLimits
) -> Gate:
    """Test metrics (head -> metric -> value) of the model in memory, and of the one read back from the registry."""
    gaps = {}
    for head, values in before.items():
        for metric, value in values.items():
            other = after[head][metric]
            known, again = (v is not None and math.isfinite(v) for v in (value, other))
            gaps[f"{metric} of {head}"] = abs(value - other) if known and again else float(known != again)
    worst = max(gaps, key=lambda name: gaps[name])
    limit = limits.max_reload_difference
    words = f"read back from the registry, {worst} differs by {gaps[worst]:.2g}; {limit:g} is borne"
    return Gate("reload", gaps[worst] <= limit, gaps[worst], limit, words)


def segment_labels(
    label_RCH: NDArray[np.float32],
    valid_RC: NDArray[np.bool_],
    rows: Mapping[str, NDArray[np.bool_]],
    heads: Sequence[str],
) -> dict[tuple[str, str], int]:
    """(head, segment) -> labels. `rows`: segment -> its requests."""
    count_RH = (label_RCH * valid_RC[:, :, None]).sum(axis=1)
    segments = {name: rows[name] for name in ("all", *SEGMENTS)}
    return {(head, name): int(count_RH[at, h].sum()) for h, head in enumerate(heads) for name, at in segments.items()}


def _told(estimate: BootstrapInterval) -> str:
    return f"{estimate.value:.4f} [{estimate.low:.4f}, {estimate.high:.4f}]"
