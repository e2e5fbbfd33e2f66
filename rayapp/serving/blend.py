"""From head probabilities to the list that is shown.

Shapes: C candidates, H heads, E vector width, P the best candidates, among which diversity chooses.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

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
) -> list[Ranked]:
    """The best `num_results` candidates by the feed score, the sum of utility times probability.

    Ties keep the candidates' order. With unit `vectors_CE` and `diversity` above 0 the list is reordered so that
    neighbours differ; the scores told stay the feed's. `fixed` puts candidates at places of the list (from 0) whatever
    their score, as for exploration; a place behind the end of the list is its end. What is not `known_C` scores and
    stands below all that is.
    """
    score_C = probability_CH @ np.asarray(utilities, np.float32)
    if known_C is None:
        known_C = np.ones(len(score_C), bool)
    score_C = _unknown_below(score_C, known_C)
    order = np.argsort(-score_C, kind="stable")
    num_free = max(num_results - len(fixed), 0)
    if fixed:
        order = order[~np.isin(order, list(fixed.values()))]
    if vectors_CE is not None and diversity > 0:
        pool_P = order[known_C[order]][: POOL * num_free]
        spread = pool_P[_spread(score_C[pool_P], vectors_CE[pool_P], num_free, diversity)]
        order = np.concatenate([spread, order[~known_C[order]]])
    rows = order[:num_free].tolist()
    for place in sorted(fixed):
        rows.insert(place, fixed[place])
    return [Ranked(c, float(score_C[c])) for c in rows[:num_results]]


def _unknown_below(score_C: NDArray[np.float32], known_C: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Scores that put what is not known, which the model can't tell apart from nothing, below everything else. Among
    themselves both keep their order."""
    if known_C.all() or not known_C.any():
        return score_C
    gap = float(score_C[~known_C].max()) - float(score_C[known_C].min())
    lowered = score_C.astype(np.float64) - np.where(known_C, 0.0, max(gap, 0.0) + BELOW)
    return lowered.astype(np.float32)


def _spread(
    score_P: NDArray[np.float32], vectors_PE: NDArray[np.float32], num_results: int, diversity: float
) -> list[int]:
    """Maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998): each place goes to the best of
    `(1 - diversity) * score - diversity * (cosine with the most similar item above)`, scores scaled to [0, 1].

    Costs `num_results * P * E`.
    """
    low, high = float(score_P.min(initial=np.inf)), float(score_P.max(initial=-np.inf))
    value_P = (1 - diversity) * (score_P - low) / max(high - low, 1e-9)
    nearest_P = np.zeros(len(score_P), np.float32)
    chosen: list[int] = []
    for _ in range(min(num_results, len(score_P))):
        best = int(np.argmax(value_P - diversity * nearest_P))
        chosen.append(best)
        value_P[best] = -np.inf
        nearest_P = np.maximum(nearest_P, vectors_PE @ vectors_PE[best])
    return chosen


def shuffled(num_candidates: int, seed: int) -> tuple[NDArray[np.int64], float]:
    """A uniform order of the candidates, and the probability with which each stands at its place."""
    return np.random.default_rng(seed).permutation(num_candidates), 1 / max(num_candidates, 1)
