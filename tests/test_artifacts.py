"""What trainings leave keeps its names: a root that an earlier version made finds its windows and models again."""

from pathlib import Path

import pytest

from rayapp.contracts.config import DAY_MS
from rayapp.contracts.presets import nano, variant
from rayapp.importing.domains import load_domain
from rayapp.loop.artifacts import Prepared, training_run
from rayapp.loop.limits import GateLimits
from rayapp.loop.lines import Line
from rayapp.loop.plan import Split, TrainingPlan
from rayapp.loop.run_state import new_run
from rayapp.loop.steps import RetrainOptions, RetrainSteps
from rayapp.root.places import ITEM_TABLES
from rayapp.root.publish import write_json
from tests.conftest import T0

DOMAIN = load_domain("synthetic").domain
DAYS = [T0 + n * DAY_MS for n in range(8)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with an item table's manifest: all that a run's name takes from it."""
    (tmp_path / ITEM_TABLES / "t").mkdir(parents=True)
    write_json(tmp_path / ITEM_TABLES / "t" / "manifest.json", {"width": 8, "vectors": "trained"})
    return tmp_path


def test_a_first_training_has_its_names(root: Path) -> None:
    prepared = Prepared(DOMAIN, Split(DAYS[0], DAYS[4], DAYS[5], DAYS[7]).spans)
    assert prepared.windows == ("2026-01-01_2026-01-05", "2026-01-05_2026-01-06", "2026-01-06_2026-01-08")
    run = training_run(root, prepared, nano(), "t")
    assert run.version == "nano-v1.1-7f54a5d5"
    assert (*run.train_windows, run.validation_window, run.test_window) == prepared.windows
    other = training_run(root, prepared, variant(nano(), "no-sequence"), "t", num_workers=2)
    assert other.version == "nano-no-sequence-bcb5816b"
    assert training_run(root, prepared, nano(), "t", init_from="parent").version == "nano-v1.1-2572c8fc"


@pytest.mark.parametrize(
    ("init", "version"), [("scratch", "nano-v1.1-2026-01-05-abf1d0be"), ("warm", "nano-v1.1-2026-01-05-ed9e1ec0")]
)
def test_a_retraining_has_its_names(root: Path, init: str, version: str) -> None:
    options = RetrainOptions(first=nano(), init=init)  # type: ignore[arg-type]
    state = new_run(root, options.to_json(), DAYS[6])
    steps = RetrainSteps(root, DOMAIN, options, GateLimits(), state, None, lambda _: None)
    plan = TrainingPlan((DAYS[0], DAYS[1]), DAYS[3], DAYS[4])
    run = steps.training_run(Line("champion", "parent", nano(), "t"), plan, "t")
    assert run.version == version
    assert run.train_windows == ("2026-01-01_2026-01-02", "2026-01-02_2026-01-03")
    assert (run.validation_window, run.test_window) == ("2026-01-04_2026-01-05", "2026-01-05_2026-01-06")
