"""What a retraining leaves on disk: `retrainings/<run id>/{state.json, report.md, report.json}`, and beside the runs
`excluded.json`, the days that were refused. Every file is replaced whole."""

import dataclasses
import re
import time
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from rayapp.contracts.config import day_name
from rayapp.root.places import RETRAININGS
from rayapp.root.publish import PublishError, read_json, write_json

STATE: Final = "state.json"
EXCLUDED: Final = "excluded.json"
PROMOTED, REFUSED, NO_NEW_DATA, FAILED, ABANDONED = "promoted", "refused", "no new data", "failed", "abandoned"
JUDGED: Final = (PROMOTED, REFUSED)
"""Outcomes after which the same days are not tried again."""
FORMAT: Final = 1
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Step(Generic[T]):
    """One step of a run: its name, as it is printed and kept, and how its result is read and written."""

    name: str
    result: TypeAdapter[T]

    def of(self, alias: str) -> "Step[T]":
        """The step for one line."""
        return dataclasses.replace(self, name=f"{self.name} {alias}")


@dataclass(slots=True)
class RunState:
    """One run. `stages`: name of a finished step -> its result as JSON; `find` and `keep` give and take it typed."""

    root: Path
    id: str
    options: dict[str, Any]
    as_of_ms: int
    started_ms: int
    stages: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    outcome: str | None = None
    why: str = ""
    resumed: int = 0
    """How often a killed run was taken up again."""
    finished_ms: int | None = None

    @property
    def directory(self) -> Path:
        return self.root / RETRAININGS / self.id

    def find(self, step: Step[T]) -> T | None:
        """What a finished step found; None for one that is still to come.

        Raises:
            PublishError: the state was changed by hand, or damaged.
        """
        if step.name not in self.stages:
            return None
        try:
            return step.result.validate_python(self.stages[step.name])
        except ValidationError as error:
            raise PublishError(f"{self.directory / STATE} is damaged at {step.name!r}; move it away: {error}") from None

    def keep(self, step: Step[T], result: T, seconds: float) -> None:
        self.stages[step.name] = step.result.dump_python(result, mode="json")
        self.seconds[step.name] = round(seconds, 2)
        self.save()

    def save(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        write_json(self.directory / STATE, {"format": FORMAT, **self.to_json()})

    def to_json(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name != "root"}


def new_run(root: Path, options: dict[str, Any], as_of_ms: int) -> RunState:
    """A run that is not on disk yet; its id is the moment it is for, and a number where there are several."""
    moment = re.sub(r"\W", "", day_name(as_of_ms // 60_000 * 60_000).replace("-", ""))
    taken = {path.name for path in (root / RETRAININGS).glob(f"{moment}-*")}
    number = next(n for n in range(1, len(taken) + 2) if f"{moment}-{n}" not in taken)
    return RunState(root, f"{moment}-{number}", options, as_of_ms, time.time_ns() // 1_000_000)


def read_runs(root: Path) -> list[RunState]:
    """All runs, oldest first.

    Raises:
        PublishError: one is damaged or was written by a newer version.
    """
    runs = []
    for path in (root / RETRAININGS).glob(f"[!.]*/{STATE}"):
        values = read_json(path)
        if values.pop("format", None) != FORMAT:
            raise PublishError(f"{path} was written by another version of rayapp; install that one, or move it away")
        runs.append(RunState(root=root, **values))
    return sorted(runs, key=lambda run: run.started_ms)


def read_excluded(root: Path) -> dict[str, dict[str, Any]]:
    """Window -> `{run, reasons, accepted}` of every day that a run refused; `accepted`: an operator took it back."""
    path = root / RETRAININGS / EXCLUDED
    excluded: dict[str, dict[str, Any]] = read_json(path) if path.exists() else {}
    return excluded


def refused_windows(root: Path) -> set[str]:
    return {name for name, entry in read_excluded(root).items() if not entry["accepted"]}


def exclude(root: Path, window: str, run: str, reasons: list[str]) -> None:
    """No run reads the window until it is accepted."""
    _write(root, read_excluded(root) | {window: {"run": run, "reasons": reasons, "accepted": False}})


def accept(root: Path, window: str) -> None:
    """Lets runs read a refused window, and does not judge it again.

    Raises:
        PublishError: it was not refused.
    """
    excluded = read_excluded(root)
    if window not in excluded:
        known = ", ".join(sorted(refused_windows(root))) or "none"
        raise PublishError(f"{window} was not refused; refused are: {known}")
    excluded[window]["accepted"] = True
    _write(root, excluded)


def _write(root: Path, excluded: dict[str, dict[str, Any]]) -> None:
    (root / RETRAININGS).mkdir(exist_ok=True)
    write_json(root / RETRAININGS / EXCLUDED, dict(sorted(excluded.items())))
