"""Sums over the actions on items like the candidate: what counts, what doesn't, and how much."""

import numpy as np
import pytest
import torch
from torch import Tensor

from rayapp.contracts.schema import FIRST_ACTION_ID, PAD
from rayapp.features.attributes import ABSENT, UNKNOWN_CATEGORY, AttributeEncoder
from rayapp.model.matching import NUM_AGES, Matches, age_buckets

WIDTH, LENGTH, DIM = 4, 6, 5
SAVE, HIDE = FIRST_ACTION_ID, FIRST_ACTION_ID + 1
FIRST = UNKNOWN_CATEGORY + 1
"""The first category that has a meaning."""
ITEMS = AttributeEncoder({"topics": ["a", "b", "c"], "style": ["x", "y"]}, {"topics": 2, "style": 1}, {}, {})


@pytest.fixture
def matches() -> Matches:
    torch.manual_seed(0)
    return Matches(DIM, FIRST_ACTION_ID + 2, LENGTH, ITEMS).eval()


def of_one_user(
    matches: Matches,
    actions: list[int],
    categories: list[list[int]],
    candidate: list[int],
    vector: Tensor | None = None,
) -> Tensor:
    """`[output_dim]` of one candidate. The user's items lie across from it, unless `vector` says where they all are."""
    action_1L = torch.tensor([actions + [PAD] * (LENGTH - len(actions))])
    category_1LW = torch.tensor([categories + [[ABSENT] * 3] * (LENGTH - len(actions))])
    own_E = torch.eye(WIDTH)[0]
    history_1LE = (-own_E if vector is None else vector).expand(1, LENGTH, -1)
    age_1L = torch.zeros_like(action_1L)
    with torch.no_grad():
        found: Tensor = matches(
            action_1L, age_1L, history_1LE, category_1LW, own_E.expand(1, 1, -1), torch.tensor([[candidate]])
        )
    return found[0, 0]


def by_attribute(found: Tensor) -> list[Tensor]:
    return list(found.split(DIM))[: len(ITEMS.widths)]


A, B, X, Y = FIRST, FIRST + 1, FIRST + 3, FIRST + 4


def test_a_user_without_actions_gets_zeros(matches: Matches) -> None:
    assert not of_one_user(matches, [], [], [A, ABSENT, X]).any()


def test_an_attribute_counts_the_actions_on_its_own_categories(matches: Matches) -> None:
    topics, style = by_attribute(of_one_user(matches, [SAVE], [[A, ABSENT, Y]], [A, ABSENT, X]))
    assert topics.abs().min() > 0
    assert not style.any()


def test_the_order_of_categories_does_not_matter_and_half_of_them_count_half(matches: Matches) -> None:
    whole, _ = by_attribute(of_one_user(matches, [SAVE], [[B, A, X]], [A, B, X]))
    torch.testing.assert_close(whole, by_attribute(of_one_user(matches, [SAVE], [[A, B, X]], [A, B, X]))[0])
    half, _ = by_attribute(of_one_user(matches, [SAVE], [[A, ABSENT, X]], [A, B, X]))
    torch.testing.assert_close(torch.sinh(half) * 2, torch.sinh(whole))


@pytest.mark.parametrize("nothing", [ABSENT, UNKNOWN_CATEGORY])
def test_two_items_without_a_known_category_have_none_in_common(matches: Matches, nothing: int) -> None:
    topics, _ = by_attribute(of_one_user(matches, [SAVE], [[nothing, nothing, X]], [nothing, nothing, X]))
    assert not topics.any()


def test_five_hides_weigh_more_than_one_and_other_than_five_saves(matches: Matches) -> None:
    one, five, saves = (
        by_attribute(of_one_user(matches, [action] * n, [[A, ABSENT, X]] * n, [A, ABSENT, X]))[0]
        for action, n in ((HIDE, 1), (HIDE, 5), (SAVE, 5))
    )
    assert (five.abs() > one.abs()).all()
    assert (five - saves).abs().min() > 1e-3


def test_near_items_count_more_than_far_ones(matches: Matches) -> None:
    same, across = (
        of_one_user(matches, [SAVE], [[B, ABSENT, Y]], [A, ABSENT, X], vector=torch.eye(WIDTH)[0] * sign)[2 * DIM :]
        for sign in (1, -1)
    )
    assert (same.abs() > 5 * across.abs()).all()


def test_what_is_older_or_further_back_counts_less_before_training(matches: Matches) -> None:
    action_1L = torch.full((1, LENGTH), SAVE)
    with torch.no_grad():
        value_LK = matches.values(action_1L, torch.arange(LENGTH)[None])[0].abs()
    assert (value_LK[1:] <= value_LK[:-1] + 1e-6).all()
    assert (value_LK[-1] < value_LK[0]).all()


def test_ages_are_counted_to_now_and_not_below_the_training_mask() -> None:
    now_ms = 1_000_000_000
    ages_ms = np.array([[0, 29_000, 31_000, 3_600_000, 86_400_000 * 9]])
    buckets = age_buckets(now_ms - ages_ms, np.array([now_ms]), 0)[0]
    assert buckets.tolist() == [0, 0, 1, 6, 14]
    masked = age_buckets(now_ms - ages_ms, np.array([now_ms]), 3_600_000)[0]
    assert masked.tolist() == [6, 6, 6, 6, 14]
    assert age_buckets(np.zeros((1, 1), np.int64), np.array([1 << 50]), 0).max() == NUM_AGES - 1


def test_without_categories_the_vectors_are_left() -> None:
    alone = Matches(DIM, FIRST_ACTION_ID + 2, LENGTH, AttributeEncoder({}, {}, {}, {}))
    empty = torch.zeros(1, LENGTH, 0, dtype=torch.int32)
    found = alone(
        torch.full((1, LENGTH), SAVE),
        torch.zeros(1, LENGTH, dtype=torch.int64),
        torch.ones(1, LENGTH, WIDTH) / 2,
        empty,
        torch.ones(1, 3, WIDTH) / 2,
        empty[:, :3],
    )
    assert found.shape == (1, 3, alone.output_dim)
    assert found.abs().min() > 0


def test_without_action_types_all_actions_count_alike() -> None:
    torch.manual_seed(0)
    matches = Matches(DIM, FIRST_ACTION_ID + 2, LENGTH, ITEMS, action_types=False).eval()
    saved, hidden = (of_one_user(matches, [action], [[A, ABSENT, Y]], [A, ABSENT, X]) for action in (SAVE, HIDE))
    assert saved.any()
    assert torch.equal(saved, hidden)
