"""Candidate sources: what they bring, what they must never bring, and the odds of the exploration share."""

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayapp.contracts.config import Domain
from rayapp.contracts.hashing import hash64
from rayapp.contracts.schema import Vocabulary
from rayapp.features.seen import ALWAYS_MS, Seen
from rayapp.features.sequence import History
from rayapp.retrieval import neighbours
from rayapp.retrieval.candidates import SEEN_AGAIN, Query, fetch
from rayapp.retrieval.index import CandidateIndex
from rayapp.retrieval.neighbours import Neighbours
from rayapp.retrieval.orders import Orders
from rayapp.retrieval.sources import default_mix
from tests.films import NOW, WIDTH, by_source, item, positives, table_of

CLICK, SAVE, HIDE, IMPRESSION = 2, 3, 4, 5
ORDERS = [field.name for field in dataclasses.fields(Orders)]


def history(*actions: tuple[str, int]) -> History:
    """Newest first: (item, action id)."""
    n = len(actions)
    times = np.arange(n, 0, -1).astype(np.int64)
    hashes = np.array([hash64(i) for i, _ in actions], np.uint64)
    return History(times, times, times, hashes, hashes, np.array([a for _, a in actions], np.uint8))


def genres(item_ids: list[str]) -> set[int]:
    return {int(i[1:]) % 3 for i in item_ids}


@pytest.fixture(scope="module")
def words(domain: Domain) -> Vocabulary:
    return domain.vocabulary


@pytest.fixture(scope="module")
def index() -> CandidateIndex:
    return CandidateIndex(table_of([item(n) for n in range(300)]))


def test_each_source_brings_its_share(index: CandidateIndex, words: Vocabulary) -> None:
    likes = [(f"i{3 * n}", SAVE) for n in range(10)] + [(f"i{3 * n + 1}", SAVE) for n in range(5)]
    trends = positives({"i203": 2.0, "gone": 1.0, "i200": 4.0})
    found = fetch(index.ordered(trends), history(*likes), words, Query(100, NOW))
    groups = by_source(found)
    assert {source: len(ids) for source, ids in groups.items()} == {
        **{"nearest": 35, "interests": 10, "categories": 15},
        **{"trending": 2, "newest": 10, "popular": 23, "explore": 5},
    }
    assert genres(groups["nearest"]) == {0}, "the newest likes are of one genre"
    assert genres(groups["interests"]) == {1}, "the older ones of another"
    assert genres(groups["categories"]) == {0}
    assert groups["categories"] == sorted(groups["categories"], key=lambda i: -int(i[1:])), "the most popular first"
    assert groups["trending"] == ["i200", "i203"]
    assert all(0 <= score <= 1 for score in found.score_C)


def test_an_unknown_user_gets_popular_and_new_items(index: CandidateIndex, words: Vocabulary) -> None:
    found = fetch(index, History.empty(), words, Query(10, NOW))
    assert found.item_ids == [f"i{n}" for n in range(299, 289, -1)]
    assert set(found.sources) == {"newest", "popular"}


def test_a_user_with_only_hides_gets_a_feed_without_what_was_hidden(index: CandidateIndex, words: Vocabulary) -> None:
    groups = by_source(fetch(index, history(("i299", HIDE), ("i298", HIDE)), words, Query(40, NOW)))
    assert not {"nearest", "interests"} & set(groups)
    assert not {"i299", "i298"} & {i for ids in groups.values() for i in ids}
    assert sum(map(len, groups.values())) == 40


def test_what_is_nearer_to_a_hidden_item_than_to_a_like_is_not_near(words: Vocabulary) -> None:
    items = [item(n, genres=["g0"]) for n in range(6)]
    angle = np.radians([0, 40, 30, 10, -12, 120])  # liked, hidden, three between, one far
    vectors = np.zeros((6, WIDTH), np.float32)
    vectors[:, 0], vectors[:, 1] = np.cos(angle), np.sin(angle)
    table = dataclasses.replace(table_of(items), vectors_NE=np.concatenate([np.zeros((1, WIDTH), np.float32), vectors]))
    acted = history(("i0", SAVE), ("i1", HIDE))
    found = fetch(CandidateIndex(table), acted, words, Query(4, NOW, mix={"nearest": 1.0}))
    assert sorted(by_source(found)["nearest"]) == ["i3", "i4"]
    assert by_source(found)["popular"] == ["i5"], (
        "popular ones fill the places, but for those near what was just hidden"
    )
    found = fetch(CandidateIndex(table), acted, words, Query(4, NOW, mix={"nearest": 1.0}, fewest=4))
    assert found.item_ids[-1] == "i2", "which comes last, where nothing else is left"
    later = history(*((f"gone{n}", SAVE) for n in range(20)), ("i0", SAVE), ("i1", HIDE))
    found = fetch(CandidateIndex(table), later, words, Query(4, NOW, mix={"nearest": 1.0}))
    assert by_source(found)["popular"] == ["i5", "i2"], "it was not just hidden any more"


