"""What trainings leave keeps its names: a root that an earlier version made finds its windows and models again."""

import dataclasses
from pathlib import Path

import pytest

from rayapp.contracts.config import DAY_MS
from rayapp.contracts.json_values import to_json
from rayapp.contracts.presets import nano, variant
from rayapp.importing.domains import load_domain
from rayapp.loop.artifacts import Prepared, training_run
from rayapp.loop.limits import GateLimits
from rayapp.loop.lines import Line
from rayapp.loop.plan import HELD_OUT_DAYS, Span, Split, TrainingPlan, day_span
from rayapp.loop.run_state import new_run
from rayapp.loop.steps import RetrainOptions, RetrainSteps
from rayapp.registry.models import FORMAT, LINEAGE
from rayapp.root.places import ITEM_TABLES, MODELS
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
    assert run.version == "nano-v1.1-3afef607"
    assert (*run.train_windows, run.validation_window, run.test_window) == prepared.windows
    other = training_run(root, prepared, variant(nano(), "no-sequence"), "t", num_workers=2)
    assert other.version == "nano-no-sequence-38cf8ede"
    assert training_run(root, prepared, nano(), "t", init_from="parent").version == "nano-v1.1-96a842b6"


@pytest.mark.parametrize(
    ("spans", "reads"),
    [
        (Split(T0, T0 + 28 * DAY_MS, T0 + 30 * DAY_MS, T0 + 40 * DAY_MS).spans, True),
        (Split(T0, T0 + 27 * DAY_MS, T0 + 60 * DAY_MS, T0 + 90 * DAY_MS).spans, False),
        (tuple(day_span(T0 + n * DAY_MS) for n in range(30)), True),
        (tuple(day_span(T0 + n * DAY_MS) for n in range(29)), False),
        (tuple(day_span(T0 + n * 7 * DAY_MS) for n in range(10)), False),
    ],
    ids=["28 days", "27 days", "28 windows of a day", "27 windows of a day", "eight Thursdays"],
)
def test_the_day_of_the_week_is_read_where_the_windows_hold_four_weeks(
    root: Path, spans: tuple[Span, ...], reads: bool
) -> None:
    """Whatever the preset was trained with before."""
    for before in (False, True):
        run = training_run(root, Prepared(DOMAIN, spans), nano().replace(reads_weekday=before), "t")
        assert run.preset.model.reads_weekday == reads


@pytest.mark.parametrize("parent_reads", [False, True])
@pytest.mark.parametrize("days", [7, 28])
def test_a_part_of_a_model_is_trained_on_the_days_of_the_week_that_the_rest_reads(
    root: Path, days: int, parent_reads: bool
) -> None:
    manifest = {
        **dict.fromkeys(LINEAGE),
        "format": FORMAT,
        "preset": to_json(nano().replace(reads_weekday=parent_reads)),
    }
    (root / MODELS / "parent").mkdir(parents=True)
    write_json(root / MODELS / "parent" / "manifest.json", manifest)
    prepared = Prepared(DOMAIN, tuple(day_span(T0 + n * DAY_MS) for n in range(days + HELD_OUT_DAYS)))
    heads = dataclasses.replace(nano(), train=dataclasses.replace(nano().train, scope="heads"))
    assert training_run(root, prepared, heads, "t", init_from="parent").preset.model.reads_weekday == parent_reads
    assert training_run(root, prepared, nano(), "t", init_from="parent").preset.model.reads_weekday == (days == 28)


@pytest.mark.parametrize(
    ("init", "version"), [("scratch", "nano-v1.1-2026-01-05-9843df2b"), ("warm", "nano-v1.1-2026-01-05-89dc298c")]
)
def test_a_retraining_has_its_names(root: Path, init: str, version: str) -> None:
    options = RetrainOptions(first=nano(), init=init)  # type: ignore[arg-type]
    state = new_run(root, options.to_json(), DAYS[6])
    steps = RetrainSteps(root, DOMAIN, options, GateLimits(), state, None, lambda _: None)
    plan = TrainingPlan((DAYS[0], DAYS[1]), DAYS[3], DAYS[4])
    (root / MODELS / "parent").mkdir(parents=True)
    write_json(root / MODELS / "parent" / "manifest.json", {"format": FORMAT})
    write_json(root / MODELS / "parent" / "schema.json", {"domain": to_json(DOMAIN)})
    run = steps.training_run(Line("champion", "parent", nano(), "t"), plan, "t")
    assert run.version == version
    assert run.train_windows == ("2026-01-01_2026-01-02", "2026-01-02_2026-01-03")
    assert (run.validation_window, run.test_window) == ("2026-01-04_2026-01-05", "2026-01-05_2026-01-06")
