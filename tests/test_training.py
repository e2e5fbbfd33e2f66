"""The training loop without Ray, on a small window on disk: steps, resume, early stop, calibrated scores, mistakes."""

import dataclasses
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayapp.contracts.config import Domain, TrainConfig
from rayapp.contracts.presets import PRESETS, nano
from rayapp.contracts.schema import user_schema
from rayapp.features.attributes import AttributeEncoder, Encoders
from rayapp.features.sequence import Sequences
from rayapp.features.statistic_columns import Columns
from rayapp.model.inputs import FeatureTables, UserTable, items_as_table
from rayapp.model.item_table import ItemTable
from rayapp.model.ranker import Ranker
from rayapp.model.tower import LinearTower
from rayapp.pipeline.window_loader import RequestBatch, WindowReader
from rayapp.root.publish import PublishError
from rayapp.statistics.known import load_base
from rayapp.training import TrainingError
from rayapp.training.evaluate import score_window
from rayapp.training.loop import POSITION, Loop
from rayapp.training.schedule import learning_rate
from rayapp.training.start import start
from rayapp.training.user_weights import user_weights
from tests.scorers import make_scorer
from tests.small_window import publish_window
from tests.tiny_models import publish_models

SETTINGS = TrainConfig(num_epochs=3, batch_requests=16, learning_rate=3e-3, warmup_steps=2, patience_epochs=1)


def make_loop(root: Path, domain: Domain, settings: TrainConfig = SETTINGS, **changed: Any) -> Loop:
    reader = WindowReader(root, ["w"], domain, 8)
    items = [{"item_id": f"i{n}", "created_at_ms": 0, "title": f"t{n}", "genres": [f"g{n % 3}"]} for n in range(8)]
    rng = np.random.default_rng(0)
    tower = LinearTower(rng.normal(size=(64, 8)).astype(np.float32), domain.attributes)
    table = ItemTable.make("t", tower, items, np.zeros(8, np.int64), tower.embed(items), 0)
    nothing = AttributeEncoder({}, {}, {}, {})
    encoders = Encoders(AttributeEncoder.fit(items_as_table(table), domain.attributes), nothing, nothing)
    users = UserTable.of(user_schema(()).empty_table(), nothing)
    inputs = FeatureTables.of(table, users, encoders, domain)
    torch.manual_seed(settings.seed)
    model = dataclasses.replace(nano().model, history_length=8)
    ranker = Ranker(model, encoders, domain)
    arguments = {"run": "this run", "train": reader, "validation": reader, **changed}
    return Loop(ranker, inputs, domain, settings, **arguments)


def weights(loop: Loop) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in loop.ranker.state_dict().items()}


