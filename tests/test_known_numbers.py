"""Ages, gaps and what a user did with an item before, as the ranker reads them."""

import dataclasses
from datetime import datetime

import numpy as np
import pytest

from rayapp.contracts.config import DAY_MS, HOUR_MS, MINUTE_MS
from rayapp.contracts.schema import FIRST_ACTION_ID, PAD
from rayapp.features.known_numbers import NUM_ITEM, NUM_USER, Acts, ItemFacts
from rayapp.features.statistic_columns import LOG_SCALE as SCALE
from tests.scorers import ACTIONS, DOMAIN

SAVE, CLICK, HIDE = (FIRST_ACTION_ID + ACTIONS.index(name) for name in ("save", "click", "hide"))
NOW_MS = 100 * DAY_MS + 6 * HOUR_MS
FACTS = ItemFacts(
    created_ms_T=np.array([0, NOW_MS - HOUR_MS, NOW_MS - 10 * DAY_MS, NOW_MS + 1]),
    category_TW=np.array([[0, 0], [2, 3], [3, 0], [0, 0]], np.int32),
)


def acts(*rows: tuple[int, int, int]) -> Acts:
    """One user's actions, newest first: action id, row of the item, ms before now."""
    padded = [*rows, (PAD, 0, NOW_MS)]
    action, row, ago = (np.array([column]) for column in zip(*padded, strict=True))
    return Acts(action.astype(np.uint8), row, NOW_MS - ago, np.array([NOW_MS]))


def item_numbers(some: Acts, *rows: int) -> np.ndarray:
    return some.item_numbers(FACTS, DOMAIN, np.zeros(len(rows), np.int64), np.array(rows))


def test_an_item_knows_its_age_and_an_unknown_one_that_it_is_unknown() -> None:
    found_NF = item_numbers(acts(), 1, 2, 3, 0)
    assert found_NF.shape == (4, NUM_ITEM)
    assert found_NF[:, 0] == pytest.approx([np.log(2) / SCALE, np.log(241) / SCALE, 0, 0]), "hours; the future is now"
    assert found_NF[:, 1].tolist() == [1, 1, 1, 0]
    assert not found_NF[:, 2:].any(), "nobody acted"


def test_actions_count_by_kind_category_and_item() -> None:
    found_NF = item_numbers(acts((SAVE, 2, 1), (HIDE, 1, 2), (SAVE, 2, 3), (SAVE, 0, 4)), 1, 2)
    saves_N3, hides_N3 = found_NF[:, 2:5], found_NF[:, 5:8]
    # Item 1 has categories 2 and 3, of which the user saved two items of the one and none of the other.
    assert saves_N3[0] == pytest.approx([np.log(2) / SCALE, 1 / 2, 0])
    assert saves_N3[1] == pytest.approx([np.log(3) / SCALE, 2 / 2, np.log(3)]), "an item that no table holds is nothing"
    assert hides_N3[:, 1] == pytest.approx([1, 1])
    assert not found_NF[:, 8:].any(), "no neutral action"


def test_other_requests_actions_do_not_count() -> None:
    first, second = acts((SAVE, 1, 1)), acts((HIDE, 1, 1))
    both = Acts(*(np.concatenate([getattr(one, name) for one in (first, second)]) for name in Acts.__slots__))
    found_NF = both.item_numbers(FACTS, DOMAIN, np.array([0, 1]), np.array([1, 1]))
    assert found_NF[0] == pytest.approx(item_numbers(first, 1)[0])
    assert found_NF[1] == pytest.approx(item_numbers(second, 1)[0])


def test_a_user_knows_the_gaps_and_the_hour() -> None:
    some = acts((CLICK, 1, 3 * MINUTE_MS), (SAVE, 2, HOUR_MS))
    (found_F,) = some.user_numbers(DOMAIN, reads_weekday=False)
    assert len(found_F) == NUM_USER
    assert found_F[:4] == pytest.approx([np.log(4) / SCALE, 1, np.log(61) / SCALE, 1], rel=1e-5)
    assert found_F[4:6] == pytest.approx([1, 0], abs=1e-6), "six o'clock is a quarter of the circle"
    assert not found_F[6:8].any(), "the day of the week, which this model does not read"
    assert found_F[8:] == pytest.approx([np.log(2) / SCALE, 0, np.log(2) / SCALE])
    (nobody_F,) = acts().user_numbers(DOMAIN, reads_weekday=False)
    assert not nobody_F[:4].any()
    assert not nobody_F[6:].any()


