"""What a run would take, without taking it."""

from dataclasses import dataclass
from pathlib import Path

from rayapp.loop.daily import candidate_days, tested_until_ms
from rayapp.loop.lines import read_root_lines
from rayapp.loop.plan import TrainingPlan, day_window, make_plan
from rayapp.loop.run_state import refused_windows
from rayapp.loop.steps import RetrainOptions
from rayapp.registry.aliases import CHAMPION, read_aliases
from rayapp.root.facts import read_root
from rayapp.root.places import WINDOWS


@dataclass(frozen=True, slots=True)
class Preview:
    """The plan, as the log stands: an export may bring more, and new days are judged only by a run."""

    lines: list[tuple[str, str | None, str]]
    """Alias, live version, preset and variant of the next model."""
    to_build: list[str]
    refused: list[str]
    plan: TrainingPlan | None
    new: bool


def preview(root: Path, options: RetrainOptions, as_of_ms: int) -> Preview:
    """Reads the root and writes nothing. Ray must be initialised."""
    domain, _ = read_root(root)
    days = candidate_days(root, domain, options.train_window_days, as_of_ms)
    plan = make_plan(days)
    known_ms = tested_until_ms(root, read_aliases(root).get(CHAMPION))
    lines = read_root_lines(root, domain, options.first, options.chosen)
    return Preview(
        [(line.alias, line.version, f"{line.preset.name} {line.preset.variant}") for line in lines],
        [day_window(day) for day in days if not (root / WINDOWS / day_window(day)).exists()],
        sorted(refused_windows(root)),
        plan,
        plan is not None and plan.tested_until_ms > known_ms,
    )
