"""The preset `auto`: what is worked out from the size of a log, and which ranker a first training promotes."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayapp.contracts.auto import ANCHORS, FEWEST_EVALUATIONS, MOST_EVALUATIONS, LogSize, fit, refit
from rayapp.contracts.config import DAY_MS, Domain, ModelConfig, TrainConfig
from rayapp.contracts.json_values import from_json, to_json
from rayapp.contracts.presets import COUNTS, DEFAULT_VARIANT, MODELS, Preset, auto, demo, nano, paper, variant
from rayapp.loop.artifacts import Prepared, fitted, log_size
from rayapp.loop.choose import judge
from rayapp.root.places import WINDOWS
from rayapp.root.publish import write_json
from rayapp.training.comparison import BootstrapInterval
from rayapp.training.schedule import Schedule, spread, warmup_of
from tests.conftest import T0
from tests.small_window import publish_window


def size(lists: int, per_list: int = 10) -> LogSize:
    """A log whose validation is an eighth of the time before the test, as `make_split` cuts it."""
    return LogSize(lists, lists * per_list, max(1, lists // 7))


def num_steps(preset: Preset, log: LogSize) -> int:
    return preset.train.num_epochs * math.ceil(log.lists / preset.train.batch_requests)


def num_weights(model: ModelConfig) -> int:
    """Those of the crossing, nearly all of a ranker's, without its attributes."""
    return model.num_cross_layers * (model.latest_k + 1) ** 2 * (model.action_dim + 2 * model.item_dim) ** 2


def test_the_last_anchor_is_the_published_model() -> None:
    log = size(50_000_000, 20)
    assert fit(auto(), log).model == paper().model
    assert fit(auto(), log).train.learning_rate == paper().train.learning_rate
    assert fit(auto(), log).train.batch_requests == paper().train.batch_requests


def test_a_small_log_is_gone_over_several_times_and_a_large_one_once() -> None:
    epochs = [fit(auto(), size(lists)).train.num_epochs for lists in (500, 1_000, 5_000, 40_000, 5_000_000, 50_000_000)]
    assert epochs[0] >= 5
    assert epochs == sorted(epochs, reverse=True)
    assert epochs[3:] == [1, 1, 1]


@given(st.integers(500, 50_000_000), st.integers(1, 30))
def test_more_lists_never_make_a_smaller_model_nor_a_run_too_short_to_learn(lists: int, per_list: int) -> None:
    log, more = size(lists, per_list), size(2 * lists, per_list)
    small, large = fit(auto(), log), fit(auto(), more)
    assert num_weights(small.model) <= num_weights(large.model)
    if log.shown >= ANCHORS[0]["shown"]:
        assert num_steps(small, log) > 250
        assert num_steps(small, log) < 2 * num_steps(large, more), "epochs are whole"
    assert small.model.latest_k <= small.model.history_length
    train = small.train
    assert 2 <= train.patience_evaluations < train.evaluations <= MOST_EVALUATIONS
    assert warmup_of(num_steps(small, log), train.warmup_steps) <= train.warmup_steps + 1
    assert train.warmup_steps < num_steps(small, log) / 5


@pytest.mark.parametrize("lists", [1, 3, 40])
def test_a_log_of_a_few_lists_has_a_schedule_too(lists: int) -> None:
    train = fit(auto(), LogSize(lists, 2 * lists, 0)).train
    assert train.batch_requests >= 1
    assert train.num_epochs >= 5
    assert FEWEST_EVALUATIONS <= train.evaluations <= MOST_EVALUATIONS


def test_what_was_asked_for_stays() -> None:
    asked = variant(auto().with_epochs(3).seeded(7), "half-length")
    given_epochs = fit(asked, size(2_000))
    own = fit(variant(auto().seeded(7), "half-length"), size(2_000))
    assert (given_epochs.train.num_epochs, given_epochs.train.seed, given_epochs.variant) == (3, 7, "half-length")
    assert own.train.num_epochs > 3
    assert own.model.history_length == fit(auto(), size(2_000)).model.history_length // 2
    masked = fit(variant(auto(), "day-time-mask"), size(2_000))
    assert masked.train.time_mask_ms == DAY_MS


