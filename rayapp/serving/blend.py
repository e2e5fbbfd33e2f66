"""From head probabilities to the list that is shown.

Shapes: C candidates, H heads, E vector width, P the best candidates, among which diversity chooses.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rayapp.contracts.config import CalibratedRanking, Cap
from rayapp.retrieval.candidates import Judged
from rayapp.retrieval.caps import Places, Values, capped, capped_by_tier
from rayapp.serving.calibrated import Target

DIVERSITY: Final = 0.2
"""Weight of "unlike what stands above" against the feed score."""
BELOW: Final = 1e-3
"""Between the worst known item and the best one that is not known."""
POOL: Final = 5
"""Diversity chooses among this many times the results asked for: nothing from far below is pulled up."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """One item of an answer; `index` is its place among the candidates."""

    index: int
    score: float


def blend(
    probability_CH: NDArray[np.float32],
    utilities: Sequence[float],
    num_results: int,
    *,
    vectors_CE: NDArray[np.float32] | None = None,
    diversity: float = DIVERSITY,
    fixed: Mapping[int, int] = MappingProxyType({}),
    known_C: NDArray[np.bool_] | None = None,
    again_C: NDArray[np.bool_] | None = None,
    caps: Mapping[str, Cap] = MappingProxyType({}),
    values: Values = MappingProxyType({}),
    calibration: CalibratedRanking | None = None,
    judged: Sequence[Judged] = (),
) -> list[Ranked]:
    """The best `num_results` candidates by the feed score, the sum of utility times probability over the heads that the
    model has, which are the first of the domain's.

    Ties keep the candidates' order. With unit `vectors_CE` and `diversity` above 0 the list is reordered so that
    neighbours differ; the scores told stay the feed's. `fixed` puts candidates at places of the list (from 0) whatever
    their score, as for exploration; a place behind the end of the list is its end. What is not `known_C` scores and
    stands below all that is, and what is shown again, `again_C`, stands below all that is new.

    `caps` hold for the list as it is shown, with the candidates' `values`: they choose what diversity may reorder, and
    bind it at each place. Items at `fixed` places do not count.

    With `calibration` the list follows the categories of what the user liked and hid, `judged` (newest first), by its
    weight against the rest, out of all candidates; without likes nothing changes.
    """
    count = len(probability_CH)
    known_C = np.ones(count, bool) if known_C is None else known_C
    again_C = np.zeros(count, bool) if again_C is None else again_C
    utility_H = np.asarray(utilities, np.float32)[: probability_CH.shape[1]]
    score_C = _unknown_below(probability_CH @ utility_H, known_C)
    num_free = max(num_results - len(fixed), 0)
    places = Places(caps, values) if caps and values else None
    best_first = np.argsort(-score_C, kind="stable")
    if fixed:
        best_first = best_first[~np.isin(best_first, list(fixed.values()))]
    target, weight = None, 0.0
    if calibration is not None and calibration.attribute in values and any(one.liked for one in judged):
        weight = calibration.weight
        target = Target(values[calibration.attribute], judged, best_first[:num_results].tolist())
    rules = _Rules(diversity if vectors_CE is not None else 0.0, places, target, weight)
    rows: list[int] = []
    for tier_C in (known_C & ~again_C, ~known_C & ~again_C, known_C & again_C, ~known_C & again_C):
        order = best_first[tier_C[best_first]]
        rows += _tier(order, score_C, num_free - len(rows), vectors_CE, rules)
    for place in sorted(fixed):
        rows.insert(place, fixed[place])
    return [Ranked(c, float(score_C[c])) for c in rows[:num_results]]


def in_order(
    score_C: NDArray[np.float32],
    num_results: int,
    *,
    again_C: NDArray[np.bool_],
    caps: Mapping[str, Cap] = MappingProxyType({}),
    values: Values = MappingProxyType({}),
) -> list[Ranked]:
    """The list where nothing ranked the candidates: by their own scores, under the same caps."""
    order = np.lexsort((-score_C, again_C))
    rows: list[int] = order[:num_results].tolist()
    if caps and values:
        rows = capped_by_tier(order, again_C.astype(np.int64), num_results, Places(caps, values))
    return [Ranked(c, float(score_C[c])) for c in rows]


@dataclass(frozen=True, slots=True)
class _Rules:
    """What a list goes by besides the scores."""

    diversity: float
    places: Places | None
    target: Target | None
    weight: float
    """Of the target, against score and diversity."""


def _tier(
    order: NDArray[np.int64],
    score_C: NDArray[np.float32],
    num_results: int,
    vectors_CE: NDArray[np.float32] | None,
    rules: _Rules,
) -> list[int]:
    """The next rows of the list, out of candidates that are alike but for their scores."""
    if num_results <= 0 or not len(order):
        return []
    places = rules.places
    if rules.target is not None:
        pool_P = order
    elif rules.diversity <= 0:
        return capped(order, num_results, places) if places else order[:num_results].tolist()
    else:
        pool_P = order[: POOL * num_results]
        if places:
            pool_P = np.array(capped(order, POOL * num_results, copy.deepcopy(places)), np.int64)
    vectors_PE = np.zeros((len(pool_P), 1), np.float32) if vectors_CE is None else vectors_CE[pool_P]
    chosen = _spread(score_C[pool_P], vectors_PE, num_results, pool_P, rules)
    rows: list[int] = pool_P[chosen].tolist()
    return rows


def _unknown_below(score_C: NDArray[np.float32], known_C: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Scores that put what is not known, which the model can't tell apart from nothing, below everything else. Among
    themselves both keep their order."""
    if known_C.all() or not known_C.any():
        return score_C
    gap = float(score_C[~known_C].max()) - float(score_C[known_C].min())
    lowered = score_C.astype(np.float64) - np.where(known_C, 0.0, max(gap, 0.0) + BELOW)
    return lowered.astype(np.float32)


def _spread(
    score_P: NDArray[np.float32],
    vectors_PE: NDArray[np.float32],
    num_results: int,
    candidate_P: NDArray[np.int64],
    rules: _Rules,
) -> list[int]:
    """Maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998): each place goes to the best of
    `(1 - diversity) * score - diversity * (cosine with the most similar item above)`, scores scaled to [0, 1], that no
    cap holds back. A target takes its weight from that for what the item would add to its divergence.

    Costs `num_results * P * E`.
    """
    diversity, places, target = rules.diversity, rules.places, rules.target
    low, high = float(score_P.min(initial=np.inf)), float(score_P.max(initial=-np.inf))
    value_P = (1 - diversity) * (score_P - low) / max(high - low, 1e-9)
    nearest_P = np.zeros(len(score_P), np.float32)
    chosen: list[int] = []
    for _ in range(min(num_results, len(score_P))):
        gain_P = value_P - diversity * nearest_P
        if target is not None:
            gain_P = (1 - rules.weight) * gain_P - rules.weight * target.divergence(candidate_P)
        if places is not None:
            left_P = np.flatnonzero(np.isfinite(value_P))
            gain_P[left_P[places.blocked(candidate_P[left_P])]] = -np.inf
        best = int(np.argmax(gain_P))
        chosen.append(best)
        value_P[best] = -np.inf
        for rule in (places, target):
            if rule is not None:
                rule.take(int(candidate_P[best]))
        nearest_P = np.maximum(nearest_P, vectors_PE @ vectors_PE[best])
    return chosen


def shuffled(num_candidates: int, seed: int) -> tuple[NDArray[np.int64], float]:
    """A uniform order of the candidates, and the probability with which each stands at its place."""
    return np.random.default_rng(seed).permutation(num_candidates), 1 / max(num_candidates, 1)
