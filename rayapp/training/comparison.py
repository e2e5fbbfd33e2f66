"""Compares models on one test window: each metric with a 95 % interval, and the paired differences to some of them.

The bootstrap draws users with replacement, and seeds where a model was trained more than once; the draws are the same
for every model, so a difference is a difference on the same people.

Shapes: R requests, U users, K draws, S seeds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import model_serializer

from rayapp.contracts.config import Domain
from rayapp.features.segments import SEGMENTS
from rayapp.training.evaluate import METRICS, EvaluationSet, measures, within_lists
from rayapp.training.metrics import auc, mean_known

DRAWS: Final = 200
LEVEL: Final = 0.95
WEIGHTS_AT_ONCE: Final = 10_000_000
"""Of examples under draws, 80 MB."""
Logits = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class BootstrapInterval:
    """A value and its interval; NaN where the metric is not defined."""

    value: float
    low: float
    high: float

    @staticmethod
    def of(value: float, draw_K: NDArray[np.float64]) -> "BootstrapInterval":
        known = draw_K[~np.isnan(draw_K)]
        if not len(known):
            return BootstrapInterval(value, float("nan"), float("nan"))
        low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return BootstrapInterval(value, float(low), float(high))

    @model_serializer
    def _rounded(self) -> list[float | None]:
        return [None if np.isnan(v) else round(float(v), 6) for v in (self.value, self.low, self.high)]


@dataclass(frozen=True, slots=True)
class Row:
    """One model, head, metric and segment."""

    model: str
    head: str
    metric: str
    segment: str
    estimate: BootstrapInterval
    differences: dict[str, BootstrapInterval]
    """To each reference model; positive is higher, which is not always better."""


def compare(
    window: EvaluationSet,
    logits: Mapping[str, Sequence[Logits]],
    domain: Domain,
    *,
    references: Sequence[str] = (),
    heads: Sequence[str] | None = None,
    draws: int = DRAWS,
) -> list[Row]:
    """`logits`: model -> `[R, C, H]` of each of its seeds, seed s of one model paired with seed s of the others."""
    weight_KR, rows = _drawn(window, draws), list[Row]()
    for h, head in enumerate(domain.head_names):
        if heads is not None and head not in heads:
            continue
        for segment in ("all", *SEGMENTS):
            weight_in_KR = weight_KR[:, window.segment(segment)]
            drawn: dict[str, dict[str, NDArray[np.float64]]] = {}
            for model, seeds in logits.items():
                by_seed = [
                    {name: f(weight_in_KR) for name, f in measures(window, one, domain, h, segment).items()}
                    for one in seeds
                ]
                drawn[model] = {name: over_seeds([one[name] for one in by_seed]) for name in METRICS}
            for model, of_metric in drawn.items():
                for name, value_K in of_metric.items():
                    differences = {
                        other: BootstrapInterval.of(float(gap_K[0]), gap_K[1:])
                        for other, gap_K in ((o, value_K - drawn[o][name]) for o in references if o != model)
                    }
                    estimate = BootstrapInterval.of(float(value_K[0]), value_K[1:])
                    rows.append(Row(model, head, name, segment, estimate, differences))
    return rows


def _drawn(window: EvaluationSet, draws: int) -> NDArray[np.float64]:
    """`[1 + draws, R]`: how often each request counts; once in the first row, then as often as its user is drawn."""
    user_R = np.unique(window.user_hash_R, return_inverse=True)[1]
    weight_KU = np.random.default_rng(0).poisson(1.0, (draws, int(user_R.max(initial=-1)) + 1)).astype(np.float64)
    return np.concatenate([np.ones((1, len(user_R))), weight_KU[:, user_R]])


def auc_gap(
    window: EvaluationSet, one: Logits, other: Logits, domain: Domain, head: str, *, draws: int = DRAWS
) -> BootstrapInterval:
    """AUC of `one` less that of `other`, both logits `[R, C, H]`, over the draws of users that `compare` makes; only
    a few at a time, so that a window may be as large as a log has them."""
    h = domain.head_names.index(head)
    of_user_R = np.unique(window.user_hash_R, return_inverse=True)[1]
    user_N = np.repeat(of_user_R, window.valid_RC.sum(axis=1))
    label_N = window.label_RCH[:, :, h][window.valid_RC]
    logit_2N = [logits[:, :, h][window.valid_RC] for logits in (one, other)]
    rng, num_users = np.random.default_rng(0), int(of_user_R.max(initial=-1)) + 1
    at_once = max(1, WEIGHTS_AT_ONCE // max(len(user_N), 1))

    def gap(weight_KN: NDArray[np.float64]) -> NDArray[np.float64]:
        return auc(logit_2N[0], label_N, weight_KN) - auc(logit_2N[1], label_N, weight_KN)

    drawn = [
        gap(rng.poisson(1.0, (min(at_once, draws - k), num_users)).astype(np.float64)[:, user_N])
        for k in range(0, draws, at_once)
    ]
    return BootstrapInterval.of(float(gap(np.ones((1, len(user_N))))[0]), np.concatenate(drawn))


def request_auc_gap(
    window: EvaluationSet, one: Logits, other: Logits, domain: Domain, head: str, *, draws: int = DRAWS
) -> BootstrapInterval:
    """As `auc_gap`, of the AUC within a list: the mean over lists that hold both labels."""
    h, valid_RC = domain.head_names.index(head), window.valid_RC
    label_RC = np.where(valid_RC, window.label_RCH[:, :, h], 0.0).astype(np.float32)
    one_R, other_R = (within_lists(logits[:, :, h], label_RC, valid_RC) for logits in (one, other))
    gap_K = mean_known(one_R - other_R, _drawn(window, draws))
    return BootstrapInterval.of(float(gap_K[0]), gap_K[1:])


def over_seeds(value_SK: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """The mean over seeds; each draw draws its seeds too, the same for every model of as many seeds."""
    stacked_SK = np.stack(value_SK)
    seeds, draws = stacked_SK.shape
    drawn_KS = np.random.default_rng(1).integers(seeds, size=(draws, seeds))
    mean_K = stacked_SK.T[np.arange(draws)[:, None], drawn_KS].mean(axis=1)
    mean_K[0] = stacked_SK[:, 0].mean()
    return np.asarray(mean_K)


def table(rows: Sequence[Row], head: str, segment: str, names: Sequence[str] = METRICS) -> str:
    """Markdown: a line a model, each value with its interval."""
    chosen = {(r.model, r.metric): r for r in rows if r.head == head and r.segment == segment}
    return _markdown(f"`{head}`, {segment}", {key: row.estimate for key, row in chosen.items()}, names, "")


def difference_table(
    rows: Sequence[Row], reference: str, head: str, segment: str, names: Sequence[str] = METRICS
) -> str:
    """Markdown: a line a model, each value less that of the reference."""
    chosen = {
        (r.model, r.metric): r.differences[reference]
        for r in rows
        if r.head == head and r.segment == segment and reference in r.differences
    }
    return _markdown(f"`{head}`, {segment}: less {reference}", chosen, names, "+")


def _markdown(title: str, cells: Mapping[tuple[str, str], BootstrapInterval], names: Sequence[str], sign: str) -> str:
    lines = [[title, *names]]
    lines += [[model, *(_cell(cells[model, n], sign) for n in names)] for model in dict.fromkeys(m for m, _ in cells)]
    rows = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([rows[0], "|---|" + "---:|" * len(names), *rows[1:]])


def _cell(e: BootstrapInterval, sign: str) -> str:
    return "–" if np.isnan(e.value) else f"{e.value:{sign}.4f} [{e.low:{sign}.4f}, {e.high:{sign}.4f}]"
