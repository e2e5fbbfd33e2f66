"""The study of ageing: when a policy trains, what it may have seen, and what its figures are made of."""

from pathlib import Path

import click
import numpy as np
import pytest

from benchmarks.decay import POLICIES, Study
from benchmarks.decay_report import Ages, Cost, Day, draw_costs, draw_curves, tell
from rayapp.contracts.config import Domain


def ages(ageing: float) -> Ages:
    """Two models over six days; `v1.1` loses `ageing` AUC a day when it is not trained again, `no-sequence` nothing."""
    rng, days = np.random.default_rng(0), []
    for variant, level in (("v1.1", 0.8), ("no-sequence", 0.7)):
        for policy in ("none", "daily", "daily-warm"):
            for seed in range(2):
                for n in range(6):
                    loss = ageing * n if (variant, policy) == ("v1.1", "none") else 0.0
                    value_K = np.r_[0.0, rng.normal(0, 1e-3, 50)] + level - loss
                    cost = None if policy == "none" or not n else Cost(2.0 if policy == "daily" else 0.5, 100)
                    values = {"auc": value_K, "normalised_entropy": 1 - value_K}
                    days.append(Day(variant, policy, seed, 7 + n, values, values if cost else None, cost))
    return Ages(days)


def test_policies_train_as_often_as_they_say() -> None:
    due = {name: [n for n in range(1, 15) if policy.due(n)] for name, policy in POLICIES.items()}
    assert due["none"] == []
    assert due["twice-weekly"] == [4, 7, 11, 14]
    assert due["daily"] == due["daily-sequence"] == list(range(1, 15))


@pytest.mark.parametrize("lag", [0, 1, 2])
def test_no_training_sees_a_day_whose_labels_are_open(domain: Domain, lag: int) -> None:
    study = Study(Path(), domain, tuple(range(12)), window_days=4, lag_days=lag)
    assert list(study.seen(study.scored[0], warm=False)) == [0, 1, 2, 3]
    for day in study.scored:
        assert study.seen(day, warm=False)[-1] == study.seen(day, warm=True)[-1] == day - lag - 1
        assert len(study.seen(day, warm=False)) == 4
    for before, day in zip(study.scored, study.scored[1:], strict=False):
        assert study.seen(day, warm=True)[0] == study.seen(before, warm=True)[-1], "the next unseen day, and no gap"


@pytest.mark.slow
def test_ageing_is_told_where_it_is_and_only_there(domain: Domain, tmp_path: Path) -> None:
    with click.Context(click.Command("decay"), info_name="rayapp"):
        report = tell(ages(0.01), domain, "Ageing", ["A note."], False, tmp_path / "decay.md")
    ageing = next(line for line in report.splitlines() if line.startswith("| v1.1: none less daily"))
    first, last = (float(cell.split()[0]) for cell in (ageing.split("|")[2], ageing.split("|")[4]))
    assert first == pytest.approx(-0.005)
    assert last == pytest.approx(-0.045)
    faster = next(line for line in report.splitlines() if line.startswith("| v1.1 less no-sequence"))
    assert "-0.0250 [" in faster
    other = next(line for line in report.splitlines() if line.startswith("| no-sequence: none less daily"))
    assert float(other.split("|")[-2].split()[0]) == 0.0
    assert "25% [25%, 25%]" in report, "a warm training's share of the cost"
    assert (tmp_path / "decay.md").read_text().count(".svg)") == 2
    assert all((tmp_path / name).read_text().startswith("<?xml") for name in ("decay.svg", "decay_cost.svg"))


@pytest.mark.slow
def test_pictures_are_the_same_when_drawn_again(tmp_path: Path) -> None:
    for draw in (draw_curves, draw_costs):
        draw(tmp_path / "a.svg", "t", ages(0.01))
        draw(tmp_path / "b.svg", "t", ages(0.01))
        assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
