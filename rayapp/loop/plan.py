"""Which days a retraining reads: pure, from the days of the log, the clock, and what was refused.

A day is one window `[D, D + 1)`, built once it has closed. The newest usable day tests, the one before it validates,
and the `train_window_days` before these train. Windows are never merged or edited.
"""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from rayapp.contracts.config import DAY_MS
from rayapp.pipeline.windows import window_name

HELD_OUT_DAYS: Final = 2
"""Validation and test."""


def day_window(day_ms: int) -> str:
    """The name of a day's window."""
    return window_name(day_ms, day_ms + DAY_MS)


def closed_days(days: Sequence[int], *, now_ms: int, attribution_ms: int) -> list[int]:
    """The days to whose requests no action can be attributed any more, oldest first."""
    return sorted(day for day in days if day + DAY_MS + attribution_ms <= now_ms)


@dataclass(frozen=True, slots=True)
class Plan:
    """Starts of the days that a run reads."""

    train: tuple[int, ...]
    validation: int
    test: int

    @property
    def days(self) -> tuple[int, ...]:
        return (*self.train, self.validation, self.test)

    @property
    def tested_until_ms(self) -> int:
        return self.test + DAY_MS

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(values: dict[str, Any]) -> "Plan":
        return Plan(tuple(values["train"]), values["validation"], values["test"])


def candidates(closed: Sequence[int], excluded: Collection[str], train_window_days: int) -> list[int]:
    """The newest closed days that a run could read, oldest first; those refused before are left out."""
    usable = [day for day in closed if day_window(day) not in excluded]
    return usable[-(train_window_days + HELD_OUT_DAYS) :]


def make_plan(usable: Sequence[int]) -> Plan | None:
    """None where there are not the three days that training, validation and test take."""
    if len(usable) <= HELD_OUT_DAYS:
        return None
    *train, validation, test = sorted(usable)
    return Plan(tuple(train), validation, test)
