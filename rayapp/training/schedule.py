"""When a run warms up, looks at the validation window and stops: from its settings and the batches of its epochs."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from rayapp.contracts.config import TrainConfig


@dataclass(frozen=True, slots=True)
class Schedule:
    """Steps are counted from 1 here: a point is the number of steps that were taken."""

    batches_E: tuple[int, ...]
    """Of each epoch."""
    points: frozenset[int]
    """After so many steps the weights are held against the validation window; the last step is one of them."""
    patience: int
    """Evaluations without gain, one after another, that a run survives once it is warm."""

    @property
    def num_steps(self) -> int:
        return sum(self.batches_E)

    @staticmethod
    def of(settings: TrainConfig, num_batches: Callable[[int], int]) -> "Schedule":
        """`num_batches`: of an epoch, by its number."""
        num_epochs = max(settings.num_epochs, math.ceil(settings.min_steps / max(num_batches(0), 1)))
        batches_E = tuple(num_batches(epoch) for epoch in range(num_epochs))
        if settings.evaluations:
            return Schedule(batches_E, spread(sum(batches_E), settings.evaluations), settings.patience_evaluations)
        ends = frozenset(sum(batches_E[: epoch + 1]) for epoch in range(num_epochs))
        # Repeated epochs are short: a few without gain say little.
        return Schedule(batches_E, ends, max(settings.patience_epochs, (num_epochs - settings.num_epochs) // 5))


def spread(num_steps: int, count: int) -> frozenset[int]:
    """`count` points, or as many as there are steps, evenly over the run; the last one is its end."""
    return frozenset(math.ceil(num_steps * n / count) for n in range(1, count + 1))


def warmup_of(num_steps: int, warmup_steps: int) -> int:
    """Steps of warm-up: at most a tenth of a run."""
    return min(warmup_steps, max(1, num_steps // 10))


def learning_rate(step: int, num_steps: int, peak: float, warmup_steps: int) -> float:
    """Linear warm-up, then a cosine down to zero (TransAct, appendix)."""
    warmup = warmup_of(num_steps, warmup_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, num_steps - warmup)))
