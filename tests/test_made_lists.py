"""Lists for a log without shown lists, and the comparison of models by what was acted on next."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayapp.contracts.config import DAY_MS, HOUR_MS, MINUTE_MS, Domain
from rayapp.contracts.hashing import hash64, hash64_column
from rayapp.contracts.presets import COUNTS, nano, variant
from rayapp.contracts.schema import item_schema
from rayapp.features.requests import Requests, context_row
from rayapp.features.seen import EVERYTHING, Seen
from rayapp.features.sequence import Sequences
from rayapp.loop.choose_by_recall import Recalls, earned_by_recall, keep_sequence
from rayapp.model.covisits import Covisits
from rayapp.pipeline import made_lists
from rayapp.pipeline.engagements import Engagements
from rayapp.pipeline.made_lists import NOTHING, OTHERS, draw_others, first_acts, is_made_up
from rayapp.pipeline.statistics import count_statistics
from rayapp.pipeline.window_loader import WindowReader
from rayapp.pipeline.windows import Window, build
from rayapp.root.catalogue_writer import merge
from rayapp.root.places import EVENTS, ITEMS, REQUESTS
from rayapp.root.publish import commit_log, log_manifest, read_manifest
from rayapp.statistics.known import load_newest
from rayapp.training.baselines import COVISITATION, POPULARITY, covisitation
from rayapp.training.catalogue_recall import NextActions, hit_gap, hits_of, read_next_actions
from rayapp.training.covisits import count_covisits
from tests.conftest import T0
from tests.log_files import add_file
from tests.scorers import scorer_of, some_request
from tests.small_window import bucket_of_events, event_table

# ---- drawing ---------------------------------------------------------------------------------------------------------


@given(st.data())
def test_others_existed_then_and_are_nothing_the_user_acted_on(data: st.DataObject) -> None:
    num_items, num_users = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 4))
    weight_N = np.array(data.draw(st.lists(st.floats(0.01, 50), min_size=num_items, max_size=num_items)))
    created_N = np.array(data.draw(st.lists(st.integers(0, 100), min_size=num_items, max_size=num_items)))
    pairs = data.draw(st.sets(st.tuples(st.integers(0, num_users - 1), st.integers(0, num_items - 1))))
    lists = data.draw(st.lists(st.tuples(st.integers(0, num_users - 1), st.integers(0, 100)), max_size=12))
    user_R, time_R = (np.array([row[k] for row in lists], np.int64) for k in (0, 1))
    acted_X = np.array(sorted(user * num_items + item for user, item in pairs), np.int64)

    def draw() -> np.ndarray:
        return draw_others(weight_N, created_N, time_R, user_R, acted_X, 5, np.random.default_rng(3))

    drawn_RC = draw()
    np.testing.assert_array_equal(drawn_RC, draw())
    for user, time, row in zip(user_R, time_R, drawn_RC, strict=True):
        some = row[row != NOTHING].tolist()
        free = {n for n in range(num_items) if created_N[n] <= time and (user, n) not in pairs}
        assert len(set(some)) == len(some) == min(5, len(free))
        assert set(some) <= free
        assert row[len(some) :].tolist() == [NOTHING] * (5 - len(some))


def test_others_are_drawn_in_proportion_to_their_weights() -> None:
    lists, nobody = np.zeros(4_000, np.int64), np.zeros(0, np.int64)
    weight_N = np.array([1.0, 2.0, 4.0, 0.0])
    drawn_RC = draw_others(weight_N, np.zeros(4, np.int64), lists, lists, nobody, 1, np.random.default_rng(0))
    share_N = np.bincount(drawn_RC[:, 0], minlength=4) / len(lists)
    np.testing.assert_allclose(share_N, weight_N / weight_N.sum(), atol=0.03)


# ---- which actions make a list ---------------------------------------------------------------------------------------


def firsts(domain: Domain, *acts: tuple[int, str, str]) -> list[int]:
    """Minutes at which lists are made of one user's (minute, item, action)."""
    events = event_table(
        [
            {"event_id": str(n), "user_id": "u", "item_id": i, "action": a, "timestamp_ms": T0 + m * MINUTE_MS}
            for n, (m, i, a) in enumerate(acts)
        ]
    )
    bucket = bucket_of_events(events)
    found_E = first_acts(bucket, hash64_column(bucket.events["item_id"]), domain)
    return ((bucket.events["timestamp_ms"].to_numpy()[found_E] - T0) // MINUTE_MS).tolist()


def test_a_list_is_of_the_moment_before_the_first_action_on_its_item(domain: Domain) -> None:
    acts = (0, "a", "click"), (2, "b", "click"), (5, "a", "save"), (6, "c", "save"), (7, "d", "hide")
    assert firsts(domain, *acts) == [0, 6], "nobody chose b, and d was rejected"


def test_what_the_user_has_seen_makes_no_list_unless_the_domain_lets_it_come_back(domain: Domain) -> None:
    later = 2 * domain.attribution_ms // MINUTE_MS
    acts = (0, "a", "save"), (later, "a", "save"), (later + 5, "b", "save")
    assert firsts(domain, *acts) == [0, later + 5]
    repeats = dataclasses.replace(domain, seen_ms={"save": HOUR_MS})
    assert firsts(repeats, *acts) == [0, later, later + 5]
    assert firsts(dataclasses.replace(domain, seen_ms={"save": 3 * domain.attribution_ms}), *acts) == [0, later + 5]


# ---- windows ---------------------------------------------------------------------------------------------------------


def act(n: int, user: str, item: str, action: str, at: int) -> dict[str, object]:
    name = f"e{n}"
    times = {"timestamp_ms": at, "received_at_ms": at, "commit_seq": 0, "request_id": "a session of the shop's own"}
    event = {"event_id": name, "event_hash": hash64(name), "user_id": user, "item_id": item, "action": action}
    return event | times


@pytest.fixture
def shop(root: Path, domain: Domain, without_ray: None) -> Path:
    """Forty items in pairs: whoever saves one soon saves the other. The odd one `late` comes a day later."""
    names = [f"i{n}" for n in range(40)]
    rows = [{"item_id": name, "created_at_ms": 0, "title": name} for name in names]
    rows.append({"item_id": "late", "created_at_ms": T0 + DAY_MS, "title": "late"})
    merge(root, ITEMS, pa.Table.from_pylist(rows, schema=item_schema(domain.attributes)), domain)
    rng, events = np.random.default_rng(0), []
    for user in range(60):
        for visit in range(3):
            at = T0 + int(rng.integers(3 * DAY_MS))
            one = 2 * int(rng.integers(20)) if visit else 2 * (user % 20)
            for item in (one, one + 1):
                events.append(act(len(events), f"u{user}", f"i{item}", "save", at))
                at += MINUTE_MS
    events.append(act(9_999, "u0", "unheard of", "save", T0 + HOUR_MS))
    add_file(root, EVENTS, events, domain)
    number, manifest = log_manifest(root / EVENTS)
    commit_log(root / EVENTS, number, {**manifest, "partitions": {"import-0001": {}}})
    count_statistics(root, domain)
    return root


def test_windows_of_made_up_lists_are_marked_and_the_same_each_time(shop: Path, domain: Domain, tmp_path: Path) -> None:
    window = Window(T0, T0 + 2 * DAY_MS, 100)
    built = [build(shop, name, window, domain) for name in ("one", "other")]
    assert is_made_up(shop, "one")
    lists = read_manifest(shop / "windows" / "one")["lists"]
    assert lists["others"] == OTHERS
    assert lists["items_not_known_then"] == 1, "nobody sells what is unheard of"
    assert built[0]["buckets"] == built[1]["buckets"]
    batches = [list(WindowReader(shop, [name], domain, 8).in_order(1_000)) for name in ("one", "other")]
    by_user: dict[int, set[int]] = {}
    for one, other in zip(*batches, strict=True):
        np.testing.assert_array_equal(one.requests.candidate_hash_N, other.requests.candidate_hash_N)
        label_NH = one.label_NH
        assert (np.add.reduceat(label_NH[:, 0], one.requests.offset_R[:-1]) == 1).all(), "each holds one choice"
        assert (one.requests.sizes == 1 + OTHERS).all()
        for r, user in enumerate(one.requests.user_hash_R.tolist()):
            rows = slice(one.requests.offset_R[r], one.requests.offset_R[r + 1])
            chosen = one.requests.candidate_hash_N[rows][label_NH[rows, 0] > 0]
            by_user.setdefault(user, set()).update(chosen.tolist())
            if hash64("late") in one.requests.candidate_hash_N[rows]:
                assert one.requests.timestamp_ms_R[r] >= T0 + DAY_MS
    for one in batches[0]:
        for r, user in enumerate(one.requests.user_hash_R.tolist()):
            rows = slice(one.requests.offset_R[r], one.requests.offset_R[r + 1])
            others = one.requests.candidate_hash_N[rows][one.label_NH[rows, 0] == 0]
            assert not by_user[user] & set(others.tolist()), "what the user acts on later is no other either"


def test_made_up_lists_reach_no_statistic(shop: Path, domain: Domain) -> None:
    before = load_newest(shop, domain)
    build(shop, "w", Window(T0, T0 + 3 * DAY_MS, 100), domain)
    assert not count_statistics(shop, domain)[1], "nothing new was counted"
    item_NK = before.items(np.array([hash64("i0"), hash64("i1")]), np.full(2, (T0 + 4 * DAY_MS) // (10 * MINUTE_MS)))
    counts_K, none_K = before.columns.without_lists()
    assert not item_NK[:, ~counts_K].any()
    assert item_NK[:, counts_K].any()
    assert not none_K.any()


def test_a_graph_s_own_lists_take_over_once_they_are_enough(
    shop: Path, domain: Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    lists = [
        {"request_id": f"r{n}", "user_id": f"u{n}", "timestamp_ms": T0 + n, "item_ids": ["i1"], "commit_seq": n + 1}
        for n in range(6)
    ]
    add_file(shop, REQUESTS, lists, domain)
    window = Window(T0, T0 + DAY_MS, 100)
    assert build(shop, "few", window, domain)["lists"]["real_lists_left_out"] == 6
    assert is_made_up(shop, "few")
    assert "6 real lists" in made_lists.told_lists(shop, "few")
    monkeypatch.setattr("rayapp.pipeline.windows.ENOUGH_LISTS", 6)
    build(shop, "enough", window, domain)
    assert not is_made_up(shop, "enough")
    assert WindowReader(shop, ["enough"], domain, 8).num_requests == 6


# ---- recall ----------------------------------------------------------------------------------------------------------


def next_actions(domain: Domain, seen: Seen = EVERYTHING) -> NextActions:
    """Users 0 to 2 act on items 30, 1 and 2 of 40, of which the last is of tomorrow; user 2 acted on it before."""
    hash_N = np.array([hash64(f"i{n}") for n in range(40)], np.uint64)
    save = domain.vocabulary.id_of("save")
    action_RL = np.array([[0], [0], [save]], np.uint8)
    item_RL, time_RL = (np.where(action_RL, x, 0) for x in (hash_N[2], T0 - HOUR_MS))
    requests = Requests(
        np.arange(3, dtype=np.uint64),
        np.full(3, T0),
        pa.concat_tables([context_row((), T0, {})] * 3),
        Sequences(action_RL, item_RL, time_RL, np.array([0, 0, 1])),
        np.zeros(4, np.int64),
        np.zeros(0, np.uint64),
        np.zeros((3, 0), np.float32),
        np.zeros((0, 0), np.float32),
    )
    created_N = np.where(np.arange(40) == 39, T0 + 1, 0)
    return NextActions(requests, hash_N[[30, 1, 2]], hash_N, created_N, seen, 3)


def test_recall_is_over_what_the_user_could_have_been_shown(domain: Domain) -> None:
    actions, asked = next_actions(domain), list[int]()

    def score(r: int, row_C: np.ndarray) -> np.ndarray:
        asked.append(len(row_C))
        assert 39 not in row_C, "it does not exist yet"
        return -row_C.astype(np.float64)

    assert hits_of(actions, score).tolist() == [0, 1, 0], "user 2 has seen it"
    assert asked == [39, 39]
    again = dataclasses.replace(domain, seen_ms={"save": MINUTE_MS})
    assert hits_of(next_actions(again, Seen.of(again)), score).tolist() == [0, 1, 1], (
        "a repeat counts where it may come"
    )


def test_a_model_that_says_the_same_of_all_gets_what_chance_gives(domain: Domain) -> None:
    hit_R = hits_of(next_actions(domain), lambda _, row_C: np.zeros(len(row_C)))
    np.testing.assert_allclose(hit_R, [20 / 39, 20 / 39, 0])


def recalls(domain: Domain, **hits: float) -> Recalls:
    rng, actions = np.random.default_rng(1), next_actions(domain)
    many = dataclasses.replace(
        actions, requests=actions.requests.take(np.arange(600) % 3), target_hash_R=np.zeros(600, np.uint64)
    )
    many = dataclasses.replace(
        many, requests=dataclasses.replace(many.requests, user_hash_R=np.arange(600, dtype=np.uint64))
    )
    lot_R = rng.random(600)
    return Recalls("w", many, {name.replace("_", "-"): (lot_R < share).astype(float) for name, share in hits.items()})


@pytest.mark.parametrize(
    ("ranker", "covisits", "popular", "live"),
    [
        (0.5, 0.3, 0.1, "v1.1"),
        (0.3, 0.5, 0.1, COVISITATION),
        (0.2, 0.1, 0.4, POPULARITY),
        (0.3, 0.3, 0.1, COVISITATION),
    ],
)
def test_the_better_one_serves(domain: Domain, ranker: float, covisits: float, popular: float, live: str) -> None:
    found = recalls(domain, popularity=popular, co_visitation=covisits, **{"v1.1": ranker})
    choice = earned_by_recall(found, "v1.1", (POPULARITY, COVISITATION))
    assert choice.variant == live
    assert choice.why.startswith(f"{live} goes live: recall@20 of v1.1 is ")


def test_the_sequence_is_taken_out_where_it_certainly_does_harm(domain: Domain) -> None:
    assert keep_sequence(recalls(domain, no_sequence=0.2, cross=0.25), "cross").variant == "cross"
    assert keep_sequence(recalls(domain, no_sequence=0.2, cross=0.2), "cross").variant == "cross"
    assert keep_sequence(recalls(domain, no_sequence=0.3, cross=0.2), "cross").variant == "no-sequence"


def test_a_gap_is_paired(domain: Domain) -> None:
    hit_R = np.random.default_rng(0).random(50)
    gap = hit_gap(hit_R + 0.1, hit_R, np.arange(50, dtype=np.uint64))
    np.testing.assert_allclose([gap.value, gap.low, gap.high], 0.1)


def test_a_window_s_next_actions_are_its_chosen_items(shop: Path, domain: Domain) -> None:
    build(shop, "w", Window(T0 + DAY_MS, T0 + 3 * DAY_MS, 100), domain)
    actions = read_next_actions(shop, "w", domain, most=50)
    assert len(actions) == 50 < actions.num_all
    assert (np.diff(actions.requests.timestamp_ms_R) >= 0).all()
    for r in range(len(actions)):
        assert actions.target_hash_R[r] in actions.hash_N[actions.candidates(r)]


# ---- co-visitation ---------------------------------------------------------------------------------------------------


def test_covisits_are_of_one_user_s_neighbouring_actions() -> None:
    """User 0: items 0, 0, 1, 2; a day later 3. User 1: 0, 1."""
    acts = Engagements(
        np.array([0, 0, 0, 0, 0, 1, 1]), np.array([0, 0, 1, 2, 3, 0, 1]), np.array([0, 1, 2, 3, 2 * DAY_MS, 5, 6])
    )
    found = count_covisits(acts, 4)
    weights = {
        (item, int(row) - 1): float(weight)
        for item in range(4)
        for row, weight in zip(found.row_NK[item + 1], found.weight_NK[item + 1], strict=True)
        if row
    }
    assert weights.keys() == {(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)}
    assert weights[0, 1] == pytest.approx(2 / np.sqrt(2)), "twice, over the root of how often item 1 was acted on"
    assert weights[0, 2] == pytest.approx(1)


def test_only_the_last_items_count_each_once() -> None:
    row_NK = np.array([[0], [9], [8], [9], [6], [6], [7], [5]], np.int32)
    covisits = Covisits(row_NK, np.ones((8, 1), np.float32))
    rows, weights = covisits.of_last_items(np.array([0, 1, 1, 2, 3, 4, 5, 6, 7]))
    assert dict(zip(rows.tolist(), weights.tolist(), strict=True)) == {6: 2, 8: 1, 9: 2}
    numbers = covisits.numbers(np.array([[1, 0], [0, 0]]), np.array([2, 1]), np.array([9, 8, 9]))
    np.testing.assert_allclose(numbers[:, 0], np.log1p([1, 0, 0]))


@pytest.mark.parametrize("reads_covisits", [False, True])
def test_the_fast_scorer_reads_covisits_as_the_plain_module_does(reads_covisits: bool) -> None:
    preset = covisitation(variant(nano(), COUNTS)) if reads_covisits else variant(nano(), COUNTS)
    scorer = scorer_of(preset.model)
    num_rows = scorer.inputs.table.num_rows
    beside = np.random.default_rng(0).integers(0, num_rows, (num_rows, 6)).astype(np.int32)
    table = dataclasses.replace(scorer.inputs.table, covisits=Covisits(beside, np.ones((num_rows, 6), np.float32)))
    inputs = dataclasses.replace(scorer.inputs, table=table)
    scorer = dataclasses.replace(scorer, inputs=inputs)
    asked = some_request(8, 30)
    plain = 1 / (1 + np.exp(-scorer.logits(asked).numpy()))
    np.testing.assert_allclose(scorer.score(asked).probability_CH, plain, atol=1e-6)
    batch = inputs.batch(asked)
    assert (batch.item_number_BCM[0, :, -1] > 0).any() == reads_covisits or not reads_covisits


def test_a_model_of_made_up_lists_reads_nothing_that_lists_count() -> None:
    """Else numbers that were zeros in training would come to life with the first list that its feed shows."""
    trained = dataclasses.replace(variant(nano(), COUNTS).model, reads_rates=False)
    scorer, asked = scorer_of(trained), some_request(8, 30)
    more = dataclasses.replace(asked, user_statistic_RK=asked.user_statistic_RK + 3)
    np.testing.assert_array_equal(scorer.score(asked).probability_CH, scorer.score(more).probability_CH)
