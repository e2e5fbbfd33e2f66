"""AUC, normalised entropy and calibration of probabilities that stream by: sums that add up over parts, in any order.

Labels are counted in narrow ranges of log-odds, so a job of any size keeps some thousand numbers a head and segment.
The AUC counts pairs within one range as ties, which moves it by less than 0.001.

Shapes: N rows, B ranges of log-odds.
"""

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rayapp.features.segments import SEGMENTS

Floats = NDArray[np.float64]
RANGES: Final = 4096
HIGHEST_LOGIT: Final = 16.0
"""Log-odds beyond it, one in ten million, share the outermost range."""


@dataclass(slots=True)
class Sums:
    """One head in one segment."""

    negatives_B: Floats = field(default_factory=lambda: np.zeros(RANGES))
    positives_B: Floats = field(default_factory=lambda: np.zeros(RANGES))
    probability: float = 0.0
    loss: float = 0.0

    def add(self, probability_N: NDArray[np.float32], label_N: NDArray[np.float32]) -> None:
        p_N = np.clip(probability_N.astype(np.float64), 1e-7, 1 - 1e-7)
        positive_N = label_N > 0
        place = (np.log(p_N / (1 - p_N)) + HIGHEST_LOGIT) / (2 * HIGHEST_LOGIT) * RANGES
        range_N = place.astype(np.int64).clip(0, RANGES - 1)
        self.positives_B += np.bincount(range_N[positive_N], minlength=RANGES)
        self.negatives_B += np.bincount(range_N[~positive_N], minlength=RANGES)
        self.probability += float(probability_N.astype(np.float64).sum())
        self.loss += float(-np.where(positive_N, np.log(p_N), np.log1p(-p_N)).sum())

    def merge(self, other: "Sums") -> None:
        self.positives_B += other.positives_B
        self.negatives_B += other.negatives_B
        self.probability += other.probability
        self.loss += other.loss

    def result(self) -> dict[str, float | None]:
        """`rows`, `labels`, and the metrics; None where one is not defined."""
        positives, negatives = float(self.positives_B.sum()), float(self.negatives_B.sum())
        rows = positives + negatives
        known: dict[str, float | None] = {"rows": rows, "labels": positives}
        both = positives > 0 and negatives > 0
        if both:
            below_B = np.cumsum(self.negatives_B) - self.negatives_B / 2
            base = positives / rows
            entropy = -(base * np.log(base) + (1 - base) * np.log(1 - base))
            known["auc"] = float(self.positives_B @ below_B) / (positives * negatives)
            known["normalised_entropy"] = float(self.loss / rows / entropy)
        calibration = self.probability / positives if positives else None
        return {"auc": None, "normalised_entropy": None, **known, "calibration": calibration}

    def to_json(self) -> dict[str, Any]:
        used = np.flatnonzero(self.positives_B + self.negatives_B)
        return {
            "ranges": used.tolist(),
            "positives": self.positives_B[used].tolist(),
            "negatives": self.negatives_B[used].tolist(),
            "probability": self.probability,
            "loss": self.loss,
        }

    @staticmethod
    def from_json(values: dict[str, Any]) -> "Sums":
        sums = Sums(probability=values["probability"], loss=values["loss"])
        used = np.array(values["ranges"], np.int64)
        sums.positives_B[used], sums.negatives_B[used] = values["positives"], values["negatives"]
        return sums


class Accumulators:
    """Sums of every head and segment that had labels."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, str], Sums] = {}

    def add(
        self,
        head: str,
        probability_N: NDArray[np.float32],
        label_N: NDArray[np.float32],
        activity_N: NDArray[np.int64],
    ) -> None:
        """Rows whose label or probability is NaN are passed over. `activity_N`: actions known of the row's user."""
        labelled_N = ~np.isnan(label_N) & ~np.isnan(probability_N)
        for segment, (low, high) in SEGMENTS.items():
            rows = labelled_N & (activity_N >= low) & (activity_N < high)
            if rows.any():
                self._sums.setdefault((head, segment), Sums()).add(probability_N[rows], label_N[rows])

    def merge(self, other: "Accumulators") -> None:
        for key, sums in other._sums.items():
            self._sums.setdefault(key, Sums()).merge(sums)

    def result(self) -> dict[str, dict[str, dict[str, float | None]]]:
        """Head -> segment ("all" first) -> metric -> value."""
        answer: dict[str, dict[str, dict[str, float | None]]] = {}
        for head in dict.fromkeys(head for head, _ in self._sums):
            total = Sums()
            of_segment = {s: self._sums[head, s] for s in SEGMENTS if (head, s) in self._sums}
            for sums in of_segment.values():
                total.merge(sums)
            answer[head] = {name: sums.result() for name, sums in {"all": total, **of_segment}.items()}
        return answer

    def to_json(self) -> list[Any]:
        return [[head, segment, sums.to_json()] for (head, segment), sums in self._sums.items()]

    @staticmethod
    def from_json(values: list[Any]) -> "Accumulators":
        made = Accumulators()
        made._sums = {(head, segment): Sums.from_json(sums) for head, segment, sums in values}
        return made