def test_each_category_of_the_newest_likes_brings_items(words: Vocabulary) -> None:
    """One like among nine of another kind has as many turns as they have."""
    index = CandidateIndex(table_of([item(n) for n in range(300)]))
    likes = [(f"i{3 * n}", SAVE) for n in range(4)] + [("i1", SAVE)] + [(f"i{3 * n}", SAVE) for n in range(4, 9)]
    found = fetch(index, history(*likes), words, Query(40, NOW, mix={"categories": 0.25}))
    brought = by_source(found)["categories"]
    assert brought == ["i297", "i298", "i294", "i295", "i291", "i292", "i288", "i289", "i285", "i286"]
    acted = history(("i297", HIDE), *likes, ("i298", SAVE))
    brought = by_source(fetch(index, acted, words, Query(40, NOW, mix={"categories": 0.25})))["categories"]
    assert not {"i297", "i298"} & set(brought), "what was seen or hidden is not brought"


def test_a_liked_item_that_was_hidden_later_is_no_seed(index: CandidateIndex, words: Vocabulary) -> None:
    assert "nearest" not in by_source(fetch(index, history(("i3", HIDE), ("i3", SAVE)), words, Query(50, NOW)))


@pytest.mark.parametrize("number", [0, 1, 4, 100, 5_000])
def test_asking_for_more_than_there_is_gives_all_that_is_left(words: Vocabulary, number: int) -> None:
    index = CandidateIndex(table_of([item(n) for n in range(5)]))
    found = fetch(index, history(("i0", SAVE), ("gone", SAVE)), words, Query(number, NOW))
    assert len(found.item_ids) == len(set(found.item_ids)) == min(number, 4)
    assert "i0" not in found.item_ids
    everything = history(*((f"i{n}", SAVE) for n in range(5)))
    nothing = fetch(index, everything, words, Query(number, NOW))
    assert (nothing.item_ids, nothing.sources, len(nothing.score_C), len(nothing.propensity_C)) == ([], [], 0, 0)


def test_five_thousand_candidates(words: Vocabulary) -> None:
    index = CandidateIndex(table_of([item(n, created_at_ms=0) for n in range(6_000)]))
    found = fetch(index, history(*((f"i{7 * n}", SAVE) for n in range(100))), words, Query(5_000, NOW))
    assert len(set(found.item_ids)) == 5_000
    assert Counter(found.sources)["explore"] == 250


@pytest.mark.parametrize("size", [0, 1])
def test_tables_of_nothing_and_of_one_item(words: Vocabulary, size: int) -> None:
    index = CandidateIndex(table_of([item(n) for n in range(size)]), positives({"i9": 1.0}))
    for acted in (History.empty(), history(("i9", SAVE))):
        assert fetch(index, acted, words, Query(10, NOW)).item_ids == ["i0"][:size]
    assert fetch(index, history(("i0", SAVE)), words, Query(10, NOW)).item_ids == []


def test_a_mix_names_known_sources_and_shares_that_add_up() -> None:
    with pytest.raises(ValueError, match="'neerest'"):
        Query(10, NOW, mix={"neerest": 0.5})
    with pytest.raises(ValueError, match="more than 1"):
        Query(10, NOW, mix={"nearest": 0.7, "newest": 0.7})


def test_an_unknown_attribute_matches_nothing(index: CandidateIndex, words: Vocabulary) -> None:
    for attribute in ("colour", "title"):
        query = Query(10, NOW, require={attribute: frozenset({"film 1", "red"})})
        assert fetch(index, History.empty(), words, query).item_ids == []


