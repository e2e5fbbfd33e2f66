"""Which days a training reads. Pure: from the days of the log, the clock, and what was refused.

A first training cuts the log into three spans. A retraining reads days: one is a window `[D, D + 1)`, built once it has
closed; the newest usable day tests, the one before it validates, and the `train_window_days` before these train.
Windows are never merged or edited.
"""

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from rayapp.contracts.config import DAY_MS, day_name, day_start_ms
from rayapp.pipeline.windows import window_name
from rayapp.root.publish import PublishError

TEST_SHARE: Final = 0.2
VALIDATION_SHARE: Final = 0.125
HELD_OUT_DAYS: Final = 2
"""Validation and test."""
Span = tuple[int, int]
"""`[since, until)` in milliseconds."""


@dataclass(frozen=True, slots=True)
class Split:
    """What is trained on, what stops and calibrates the training, and what is tested: `[since, validation)`,
    `[validation, test)`, `[test, until)`."""

    since_ms: int
    validation_ms: int
    test_ms: int
    until_ms: int

    @property
    def spans(self) -> tuple[Span, ...]:
        moments = (self.since_ms, self.validation_ms, self.test_ms, self.until_ms)
        return tuple(itertools.pairwise(moments))


def make_split(since_ms: int, until_ms: int, test_ms: int | None = None) -> Split:
    """Unless told otherwise the last fifth of the days is the test, and an eighth of what is before it the validation.

    Raises:
        PublishError: there are not enough days for three windows.
    """
    if test_ms is None:
        test_ms = day_start_ms(int(since_ms + (1 - TEST_SHARE) * (until_ms - since_ms)))
    validation_ms = test_ms - max(int((test_ms - since_ms) * VALIDATION_SHARE) // DAY_MS * DAY_MS, DAY_MS)
    if not since_ms < validation_ms < test_ms < until_ms:
        raise PublishError(
            f"{day_name(since_ms)} to {day_name(until_ms)} is too short to train, validate and test on; it takes "
            "three days or more"
        )
    return Split(since_ms, validation_ms, test_ms, until_ms)


def day_span(day_ms: int) -> Span:
    return day_ms, day_ms + DAY_MS


def day_window(day_ms: int) -> str:
    """The name of a day's window."""
    return window_name(*day_span(day_ms))


def closed_days(days: Sequence[int], *, now_ms: int, attribution_ms: int) -> list[int]:
    """The days to whose requests no action can be attributed any more, oldest first."""
    return sorted(day for day in days if day + DAY_MS + attribution_ms <= now_ms)


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """Starts of the days that a retraining reads."""

    train: tuple[int, ...]
    validation: int
    test: int

    @property
    def spans(self) -> tuple[Span, ...]:
        return tuple(day_span(day) for day in (*self.train, self.validation, self.test))

    @property
    def tested_until_ms(self) -> int:
        return self.test + DAY_MS


def candidates(closed: Sequence[int], excluded: Collection[str], train_window_days: int) -> list[int]:
    """The newest closed days that a run could read, oldest first; those refused before are left out."""
    usable = [day for day in closed if day_window(day) not in excluded]
    return usable[-(train_window_days + HELD_OUT_DAYS) :]


def make_plan(usable: Sequence[int]) -> TrainingPlan | None:
    """None where there are not the three days that training, validation and test take."""
    if len(usable) <= HELD_OUT_DAYS:
        return None
    *train, validation, test = sorted(usable)
    return TrainingPlan(tuple(train), validation, test)