class Killed(Exception):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("stop_at", [1, 7, 30])
@pytest.mark.parametrize("evaluations", [0, 10])
def test_a_resumed_run_ends_with_the_same_weights(
    root: Path, domain: Domain, tmp_path: Path, stop_at: int, evaluations: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Position, optimizer, dropout and early stop all come back: not nearly the same, the same."""
    monkeypatch.setattr("rayapp.training.loop.CHECKPOINT_EVERY_S", -1.0)  # after every step
    publish_window(root, domain, num_requests=400)
    settings = dataclasses.replace(SETTINGS, evaluations=evaluations, patience_evaluations=2)
    undisturbed = make_loop(root, domain, settings)
    end = undisturbed.run()
    killed = make_loop(root, domain, settings)
    count = itertools.count(1)

    def die() -> None:
        if next(count) == stop_at:
            killed.save(tmp_path)
            raise Killed

    with pytest.raises(Killed):
        killed.run(die)
    resumed = make_loop(root, domain, settings)
    resumed.restore(tmp_path)
    assert 0 < resumed.position.step < end.step
    again = resumed.run()
    assert (again.step, again.examples, again.best_loss) == (end.step, end.examples, end.best_loss)
    for name, tensor in weights(undisturbed).items():
        assert torch.equal(tensor, weights(resumed)[name]), name


def test_a_checkpoint_of_another_run_is_refused_in_words(root: Path, domain: Domain, tmp_path: Path) -> None:
    publish_window(root, domain)
    make_loop(root, domain).save(tmp_path)
    with pytest.raises(TrainingError, match="belongs to run this run, this is another: other data, settings or sizes"):
        make_loop(root, domain, run="another").restore(tmp_path)


def test_a_checkpoint_of_another_version_is_refused_in_words(root: Path, domain: Domain, tmp_path: Path) -> None:
    publish_window(root, domain)
    make_loop(root, domain).save(tmp_path)
    saved = json.loads((tmp_path / POSITION).read_text())
    saved["position"]["epochs_without_gain"] = 1
    (tmp_path / POSITION).write_text(json.dumps(saved))
    with pytest.raises(TrainingError, match=r"another version .*epochs_without_gain is unknown"):
        make_loop(root, domain).restore(tmp_path)


@pytest.mark.slow
def test_training_stops_early_and_keeps_the_best_epoch(
    root: Path, domain: Domain, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    publish_window(root, domain, num_requests=200)
    log = tmp_path / "train.jsonl"
    settings = dataclasses.replace(SETTINGS, num_epochs=40, learning_rate=0.3, patience_epochs=1)  # far too fast
    loop = make_loop(root, domain, settings, log=log)
    position = loop.run()
    losses = [line["validation_loss"] for line in map(json.loads, log.read_text().splitlines()) if "epoch" in line and
              "validation_loss" in line]  # fmt: skip
    assert position.epoch == len(losses) < 40
    assert position.best_loss == min(losses)
    best_first = losses.index(min(losses))
    assert len(losses) - 1 - best_first == 2, "one epoch of patience, then the one that ended it"
    fresh = make_loop(root, domain, settings)
    fresh.ranker.load_state_dict(loop.ranker.state_dict())
    fresh._validate()
    assert fresh.position.best_loss == pytest.approx(position.best_loss, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["demo", "paper"])
def test_a_small_log_is_trained_for_some_hundred_steps_and_no_stop_comes_in_the_warm_up(
    root: Path, domain: Domain, preset: str
) -> None:
    """The presets of `rayapp train`, on a window of one batch an epoch and with nothing to gain in any."""
    publish_window(root, domain, num_requests=40)
    settings = PRESETS[preset]().train
    assert settings.patience_epochs >= 2
    loop = make_loop(root, domain, dataclasses.replace(settings, learning_rate=0.0))
    assert 300 <= loop.num_steps <= 302
    warmup = 30
    rates = [learning_rate(step, loop.num_steps, 1.0, settings.warmup_steps) for step in range(loop.num_steps)]
    assert np.argmax(rates) <= warmup, "at most a tenth"
    position = loop.run()
    assert position.step > warmup + 2


def test_epochs_that_were_asked_for_are_not_repeated(root: Path, domain: Domain) -> None:
    publish_window(root, domain, num_requests=40)
    assert make_loop(root, domain, PRESETS["demo"]().with_epochs(3).train).num_steps == 3


@pytest.mark.slow
def test_evaluations_within_an_epoch_keep_the_best_weights_and_count_the_patience(
    root: Path, domain: Domain, tmp_path: Path
) -> None:
    """A run that gains nothing stops after the warm-up and as many evaluations as its patience, in mid-epoch."""
    publish_window(root, domain, num_requests=400)
    log = tmp_path / "train.jsonl"
    settings = dataclasses.replace(SETTINGS, num_epochs=4, evaluations=25, patience_evaluations=2, learning_rate=0.0)
    loop = make_loop(root, domain, dataclasses.replace(settings, warmup_steps=1_000), log=log)
    position = loop.run()
    lines = list(map(json.loads, log.read_text().splitlines()))
    looked = [line["step"] for line in lines if "validation_loss" in line]
    warmup = loop.num_steps // 10
    assert looked == sorted(math.ceil(loop.num_steps * n / 25) for n in range(1, len(looked) + 1))
    assert position.stopped == "3 evaluations without gain"
    assert position.step == [step for step in looked if step > warmup][2]
    assert position.batch > 0, "in mid-epoch"


@pytest.mark.slow
def test_a_run_that_ends_says_so(root: Path, domain: Domain) -> None:
    publish_window(root, domain)
    settings = dataclasses.replace(SETTINGS, evaluations=5, patience_evaluations=5)
    loop = make_loop(root, domain, settings)
    position = loop.run()
    assert (position.step, position.stopped) == (loop.num_steps, "the schedule ended")


@pytest.mark.slow
def test_the_loss_falls(root: Path, domain: Domain, tmp_path: Path) -> None:
    publish_window(root, domain, num_requests=400)
    log = tmp_path / "train.jsonl"
    make_loop(root, domain, dataclasses.replace(SETTINGS, num_epochs=6), log=log).run()
    lines = [line for line in map(json.loads, log.read_text().splitlines()) if "num_steps" in line]
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    assert lines[-1]["step"] == lines[-1]["num_steps"]
    assert all(a["step"] < b["step"] for a, b in itertools.pairwise(lines))


def test_a_loss_that_is_no_number_stops_the_run_and_says_where(root: Path, domain: Domain) -> None:
    publish_window(root, domain)
    loop = make_loop(root, domain)
    loop.inputs.vector_NE[3] = float("nan")
    with pytest.raises(
        TrainingError, match=r"the loss is nan at step 0 \(epoch 0, batch 0, seed 0\); its first request"
    ):
        loop.run()


def test_a_user_without_history_and_a_head_without_positives_train(root: Path, domain: Domain) -> None:
    publish_window(root, domain)
    loop = make_loop(root, domain)
    batch = next(loop.train.in_order(1_000))
    empty = dataclasses.replace(
        batch,
        requests=dataclasses.replace(batch.requests, sequences=_empty(len(batch))),
        label_NH=np.zeros_like(batch.label_NH),
    )
    sums = loop.step(empty)
    assert torch.isfinite(sums).all()
    assert all(torch.isfinite(tensor).all() for tensor in weights(loop).values())


def _empty(n: int) -> Sequences:
    zeros = np.zeros((n, 8), np.int64)
    return Sequences(zeros.astype(np.uint8), zeros.astype(np.uint64), zeros, np.zeros(n, np.int64))


def test_an_empty_split_and_too_long_a_history_are_refused(root: Path, domain: Domain) -> None:
    publish_window(root, domain)
    with pytest.raises(PublishError, match="keeps 8 actions a user; the model asks for 9"):
        WindowReader(root, ["w"], domain, 9)


def test_without_its_statistics_a_training_says_what_to_run(root: Path, domain: Domain) -> None:
    publish_window(root, domain)
    scorer = make_scorer()
    with pytest.raises(PublishError, match="has no statistics yet; `rayapp train` counts them, or `rayapp windows`"):
        score_window(scorer, root, "w", domain)
    with pytest.raises(PublishError, match=r"there are no statistics 000001-gone .*; `rayapp windows` counts them"):
        load_base(root, "000001-gone", domain)


def test_a_window_that_is_read_without_statistics_has_zeros_for_them(root: Path, domain: Domain) -> None:
    reader = publish_window(root, domain)
    num_item, num_user = Columns.of(domain).widths
    for batch in reader.in_order(10):
        assert batch.requests.item_statistic_NK.shape == (len(batch.requests.candidate_hash_N), num_item)
        assert batch.requests.user_statistic_RK.shape == (len(batch.requests), num_user)
        assert not batch.requests.item_statistic_NK.any()
        assert not batch.requests.user_statistic_RK.any()


@pytest.mark.parametrize("parent", [None, "a"])
@pytest.mark.parametrize("reads_weekday", [False, True])
def test_a_run_reads_the_day_of_the_week_as_its_own_preset_says(
    root: Path, domain: Domain, parent: str | None, reads_weekday: bool
) -> None:
    """Not as the model that it starts from, whose weights fit either way."""
    publish_models(root, domain)
    begun = start(root, nano().replace(reads_weekday=reads_weekday), "table", domain, parent)
    assert begun.inputs.config.reads_weekday == reads_weekday
    assert begun.drawn == ()


@pytest.mark.parametrize("world", [2, 3])
def test_shares_of_a_batch_add_up_to_the_batch(root: Path, domain: Domain, world: int) -> None:
    """The loss is a mean over the examples of all workers, however unevenly these fell."""
    publish_window(root, domain)
    loop = make_loop(root, domain)
    (whole,) = loop.train.batches(1_000, seed=0, epoch=0)
    parts = [next(loop.train.batches(1_000, seed=0, epoch=0, rank=r, world=world)) for r in range(world)]
    loop.ranker.eval()
    loss, examples = loop.loss(whole, loop.ranker)
    losses, counts = zip(*(loop.loss(part, loop.ranker) for part in parts), strict=True)
    assert sum(counts) == examples
    torch.testing.assert_close(sum(losses), loss)


def test_user_weights_multiply_over_attributes(root: Path, domain: Domain) -> None:
    publish_window(root, domain)
    loop = make_loop(root, domain)
    encoder = AttributeEncoder({"country": ["de", "nl"], "state": ["new"]}, {"country": 1, "state": 1}, {}, {})
    batch: RequestBatch = next(loop.train.in_order(1_000))
    first = batch.requests.user_hash_R[0]
    table = UserTable(
        np.array([first]), np.zeros(1, np.int64), np.array([[0, 0], [3, 4]], np.int32), np.zeros((2, 0), np.float32)
    )
    inputs = dataclasses.replace(
        loop.inputs, users=table, encoders=dataclasses.replace(loop.inputs.encoders, user=encoder)
    )
    weighing = dataclasses.replace(domain, user_weights={})
    object.__setattr__(weighing, "user_weights", {"country": {"nl": 2.0}, "state": {"new": 3.0}})
    weight = user_weights(weighing, inputs)[table.rows_of(batch.requests.user_hash_R, batch.requests.timestamp_ms_R)]
    assert set(weight[batch.requests.user_hash_R == first]) == {6.0}
    assert set(weight[batch.requests.user_hash_R != first]) == {1.0}


def test_the_schedule_warms_up_and_decays_to_nothing() -> None:
    rates = [learning_rate(step, 100, 1.0, 10) for step in range(100)]
    assert rates[:10] == pytest.approx([(n + 1) / 10 for n in range(10)])
    assert all(a >= b for a, b in itertools.pairwise(rates[9:]))
    assert rates[-1] < 1e-3
