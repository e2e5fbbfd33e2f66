"""From head probabilities to the list that is shown."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Ranked:
    """One item of an answer; `index` is its place among the candidates."""

    index: int
    score: float


def blend(probability_CH: NDArray[np.float32], utilities: Sequence[float], num_results: int) -> list[Ranked]:
    """The best `num_results` candidates by the sum of utility times probability; ties keep the candidates' order."""
    score_C = probability_CH @ np.asarray(utilities, np.float32)
    order = np.argsort(-score_C, kind="stable")[:num_results]
    return [Ranked(int(c), float(score_C[c])) for c in order]