def clock(*moments: str, zone: str, reads_weekday: bool = True) -> np.ndarray:
    """The hour and the day of the week, four numbers, as a domain of that zone knows them at the moments."""
    now_ms_R = np.array([round(datetime.fromisoformat(moment).timestamp() * 1000) for moment in moments])
    nothing_R1 = np.zeros((len(moments), 1), np.int64)
    some = Acts(nothing_R1.astype(np.uint8), nothing_R1, nothing_R1, now_ms_R)
    domain = dataclasses.replace(DOMAIN, time_zone=zone)
    return some.user_numbers(domain, reads_weekday=reads_weekday)[:, 4:8]


def test_the_hour_is_that_of_the_domains_clocks_summer_and_winter() -> None:
    six_RF = clock("2026-01-15T06:00+01:00", "2026-07-15T06:00+02:00", zone="Europe/Berlin")
    assert six_RF[:, :2] == pytest.approx(np.array([[1, 0], [1, 0]]), abs=1e-6)
    across_RF = clock("2026-03-29T00:59+00:00", "2026-03-29T01:00+00:00", zone="Europe/Berlin")
    degrees_R = np.degrees(np.arctan2(across_RF[:, 0], across_RF[:, 1]))
    assert degrees_R == pytest.approx([29.75, 45], abs=1e-4), "01:59, then 03:00"
    assert clock("2026-01-15T06:45+05:45", zone="Asia/Kathmandu")[0, 1] == pytest.approx(np.cos(np.pi * 6.75 / 12))


def test_the_day_of_the_week_begins_at_the_domains_midnight_and_comes_again_after_a_week() -> None:
    days_RF = clock(*(f"2026-03-{day}T12:00+01:00" for day in range(23, 31)), zone="Europe/Berlin")[:, 2:]
    assert len(np.unique(days_RF.round(4), axis=0)) == 7
    assert days_RF[0] == pytest.approx(days_RF[7], abs=1e-6)
    assert np.diff(np.unwrap(np.arctan2(days_RF[:, 0], days_RF[:, 1]))) == pytest.approx(2 * np.pi / 7, abs=1e-5)
    moments = ("2026-03-24T22:59:59+00:00", "2026-03-24T23:00:00+00:00")
    late_F, midnight_F = clock(*moments, zone="Europe/Berlin")[:, 2:]
    assert late_F == pytest.approx(days_RF[1], abs=1e-6)
    assert midnight_F == pytest.approx(days_RF[2], abs=1e-6)
    in_utc_RF = clock(*moments, zone="UTC")[:, 2:]
    assert in_utc_RF[0].tolist() == in_utc_RF[1].tolist()


def test_the_clock_of_a_request_is_its_own() -> None:
    """Whatever else is asked at once, and whether or not the model reads the day."""
    moments = ("2026-03-29T00:59+00:00", "2026-10-25T01:00+00:00", "2001-01-01T00:00+00:00")
    together_RF = clock(*moments, zone="Europe/Berlin")
    for moment, row_F in zip(moments, together_RF, strict=True):
        assert clock(moment, zone="Europe/Berlin")[0].tolist() == row_F.tolist()
        unread_F = clock(moment, zone="Europe/Berlin", reads_weekday=False)[0]
        assert unread_F.tolist() == [*row_F[:2].tolist(), 0, 0]


def test_a_gap_that_training_hides_is_hidden_from_serving_too() -> None:
    masked = dataclasses.replace(DOMAIN, time_mask_ms=HOUR_MS)
    (just_now_F,) = acts((CLICK, 1, MINUTE_MS)).user_numbers(masked, reads_weekday=False)
    (an_hour_ago_F,) = acts((CLICK, 1, HOUR_MS)).user_numbers(masked, reads_weekday=False)
    assert just_now_F[0] == an_hour_ago_F[0]