def test_a_live_model_keeps_its_sizes_and_gets_the_schedule_of_its_new_days() -> None:
    first = fit(variant(auto().with_epochs(2).seeded(3), "v1.0"), size(2_000))
    live = from_json(Preset, json.loads(json.dumps(to_json(first))))
    assert live == first
    again = refit(live, size(2_000_000))
    assert (again.model, again.variant, again.name) == (first.model, "v1.0", "auto")
    assert again.train == dataclasses.replace(fit(auto(), size(2_000_000)).train, seed=3)


def test_only_auto_reads_the_windows(tmp_path: Path, domain: Domain) -> None:
    prepared = Prepared(domain, ((0, DAY_MS), (DAY_MS, 2 * DAY_MS), (2 * DAY_MS, 3 * DAY_MS)))
    assert fitted(tmp_path, prepared, demo()) == demo()


def test_the_size_of_a_log_is_read_off_its_windows(root: Path, domain: Domain) -> None:
    publish_window(root, domain, num_requests=60)
    spans = tuple((T0 + n * DAY_MS, T0 + (n + 1) * DAY_MS) for n in range(4))
    prepared = Prepared(domain, spans)
    for name in prepared.train_windows:
        (root / WINDOWS / name).symlink_to(root / WINDOWS / "w", target_is_directory=True)
    (root / WINDOWS / prepared.validation_window).mkdir()
    write_json(root / WINDOWS / prepared.validation_window / "manifest.json", {"buckets": [{"requests": 5}]})
    assert log_size(root, prepared) == LogSize(120, 240, 5)


def test_points_are_spread_to_the_end_of_a_run() -> None:
    assert spread(100, 4) == {25, 50, 75, 100}
    assert spread(10, 3) == {4, 7, 10}
    assert spread(2, 5) == {1, 2}


def test_evaluations_come_within_and_across_epochs() -> None:
    def schedule(**settings: int) -> Schedule:
        return Schedule.of(TrainConfig(**settings), lambda epoch: 10 + epoch)  # type: ignore[arg-type]

    assert schedule(num_epochs=2, evaluations=3, patience_evaluations=2).points == {7, 14, 21}
    assert schedule(num_epochs=2, evaluations=3, patience_evaluations=2, patience_epochs=9).patience == 2
    by_epoch = schedule(num_epochs=2, patience_epochs=1)
    assert (by_epoch.points, by_epoch.patience, by_epoch.num_steps) == ({10, 21}, 1, 21)


@pytest.mark.parametrize(
    ("low", "high", "kept"),
    [(-0.02, -0.001, False), (-0.02, 0.0, True), (-0.02, 0.01, True), (0.01, 0.02, True), (math.nan, math.nan, True)],
)
def test_the_sequence_is_taken_out_only_where_it_certainly_does_harm(
    low: float, high: float, kept: bool, domain: Domain
) -> None:
    choice = judge("v1.1", BootstrapInterval((low + high) / 2, low, high), f"AUC of {domain.positive_head!r}")
    assert choice.variant == ("v1.1" if kept else "no-sequence")
    assert choice.why.startswith("the sequence stays in" if kept else "the sequence is taken out")
    assert "with it (v1.1) less without it" in choice.why
    assert "on the validation window" in choice.why


@pytest.mark.parametrize("name", MODELS)
def test_a_variant_of_a_preset_is_the_same_whatever_variant_it_was_before(name: str) -> None:
    """`train` makes the baselines out of the preset of the ranker that was asked for."""
    assert variant(variant(nano(), DEFAULT_VARIANT), name) == variant(nano(), name)
    if name != COUNTS:
        assert variant(variant(nano(), name), COUNTS).model.match_dim == 0
