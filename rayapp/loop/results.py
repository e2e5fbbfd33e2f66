"""The steps of a retraining: each one's name, as it is printed and kept, and the type of what it finds."""

from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import TypeAdapter

from rayapp.loop.gates import Challenge
from rayapp.loop.lines import Line
from rayapp.loop.plan import TrainingPlan
from rayapp.loop.run_state import Step
from rayapp.pipeline.export import Exported


@dataclass(frozen=True, slots=True)
class ExportSkipped:
    """Another export is at it: the log is as new as it gets."""

    skipped: str
    """Who holds it, in words."""


@dataclass(frozen=True, slots=True)
class JudgedDays:
    """What the gates said of days that no run had judged before."""

    judged: tuple[int, ...] = ()
    """Their starts."""
    refused: dict[str, list[str]] = field(default_factory=dict)
    """Windows of those that may not be trained on -> reasons."""
    watch: list[dict[str, Any]] = field(default_factory=list)
    """The last days, as `rayapp watch` gives them."""


EXPORT: Final[Step[ExportSkipped | Exported]] = Step("export", TypeAdapter(ExportSkipped | Exported))
LINES: Final = Step("lines", TypeAdapter(tuple[Line, ...]))
WINDOWS: Final = Step("windows", TypeAdapter(tuple[int, ...]))
"""Starts of the days that the run may read."""
JUDGE: Final = Step("judge", TypeAdapter(JudgedDays))
PLAN: Final = Step("plan", TypeAdapter(TrainingPlan))
ITEM_TABLE: Final = Step("item table of", TypeAdapter(str))
"""Its name. This step and those below are done for each line: `STEP.of(alias)`."""
COUNT: Final = Step("train counts", TypeAdapter(str))
"""The version of the baseline `counts`, trained on the same days."""
TRAIN: Final = Step("train", TypeAdapter(str))
"""The new model's version."""
GATES: Final = Step("gates of", TypeAdapter(Challenge))
PROMOTE: Final = Step("promote", TypeAdapter(bool))
"""Whether the line has its new model; if not, `Challenge.why_kept` says why."""
RECORD: Final = Step("record", TypeAdapter(None))
