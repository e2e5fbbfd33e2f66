"""What a ranker has to beat: counts as of each request's time, from logs as an export leaves them."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from rayapp.contracts.config import Domain
from rayapp.contracts.hashing import hash64
from rayapp.contracts.schema import PAD
from rayapp.features.requests import Requests
from rayapp.features.statistics import FOREVER
from rayapp.loop.artifacts import Prepared
from rayapp.pipeline.export import export_all
from rayapp.pipeline.item_counts import IMPRESSIONS, count_items
from rayapp.store import Store
from rayapp.training.baselines import COUNTS, POPULARITY, Baselines, Statistics, _logistic, _reader
from rayapp.training.evaluate import read_window, report
from tests.conftest import T0, make_event, make_request
from tests.small_window import publish_window

MINUTE_MS = 60_000
STEP_MS = 10 * MINUTE_MS
START = T0 // STEP_MS * STEP_MS


def shown(n: int, at: int, items: list[str], **more: object) -> dict[str, object]:
    return {"request_id": f"r{n}", "user_id": f"u{n}", "timestamp_ms": at, "item_ids": items, **more}


def put_films(store: Store) -> None:
    for name, genres in (("i1", ["drama"]), ("i2", ["drama", "war"]), ("i3", [])):
        store.put_item({"item_id": name, "created_at_ms": START - 5 * MINUTE_MS, "title": name, "genres": genres})


@pytest.fixture
def logged(root: Path, store: Store) -> Path:
    """i1 was shown twice and saved once, i2 was shown once and hidden; the hide arrived late."""
    put_films(store)
    store.log_requests([shown(1, START, ["i1", "i2"]), shown(2, START + MINUTE_MS, ["i1"])])
    store.append(
        [
            make_event(1, user="u1", item="i1", action="save", at=START + 2 * MINUTE_MS),
            make_event(2, user="u1", item="i2", action="hide", at=START + 3 * MINUTE_MS, lag=60 * MINUTE_MS),
        ]
    )
    export_all(root, store, START + 100 * MINUTE_MS)
    return root


def ask(at: int, *items: str, acted: tuple[tuple[int, str], ...] = ()) -> Requests:
    """A request at a time for these items, by a user with these actions (id of the action, item), newest first."""
    action_L, item_hash_L = np.full(4, PAD, np.uint8), np.zeros(4, np.uint64)
    for place, (action, item) in enumerate(acted):
        action_L[place], item_hash_L[place] = action, hash64(item)
    candidates = np.array([hash64(i) for i in items], np.uint64)
    return make_request(action_L, item_hash_L, candidates, num_heads=2, timestamp_ms=at)


def test_an_impression_counts_when_shown_and_an_action_when_received(logged: Path, domain: Domain) -> None:
    counts = count_items(logged, domain)
    rows = {(row["item_hash"], row["step"]): row for row in counts.to_dict("records")}
    first, later = START // STEP_MS, START // STEP_MS + 6
    assert rows[hash64("i1"), first] == {"item_hash": hash64("i1"), "step": first, IMPRESSIONS: 2, "save": 1, "hide": 0}
    assert rows[hash64("i2"), first][IMPRESSIONS] == 1
    assert rows[hash64("i2"), later]["hide"] == 1
    assert len(rows) == 3


def test_what_was_received_after_the_grid_s_last_boundary_is_not_known_yet(logged: Path, domain: Domain) -> None:
    statistics = Statistics.of(logged, domain)
    moments = (START + 9 * MINUTE_MS, START + 11 * MINUTE_MS)
    forever = domain.half_lives_ms.index(FOREVER)
    known = [statistics.popularity(ask(at, "i1", "i2"))[:, forever].tolist() for at in moments]
    assert known == [[0.0, 0.0], [1.0, 0.0]]
    before, after = (statistics.features(ask(START + m * MINUTE_MS, "i2")) for m in (59, 80))
    assert not np.array_equal(before[:, :-2], after[:, :-2]), "the hide has arrived"


def test_a_candidate_s_features_do_not_depend_on_its_neighbours(logged: Path, domain: Domain) -> None:
    statistics, at = Statistics.of(logged, domain), START + 90 * MINUTE_MS
    together = statistics.features(ask(at, "i1", "i2", "i3", "never seen", acted=((3, "i1"), (4, "i2"))))
    for place, item in enumerate(("i1", "i2", "i3", "never seen")):
        alone = statistics.features(ask(at, item, acted=((3, "i1"), (4, "i2"))))
        np.testing.assert_allclose(alone[0], together[place])
    assert np.isfinite(together).all()
    assert together[:, -1].tolist() == [1, 1, 1, 0], "known or not"


def test_a_save_and_a_hide_of_a_genre_are_told_apart(logged: Path, domain: Domain) -> None:
    """Action 3 is a save, 4 a hide: of the drama i1, seen from the drama i2."""
    statistics, at = Statistics.of(logged, domain), START + 90 * MINUTE_MS
    nothing, saved, hid = (
        statistics.features(ask(at, "i2", "i3", acted=acted)) for acted in ((), ((3, "i1"),), ((4, "i1"),))
    )
    assert not np.array_equal(saved[0], hid[0])
    assert not np.array_equal(saved[0], nothing[0])
    differs = np.flatnonzero(saved[1] != hid[1])
    assert len(differs) == 2, "of an item without genres only how many saves and hides there were at all"


@pytest.mark.parametrize(("delay_steps", "step_minutes"), [(1, 10), (3, 10), (2, 60)])
def test_flags_of_a_list_count_after_a_delay_where_the_log_has_no_such_events(
    root: Path, store: Store, domain: Domain, delay_steps: int, step_minutes: int
) -> None:
    step_ms = step_minutes * MINUTE_MS
    domain = dataclasses.replace(domain, statistics_step_ms=step_ms, flag_delay_ms=delay_steps * step_ms)
    put_films(store)
    store.log_requests([shown(1, START, ["i1", "i2"], labels=[1.0, 1.0, 0.0, 1.0])])
    store.append([make_event(1, item="i2", action="hide", at=START)])
    export_all(root, store, START + MINUTE_MS)
    counts = count_items(root, domain).set_index(["item_hash", "step"])
    first = START // step_ms
    assert counts.loc[(hash64("i1"), first), IMPRESSIONS] == 1
    assert counts.loc[(hash64("i1"), first + delay_steps), "save"] == 1
    assert counts["hide"].sum() == 1, "the log has hides as events, so the flags of hides count nothing"


def test_the_regression_finds_the_odds_it_was_drawn_from(rng: np.random.Generator) -> None:
    x_NF = rng.normal(size=(20_000, 3))
    odds_NH = np.stack([x_NF @ [1.0, -0.5, 0.0] - 1.0, x_NF @ [0.0, 0.0, 2.0]], axis=1)
    label_NH = (rng.random(odds_NH.shape) < 1 / (1 + np.exp(-odds_NH))).astype(np.float32)
    weight_FH, bias_H = _logistic(x_NF, label_NH)
    np.testing.assert_allclose(weight_FH, [[1.0, 0.0], [-0.5, 0.0], [0.0, 2.0]], atol=0.1)
    np.testing.assert_allclose(bias_H, [-1.0, 0.0], atol=0.1)


def test_windows_that_keep_few_actions_are_read_as_they_are(root: Path, domain: Domain) -> None:
    publish_window(root, domain)
    assert _reader(root, ["w"], domain).history_length == 8


@pytest.mark.cluster
def test_on_a_world_with_sessions_counts_are_better_than_popularity(trained_world: tuple[Path, Prepared]) -> None:
    root, prepared = trained_world
    fitted = Baselines.fit(root, prepared.domain, prepared.train_windows, prepared.validation_window)
    window = read_window(root, prepared.test_window, prepared.domain)
    logits = fitted.score(root, prepared.test_window)
    save = {name: report(window, logit_RCH, prepared.domain)["save"] for name, logit_RCH in logits.items()}
    assert save[COUNTS]["auc"] > max(save[POPULARITY]["auc"], 0.55)
    assert 0.7 < save[COUNTS]["calibration"] < 1.4
    again = Baselines.fit(root, prepared.domain, prepared.train_windows, prepared.validation_window)
    assert np.array_equal(again.score(root, prepared.test_window)[COUNTS], logits[COUNTS])
