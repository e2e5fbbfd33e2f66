"""What a ranker has to beat: counts as of each request's time, from logs as an export leaves them."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from rayapp.contracts.config import DAY_MS, HOUR_MS, Domain
from rayapp.contracts.hashing import hash64
from rayapp.contracts.presets import COUNTS, VARIANTS, nano, variant
from rayapp.contracts.schema import PAD, user_schema
from rayapp.features.attributes import AttributeEncoder, Encoders
from rayapp.features.requests import Requests
from rayapp.features.statistic_columns import Columns
from rayapp.loop.artifacts import Prepared
from rayapp.model.inputs import FeatureTables, UserTable, items_as_table
from rayapp.model.item_table import ItemTable
from rayapp.model.tower import LinearTower
from rayapp.pipeline.export import export_all
from rayapp.pipeline.statistics import count_statistics
from rayapp.pipeline.windows import Window, build
from rayapp.registry.aliases import CHAMPION, read_aliases
from rayapp.registry.models import load_model
from rayapp.root.catalogue import read_catalogue
from rayapp.root.places import EVENTS
from rayapp.statistics.known import Statistics, load_base, load_newest
from rayapp.store import Store
from rayapp.training.baselines import POPULARITY, Popularity
from rayapp.training.evaluate import read_window, report, score_window
from tests.conftest import T0, make_event, make_request
from tests.log_files import add_file
from tests.scorers import scorer_of, some_request

MINUTE_MS = 60_000
STEP_MS = 10 * MINUTE_MS
START = T0 // STEP_MS * STEP_MS
FIRST = START // STEP_MS
IMPRESSION, SAVE, HIDE = 0, 1, 2


@pytest.fixture(autouse=True)
def counted_here(request: pytest.FixtureRequest) -> None:
    if "cluster" not in request.keywords:
        request.getfixturevalue("without_ray")


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


def statistics_of(root: Path, domain: Domain) -> Statistics:
    return load_base(root, count_statistics(root, domain)[0], domain).statistics


def counts(statistics: Statistics, kind: str, name: str, step: int) -> list[float]:
    """What was ever counted of a key before a step: impressions, saves, hides."""
    (counted,) = statistics.counted
    found_SA = getattr(counted, kind).at(np.array([hash64(name)], np.uint64), np.array([step]))[0]
    return list(found_SA[-1].tolist())


def ask(domain: Domain, at: int, *items: str, acted: tuple[tuple[int, str], ...] = ()) -> Requests:
    """A request at a time for these items, by a user with these actions (id of the action, item), newest first."""
    action_L, item_hash_L = np.full(4, PAD, np.uint8), np.zeros(4, np.uint64)
    for place, (action, item) in enumerate(acted):
        action_L[place], item_hash_L[place] = action, hash64(item)
    candidates = np.array([hash64(i) for i in items], np.uint64)
    return make_request(action_L, item_hash_L, candidates, num_heads=len(domain.heads), timestamp_ms=at)


def inputs_of(root: Path, domain: Domain) -> FeatureTables:
    """As a model reads the catalogue."""
    items = read_catalogue(root).to_pylist()
    tower = LinearTower(np.zeros((64, 8), np.float32), domain.attributes)
    table = ItemTable.make("t", tower, items, np.zeros(len(items), np.int64), tower.embed(items), 0)
    nothing = AttributeEncoder({}, {}, {}, {})
    encoders = Encoders(AttributeEncoder.fit(items_as_table(table), domain.attributes), nothing, nothing)
    users = UserTable.of(user_schema(()).empty_table(), nothing)
    return FeatureTables.of(table, users, encoders, domain)


# ---- counts that a log gives -----------------------------------------------------------------------------------------


def test_an_impression_counts_when_shown_and_an_action_when_received(logged: Path, domain: Domain) -> None:
    statistics = statistics_of(logged, domain)
    known = {step: [counts(statistics, "items", name, step) for name in ("i1", "i2")] for step in range(FIRST + 9)[-9:]}
    nothing, before, after = [[0, 0, 0]] * 2, [[2, 1, 0], [1, 0, 0]], [[2, 1, 0], [1, 0, 1]]
    assert list(known.values()) == [nothing, *[before] * 6, *[after] * 2]
    of_users = [counts(statistics, "users", name, FIRST + 7) for name in ("u1", "u2", "nobody")]
    assert of_users == [[2, 1, 1], [1, 0, 0], [0, 0, 0]]
    assert counts(statistics, "values", "genres/drama", FIRST + 7) == [3, 1, 1]
    assert counts(statistics, "values", "genres/war", FIRST + 7) == [1, 0, 1]
    (counted,) = statistics.counted
    assert counted.everything.at(np.zeros(1, np.uint64), np.array([FIRST + 7]))[0, -1].tolist() == [3, 1, 1]


def test_what_was_received_after_the_grid_s_last_boundary_is_not_known_yet(logged: Path, domain: Domain) -> None:
    statistics = statistics_of(logged, domain)
    hash_N = np.array([hash64("i1"), hash64("i2")], np.uint64)
    moments = [np.full(2, START + minutes * MINUTE_MS) // STEP_MS for minutes in (9, 11)]
    assert [statistics.positives(hash_N, step_N)[:, -1].tolist() for step_N in moments] == [[0.0, 0.0], [1.0, 0.0]]
    earlier, before, after = (
        statistics.of_requests(ask(domain, START + m * MINUTE_MS, "i2")) for m in (9 * 6 + 6, 9 * 7 + 6, 80)
    )
    hides = slice(1, 2 * len(domain.half_lives_ms), 2)
    assert earlier.item_statistic_NK[0, hides].max() < 0, "shown and not hidden, as far as anybody knew"
    assert before.item_statistic_NK[0, hides].max() < 0
    assert after.item_statistic_NK[0, hides].min() > 0, "the hide has arrived"


def test_a_candidate_s_numbers_do_not_depend_on_its_neighbours(logged: Path, domain: Domain) -> None:
    statistics, inputs, at = statistics_of(logged, domain), inputs_of(logged, domain), START + 90 * MINUTE_MS
    acted = ((3, "i1"), (4, "i2"))

    def numbers(*items: str) -> np.ndarray:
        batch = inputs.batch(statistics.of_requests(ask(domain, at, *items, acted=acted)))
        return batch.item_number_BCM[0].numpy()

    names = ("i1", "i2", "i3", "never seen")
    together = numbers(*names)
    for place, item in enumerate(names):
        np.testing.assert_allclose(numbers(item)[0], together[place])
    assert np.isfinite(together).all()
    known = inputs.encoders.item.num_numbers + Columns.of(domain).num_item + 1
    assert together[:, known].tolist() == [1, 1, 1, 0], "known or not"


def test_a_save_and_a_hide_of_a_genre_are_told_apart(logged: Path, domain: Domain) -> None:
    """Action 3 is a save, 4 a hide: of the drama i1, seen from the drama i2."""
    inputs, at = inputs_of(logged, domain), START + 90 * MINUTE_MS
    batches = [inputs.batch(ask(domain, at, "i2", "i3", acted=acted)) for acted in ((), ((3, "i1"),), ((4, "i1"),))]
    nothing, saved, hid = (batch.item_number_BCM[0].numpy() for batch in batches)
    assert not np.array_equal(saved[0], hid[0])
    assert not np.array_equal(saved[0], nothing[0])
    assert np.array_equal(saved[1], hid[1]), "an item without genres has nothing to do with them"
    of_users = [batch.user_number_BM[0].numpy() for batch in batches]
    assert not np.array_equal(of_users[1], of_users[2]), "how many saves and hides there were at all"


@pytest.mark.parametrize("imported", [True, False])
def test_flags_of_a_list_count_after_a_delay_where_no_such_events_were_imported(
    root: Path, store: Store, domain: Domain, imported: bool
) -> None:
    put_films(store)
    store.log_requests([shown(1, START, ["i1", "i2"], labels=[1.0, 1.0, 0.0, 1.0])])
    export_all(root, store, START + MINUTE_MS)
    hide = {"event_id": "e1", "event_hash": hash64("e1"), "user_id": "u9", "item_id": "i2", "action": "hide"}
    at = {"timestamp_ms": START, "received_at_ms": START, "commit_seq": 0 if imported else 7}
    add_file(root, EVENTS, [{**hide, **at}], domain)
    statistics, flag = statistics_of(root, domain), (START + domain.flag_delay_ms) // STEP_MS
    assert flag > FIRST
    known = [[counts(statistics, "items", name, step) for name in ("i1", "i2")] for step in (flag, flag + 1)]
    hides = 0 if imported else 1  # an imported log has either the actions of a head or its flags
    assert known == [[[1, 0, 0], [1, 0, 1]], [[1, 1, hides], [1, 0, 1 + hides]]]


# ---- popularity ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("clicked", "half_life_ms"), [("new", HOUR_MS), ("old", 7 * DAY_MS)])
def test_popularity_fades_with_the_half_life_that_orders_the_validation_window_best(
    root: Path, store: Store, domain: Domain, clicked: str, half_life_ms: int
) -> None:
    """Twenty saves of `old` three days before, four saves of `new` an hour before."""
    put_films(store)
    asked = T0 + 3 * DAY_MS
    saves = [("old", T0 - HOUR_MS)] * 20 + [("new", asked - HOUR_MS)] * 4
    store.append(
        [make_event(n, user=f"s{n}", item=item, action="save", at=at) for n, (item, at) in enumerate(saves)]
        + [make_event(100 + n, user=f"u{n}", item=clicked, action="save", at=asked + 1) for n in range(6)]
    )
    store.log_requests([shown(n, asked, ["old", "new", "unknown"]) for n in range(6)])
    export_all(root, store, asked + DAY_MS)
    build(root, "validation", Window(asked, asked + DAY_MS, 100), domain)
    count_statistics(root, domain)
    fitted = Popularity.fit(root, domain, "validation")
    assert fitted.half_life_ms == half_life_ms
    logit_RCH = fitted.score(root, "validation")
    assert logit_RCH.shape == (6, 3, 2)
    order = {"new": [1, 0, 2], "old": [0, 1, 2]}[clicked]
    assert np.argsort(-logit_RCH[0, :, 0]).tolist() == order
    np.testing.assert_allclose(logit_RCH[:, :, 1], -logit_RCH[:, :, 0], err_msg="nobody hides what is liked")
    assert logit_RCH[:, :, 0].max() == pytest.approx(0, abs=1e-6), "the most popular of the window"
    window = read_window(root, "validation", domain)
    assert report(window, logit_RCH, domain)["save"]["auc"] == 1


# ---- the variant `counts` --------------------------------------------------------------------------------------------


def test_counts_is_a_logistic_regression_over_numbers_alone() -> None:
    scorer = scorer_of(variant(nano(), COUNTS).model)
    assert set(scorer.ranker.state_dict()) == {"mlp.0.weight", "mlp.0.bias"}
    batch = scorer.inputs.batch(some_request(5, 7))
    rest = [batch.user_number_BM, batch.context_number_BM]
    number_CF = torch.cat([batch.item_number_BCM[0], *(x[:1].expand(7, -1) for x in rest)], dim=1)
    weight_HF, bias_H = scorer.ranker.state_dict().values()
    with torch.inference_mode():
        logit_CH = scorer.ranker(batch)[0]
        torch.testing.assert_close(logit_CH, number_CF @ weight_HF.T + bias_H)
        other = {
            name: torch.ones_like(getattr(batch, name)) * 3 for name in ("action_BL", "history_BLE", "candidate_BCE")
        }
        other |= {f"{name}_category_{shape}": getattr(batch, f"{name}_category_{shape}") * 0 + 1
                  for name, shape in (("item", "BCW"), ("user", "BW"), ("context", "BW"))}  # fmt: skip
        torch.testing.assert_close(scorer.ranker(dataclasses.replace(batch, **other))[0], logit_CH)
        assert (scorer.ranker(dataclasses.replace(batch, user_number_BM=batch.user_number_BM + 1))[0] != logit_CH).all()
        items = dataclasses.replace(batch, item_number_BCM=batch.item_number_BCM + 1)
        assert (scorer.ranker(items)[0] != logit_CH).all()


@pytest.mark.parametrize("real", [0, 3, 8])
@pytest.mark.parametrize("candidates", [1, 2, 70])
def test_every_scorer_says_the_same_of_counts(real: int, candidates: int) -> None:
    scorer, asked = scorer_of(variant(nano(), COUNTS).model), some_request(real, candidates)
    on_cpu = scorer.on(torch.device("cpu"))
    assert scorer.fast is not None
    assert on_cpu.batched is not None
    with torch.inference_mode():
        batch = scorer.inputs.batch(asked)
        logit_CH = scorer.ranker(batch)[0]
        torch.testing.assert_close(scorer.fast(batch), logit_CH, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(scorer.logits(asked), logit_CH, atol=1e-5, rtol=1e-5)
    probability_CH = torch.sigmoid(logit_CH).numpy()
    np.testing.assert_allclose(scorer.score(asked).probability_CH, probability_CH, atol=1e-6)
    (together, again) = on_cpu.score_many([asked, some_request(5, 3)])
    np.testing.assert_allclose(together.probability_CH, probability_CH, atol=1e-5)
    assert again.probability_CH.shape == (3, 2)


def test_counts_is_trained_and_named_like_any_other_variant() -> None:
    assert COUNTS in VARIANTS
    preset = variant(nano(), COUNTS)
    assert preset.variant == COUNTS
    assert preset.model.reads == "numbers"
    assert preset.model.encoder == "none"
    assert preset.train.learning_rate > nano().train.learning_rate
    heads_alone = dataclasses.replace(nano(), train=dataclasses.replace(nano().train, scope="heads"))
    assert variant(heads_alone, COUNTS).train.scope == "full", (
        "the counts beside a ranker of which a part was retrained"
    )


@pytest.mark.cluster
def test_on_a_world_with_sessions_counts_are_better_than_popularity(trained_world: tuple[Path, Prepared]) -> None:
    root, prepared = trained_world
    domain, aliases = prepared.domain, read_aliases(root)
    window = read_window(root, prepared.test_window, domain)
    loaded = load_model(root, aliases[COUNTS], domain)
    logits = {
        POPULARITY: Popularity.fit(root, domain, prepared.validation_window).score(root, prepared.test_window),
        COUNTS: score_window(loaded.scorer, root, prepared.test_window, domain),
    }
    save = {name: report(window, logit_RCH, domain)["save"] for name, logit_RCH in logits.items()}
    assert save[COUNTS]["auc"] > max(save[POPULARITY]["auc"], 0.55)
    assert 0.7 < save[COUNTS]["calibration"] < 1.4
    assert loaded.config.reads == "numbers"
    assert load_model(root, aliases[CHAMPION], domain).config.reads == "all"
    again = Popularity.fit(root, domain, prepared.validation_window).score(root, prepared.test_window)
    assert np.array_equal(again, logits[POPULARITY])
    assert load_newest(root, domain).counted[0].items.key_K.size