def test_exploration_is_uniform_with_the_probability_that_it_tells(words: Vocabulary) -> None:
    index = CandidateIndex(table_of([item(n, created_at_ms=0) for n in range(30)]))
    drawn: Counter[str] = Counter()
    for seed in range(2_000):
        found = fetch(index, History.empty(), words, Query(20, NOW, mix={"explore": 0.2}, seed=seed))
        assert by_source(found)["popular"] == [f"i{n}" for n in range(29, 13, -1)]
        is_drawn = np.array(found.sources) == "explore"
        assert found.propensity_C[is_drawn] == pytest.approx(4 / 14)
        assert (found.propensity_C[~is_drawn] == 1).all()
        drawn.update(by_source(found)["explore"])
    assert set(drawn) == {f"i{n}" for n in range(14)}
    spread = (2_000 * 4 / 14 * 10 / 14) ** 0.5  # of a binomial count
    assert max(abs(count - 2_000 * 4 / 14) for count in drawn.values()) < 4 * spread


def test_one_seed_draws_one_exploration(index: CandidateIndex, words: Vocabulary) -> None:
    draws = [fetch(index, History.empty(), words, Query(100, NOW, seed=seed)).item_ids for seed in (5, 5, 6)]
    assert draws[0] == draws[1] != draws[2]


ids = st.integers(0, 39).map(lambda n: f"i{n}")
counts = st.dictionaries(st.integers(0, 59).map(lambda n: f"i{n}"), st.integers(1, 4).map(float), max_size=10)
puts = st.builds(
    item,
    st.integers(0, 59),
    available=st.booleans(),
    created_at_ms=st.integers(0, 2 * NOW),
    genres=st.lists(st.sampled_from(["g0", "g1", "g2"]), min_size=1, max_size=2),
)


@settings(deadline=None, max_examples=80)
@given(
    acted=st.lists(st.tuples(ids, st.sampled_from([CLICK, SAVE, HIDE, IMPRESSION])), max_size=30),
    put=st.lists(puts, max_size=15),
    exclude=st.frozensets(ids, max_size=20),
    required=st.none() | st.frozensets(st.sampled_from(["g0", "g1", "none"]), max_size=2),
    number=st.integers(0, 60),
    lately=counts,
    lasting=counts,
)
def test_nothing_struck_out_comes_back_and_no_source_takes_more_than_its_share(
    words: Vocabulary,
    acted: list[tuple[str, int]],
    put: list[dict[str, Any]],
    exclude: frozenset[str],
    required: frozenset[str] | None,
    number: int,
    lately: dict[str, float],
    lasting: dict[str, float],
) -> None:
    table = table_of([item(n) for n in range(40)]).with_items(put)
    require = {} if required is None else {"genres": required}
    never = np.array([hash64(i) for i in exclude], np.uint64)
    query = Query(number, NOW, exclude_hash=never, require=require, fewest=number)
    again = Seen(None, ALWAYS_MS)
    found = fetch(CandidateIndex(table, positives(lately, lasting)), history(*acted), words, query, seen=again)
    assert found.item_hash_C.tolist() == [hash64(i) for i in found.item_ids]
    struck_out = exclude | {i for i, _ in acted}
    may_come = {
        each["item_id"]
        for each in table.items
        if each["item_id"] not in struck_out
        and each.get("available") is not False
        and each["created_at_ms"] <= NOW
        and (required is None or required & set(each["genres"]))
    }
    assert set(found.item_ids) <= may_come
    assert len(found.item_ids) == len(set(found.item_ids)) == min(number, len(may_come))
    counts = Counter(found.sources)
    assert all(counts[source] <= share * number + 1e-6 for source, share in default_mix().items())


@settings(deadline=None, max_examples=60)
@given(
    rounds=st.lists(st.lists(puts, max_size=6), max_size=3),
    acted=st.lists(st.tuples(ids, st.sampled_from([SAVE, HIDE])), max_size=30),
    required=st.none() | st.just({"genres": frozenset({"g1"})}),
    lately=counts,
    lasting=counts,
)
def test_an_extended_index_answers_like_a_fresh_one(
    words: Vocabulary,
    rounds: list[list[dict[str, Any]]],
    acted: list[tuple[str, int]],
    required: dict[str, frozenset[str]] | None,
    lately: dict[str, float],
    lasting: dict[str, float],
) -> None:
    table, done = table_of([item(n) for n in range(40)]), positives(lately, lasting)
    index = CandidateIndex(table).ordered(done)
    for put in rounds:
        table = table.with_items(put)
        index = index.extended(table)
    query = Query(30, NOW, require=required or {}, seed=3)
    anew = CandidateIndex(table, done)
    for name in ORDERS:
        assert getattr(index.orders, name).tolist() == getattr(anew.orders, name).tolist(), name
    extended, fresh = (fetch(i, history(*acted), words, query) for i in (index, anew))
    assert extended.item_ids == fresh.item_ids
    assert extended.sources == fresh.sources
    assert extended.item_hash_C.tolist() == fresh.item_hash_C.tolist()
    np.testing.assert_allclose(extended.score_C, fresh.score_C, atol=1e-6)


