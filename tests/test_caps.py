"""Caps: at most so many of one value among so many places, before anything else has a say."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rayapp.contracts.config import Cap
from rayapp.retrieval.caps import Places, capped, capped_by_tier
from rayapp.serving.blend import blend, in_order

UTILITIES = (1.0, 0.0)
AUTHORS = "abcde"
candidates = st.lists(st.tuples(st.sampled_from(AUTHORS), st.integers(0, 50)), min_size=1, max_size=40)
caps = (
    st.tuples(st.integers(1, 3), st.integers(2, 8)).filter(lambda c: c[0] < c[1]).map(lambda c: Cap(most=c[0], of=c[1]))
)


def probabilities(scores: list[int]) -> np.ndarray:
    return np.array([[score / 100, 0.0] for score in scores], np.float32).reshape(-1, 2)


def broken(authors: list[str], cap: Cap) -> list[int]:
    """Places at which the cap is broken."""
    return [n for n, author in enumerate(authors) if authors[max(n - cap.of + 1, 0) : n + 1].count(author) > cap.most]


@given(candidates, caps, st.integers(1, 40), st.booleans())
def test_a_list_keeps_its_caps_while_anything_else_is_left(
    given_C: list[tuple[str, int]], cap: Cap, num_results: int, diverse: bool
) -> None:
    authors = [author for author, _ in given_C]
    values = {"author": [(author,) for author in authors]}
    vectors = np.eye(5, dtype=np.float32)[[AUTHORS.index(a) for a in authors]]
    ranked = blend(
        probabilities([score for _, score in given_C]),
        UTILITIES,
        num_results,
        vectors_CE=vectors if diverse else None,
        caps={"author": cap},
        values=values,
    )
    chosen = [row.index for row in ranked]
    assert len(chosen) == len(set(chosen)) == min(num_results, len(given_C)), "a cap never shortens a list"
    listed = [authors[c] for c in chosen]
    for place in broken(listed, cap):
        above = listed[max(place - cap.of + 1, 0) : place]
        pool = set(chosen) | (set() if diverse else set(range(len(authors))))
        left = {authors[c] for c in pool - set(chosen[:place])}
        assert all(above.count(author) >= cap.most for author in left), "nothing else was left"


@given(candidates, caps)
def test_without_diversity_each_place_goes_to_the_best_that_may_stand_there(
    given_C: list[tuple[str, int]], cap: Cap
) -> None:
    values = {"author": [(author,) for author, _ in given_C]}
    left = sorted(range(len(given_C)), key=lambda c: -given_C[c][1])
    expected: list[int] = []
    while left:
        above = [given_C[c][0] for c in expected[max(len(expected) - cap.of + 1, 0) :]]
        free = [c for c in left if above.count(given_C[c][0]) < cap.most] or left
        expected.append(free[0])
        left.remove(free[0])
    scores = [score for _, score in given_C]
    found = blend(probabilities(scores), UTILITIES, len(scores), caps={"author": cap}, values=values)
    assert [row.index for row in found] == expected
    none_C = np.zeros(len(scores), bool)
    plain = in_order(np.array(scores, np.float32), len(scores), again_C=none_C, caps={"author": cap}, values=values)
    assert [row.index for row in plain] == expected


def test_a_cap_reaches_far_down_and_counts_each_value_of_an_item() -> None:
    values = {"author": [("a",)] * 60 + [("b",)] * 3, "genre": [("x", "y")] * 60 + [("y",), ("z",), ()]}
    scores = list(range(63, 0, -1))
    cap = Cap(most=2, of=10)
    vectors = np.eye(63, dtype=np.float32)
    by_author = blend(probabilities(scores), UTILITIES, 4, vectors_CE=vectors, caps={"author": cap}, values=values)
    assert sorted(row.index for row in by_author) == [0, 1, 60, 61], "five times the results would hold no b"
    by_genre = blend(probabilities(scores), UTILITIES, 5, caps={"genre": cap}, values=values)
    assert [row.index for row in by_genre] == [0, 1, 61, 62, 2], "y is full with x; then nothing else is left"


def test_what_is_new_stays_above_what_was_seen_whatever_the_caps() -> None:
    values = {"author": [("a",), ("a",), ("a",), ("b",)]}
    again_C = np.array([False, False, False, True])
    cap = {"author": Cap(most=1, of=3)}
    for found in (
        blend(probabilities([4, 3, 2, 1]), UTILITIES, 4, again_C=again_C, caps=cap, values=values),
        in_order(np.array([4, 3, 2, 9], np.float32), 4, again_C=again_C, caps=cap, values=values),
    ):
        assert [row.index for row in found] == [0, 1, 2, 3]
    order = np.array([3, 0, 1, 2])
    assert capped_by_tier(order, again_C.astype(np.int64), 2, Places(cap, values)) == [0, 1]
    assert capped(order, 9, Places({}, {})) == [3, 0, 1, 2]


def test_what_the_model_does_not_know_is_below_even_where_lists_are_spread() -> None:
    known_C = np.array([True, False, True])
    vectors = np.array([[1, 0], [0, 1], [1, 0]], np.float32)
    found = blend(probabilities([3, 50, 2]), UTILITIES, 3, vectors_CE=vectors, diversity=0.9, known_C=known_C)
    assert [row.index for row in found] == [0, 2, 1]
    assert all(a.score > b.score for a, b in pairwise(found))
