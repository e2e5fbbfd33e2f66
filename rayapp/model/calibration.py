"""Per-head calibration: a line in log-odds (Platt, 1999), fitted on requests the model was not trained on.

It takes back what thinned negatives and label weights did to the probabilities, and changes no order within a head.

Shapes: N examples, H heads.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

FEWEST_POSITIVES: Final = 20
"""With fewer positives or negatives only the level is moved, with none at all nothing is."""
ROUNDS: Final = 50
LOWEST_SCALE: Final = 0.05


@dataclass(frozen=True, slots=True)
class Calibration:
    """`calibrated = scale * logit + shift`, head by head."""

    scale_H: tuple[float, ...]
    shift_H: tuple[float, ...]

    @staticmethod
    def none(num_heads: int) -> "Calibration":
        return Calibration((1.0,) * num_heads, (0.0,) * num_heads)

    def apply(self, logits: Tensor) -> Tensor:
        """Logits `[..., H]`, calibrated."""
        return logits * logits.new_tensor(self.scale_H) + logits.new_tensor(self.shift_H)

    @staticmethod
    def fit(logit_NH: NDArray[np.float32], label_NH: NDArray[np.float32]) -> "Calibration":
        """Least log-loss, by Newton's method."""
        lines = [_line(logit_NH[:, h].astype(np.float64), label_NH[:, h] > 0) for h in range(logit_NH.shape[1])]
        return Calibration(tuple(scale for scale, _ in lines), tuple(shift for _, shift in lines))

    def by_head(self, head_names: Sequence[str]) -> dict[str, dict[str, float]]:
        lines = zip(head_names, self.scale_H, self.shift_H, strict=True)
        return {name: {"scale": scale, "shift": shift} for name, scale, shift in lines}

    @staticmethod
    def of_heads(values: dict[str, dict[str, float]], head_names: Sequence[str]) -> "Calibration":
        rows = [values[name] for name in head_names]
        return Calibration(tuple(row["scale"] for row in rows), tuple(row["shift"] for row in rows))


def _line(logit_N: NDArray[np.float64], positive_N: NDArray[np.bool_]) -> tuple[float, float]:
    rarer = min(int(positive_N.sum()), int((~positive_N).sum()))
    if rarer == 0:
        return 1.0, 0.0
    free_slope = rarer >= FEWEST_POSITIVES
    scale, shift = 1.0, 0.0
    for _ in range(ROUNDS):
        p_N = 1 / (1 + np.exp(-np.clip(scale * logit_N + shift, -30, 30)))
        error_N, weight_N = p_N - positive_N, p_N * (1 - p_N) + 1e-9
        gradient = np.array([error_N @ logit_N if free_slope else 0.0, error_N.sum()])
        curvature = np.array(
            [[weight_N @ logit_N**2, weight_N @ logit_N], [weight_N @ logit_N, weight_N.sum()]]
        ) + 1e-6 * np.eye(2)  # fmt: skip
        if not free_slope:
            curvature[0, 1] = curvature[1, 0] = 0.0
        step = np.clip(np.linalg.solve(curvature, gradient), -2, 2)
        scale, shift = max(scale - step[0], LOWEST_SCALE), shift - step[1]
        if np.abs(step).max() < 1e-8:
            break
    return float(scale), float(shift)