def test_extending_leaves_the_index_before_as_it_was(words: Vocabulary) -> None:
    table = table_of([item(n) for n in range(20)])
    index = CandidateIndex(table)
    before = fetch(index, history(("i3", SAVE)), words, Query(20, NOW)).item_ids
    index.extended(table.with_items([item(30), item(4, available=False)]))
    index.ordered(positives({"i1": 1.0}, {"i2": 1.0}))
    assert fetch(index, history(("i3", SAVE)), words, Query(20, NOW)).item_ids == before


def test_inverted_lists_find_the_neighbours(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    centre = rng.normal(size=(50, WIDTH))
    vectors = (centre[rng.integers(0, 50, 5_000)] + 0.3 * rng.normal(size=(5_000, WIDTH))).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    allowed = rng.random(5_000) < 0.5
    exact, _ = Neighbours(vectors).search(vectors[:10], 20, allowed)
    monkeypatch.setattr(neighbours, "EXACT_ROWS", 1_000)
    monkeypatch.setattr(neighbours, "PROBED_LISTS", 30)
    found, similarity = Neighbours(vectors).search(vectors[:10], 20, allowed)
    assert allowed[found].all()
    assert (np.diff(similarity, axis=1) <= 0).all()
    assert np.mean([len(set(a) & set(b)) / 20 for a, b in zip(exact, found, strict=True)]) > 0.9


@pytest.mark.parametrize("exact_rows", [5_000, 0])
def test_a_long_tail_goes_into_the_index(
    monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator, exact_rows: int
) -> None:
    monkeypatch.setattr(neighbours, "TAIL_ROWS", 3)
    monkeypatch.setattr(neighbours, "EXACT_ROWS", exact_rows)
    all_vectors = rng.normal(size=(3_010, WIDTH)).astype(np.float32)
    all_vectors /= np.linalg.norm(all_vectors, axis=1, keepdims=True)
    vectors, everything = all_vectors[:3_000].copy(), np.ones(3_010, bool)
    found = Neighbours(vectors)
    for n in range(10):  # each round adds a row and makes another one like it
        vectors = np.concatenate([vectors, all_vectors[[3_000 + n]]])
        vectors[n] = vectors[-1]
        found = found.extended(vectors, np.array([n, 3_000 + n]))
        rows, _ = found.search(vectors[-1:], 2, everything[: len(vectors)])
        assert set(rows[0].tolist()) == {n, 3_000 + n}
    monkeypatch.setattr(neighbours, "PROBED_LISTS", 1_000)
    assert len(np.unique(found.search(vectors[:1], 3_010, everything)[0])) == 3_010


def test_whoever_has_seen_everything_sees_the_least_recently_seen_again(words: Vocabulary) -> None:
    index = CandidateIndex(table_of([item(n) for n in range(6)]))
    acts = [("i4", SAVE), ("i3", HIDE), ("i1", SAVE), ("i0", CLICK), ("i2", SAVE), ("i1", SAVE)]  # newest first
    found = fetch(index, history(*acts), words, Query(50, NOW, fewest=4))
    assert by_source(found)[SEEN_AGAIN] == ["i2", "i0", "i1"], "i5 is new; what was hidden stays away"
    assert found.item_ids[0] == "i5"
    assert fetch(index, history(*acts), words, Query(50, NOW, fewest=2)).item_ids == ["i5", "i2"]
    assert fetch(index, history(*acts), words, Query(50, NOW)).item_ids == ["i5"]
    everything = [*acts, ("i5", HIDE)]
    assert SEEN_AGAIN in by_source(fetch(index, history(*everything), words, Query(50, NOW, fewest=1)))
    hidden = [(f"i{n}", HIDE) for n in range(6)]
    again = fetch(index, history(*hidden), words, Query(50, NOW, fewest=2)).item_ids
    assert again == ["i5", "i4"], "nothing else is left"
    shown = np.array([hash64("i5")], np.uint64)
    again = fetch(index, history(*hidden), words, Query(50, NOW, fewest=2, exclude_hash=shown)).item_ids
    assert again == ["i4", "i3"], "but no page repeats an item"
