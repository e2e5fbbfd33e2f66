"""The final list: a pure function of what it is given."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayapp.serving.blend import blend, shuffled

UTILITIES = (1.0, -1.0)


def probabilities(*scores: float) -> np.ndarray:
    return np.array([[score, 0.0] for score in scores], np.float32).reshape(-1, 2)


def test_blend_sorts_by_utility_and_keeps_order_on_ties() -> None:
    probability = np.array([[0.5, 0.5], [0.9, 0.1], [0.5, 0.5], [0.1, 0.0]], np.float32)
    assert [r.index for r in blend(probability, UTILITIES, 4)] == [1, 3, 0, 2]
    assert [r.index for r in blend(probability, UTILITIES, 1)] == [1]
    assert blend(np.zeros((0, 2), np.float32), UTILITIES, 5, vectors_CE=np.zeros((0, 3), np.float32)) == []
    assert blend(probability, UTILITIES, 0) == []


def test_diversity_breaks_up_a_run_of_likes_and_tells_the_feed_s_scores() -> None:
    probability = probabilities(0.9, 0.89, 0.88, 0.8, 0.1)
    vectors = np.eye(3, dtype=np.float32)[[0, 0, 0, 1, 2]]
    ranked = blend(probability, UTILITIES, 3, vectors_CE=vectors, diversity=0.3)
    assert [r.index for r in ranked] == [0, 3, 1]
    assert [r.score for r in ranked] == pytest.approx([0.9, 0.8, 0.89])


def test_diversity_pulls_up_nothing_from_far_below() -> None:
    probability = probabilities(*np.linspace(1, 0.9, 10), *np.zeros(10))
    vectors = np.eye(2, dtype=np.float32)[[0] * 10 + [1] * 10]
    assert {r.index for r in blend(probability, UTILITIES, 2, vectors_CE=vectors, diversity=0.99)} <= set(range(10))


def test_fixed_places_hold_whatever_the_scores() -> None:
    probability = probabilities(0.9, 0.8, 0.7, 0.1)
    assert [r.index for r in blend(probability, UTILITIES, 3, fixed={1: 3})] == [0, 3, 1]
    assert [r.index for r in blend(probability, UTILITIES, 2, fixed={7: 3, 9: 2})] == [3, 2]
    assert [r.index for r in blend(probability, UTILITIES, 1, fixed={0: 3, 1: 2})] == [3]
    vectors = np.eye(4, dtype=np.float32)
    assert [r.index for r in blend(probability, UTILITIES, 9, fixed={0: 1}, vectors_CE=vectors)] == [1, 0, 2, 3]


@given(
    scores=st.lists(st.floats(0, 1, width=32), max_size=40),
    number=st.integers(0, 50),
    diversity=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_every_list_is_whole_and_without_diversity_sorted(
    scores: list[float], number: int, diversity: float, seed: int
) -> None:
    vectors = np.random.default_rng(seed).normal(size=(len(scores), 4)).astype(np.float32)
    plain = blend(probabilities(*scores), UTILITIES, number)
    assert plain == blend(probabilities(*scores), UTILITIES, number, vectors_CE=vectors, diversity=0)
    assert [r.index for r in plain] == sorted(range(len(scores)), key=lambda c: -np.float32(scores[c]))[:number]
    ranked = blend(probabilities(*scores), UTILITIES, number, vectors_CE=vectors, diversity=diversity)
    assert len({r.index for r in ranked}) == len(ranked) == min(number, len(scores))
    assert all(r.score == np.float32(scores[r.index]) for r in ranked)


def test_a_random_order_is_uniform_with_its_probability() -> None:
    firsts = Counter(int(shuffled(5, seed)[0][0]) for seed in range(2_000))
    spread = (2_000 * 0.2 * 0.8) ** 0.5
    assert all(abs(firsts[c] - 400) < 4 * spread for c in range(5))
    assert shuffled(5, 1)[1] == 0.2
    assert len(shuffled(0, 1)[0]) == 0
