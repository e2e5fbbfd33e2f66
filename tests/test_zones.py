"""The clocks of time zones, held to the standard library's."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rayapp.contracts.config import HOUR_MS, MINUTE_MS
from rayapp.contracts.zones import YEAR_2100_S, is_zone, local_ms

ZONES = (
    *("UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Asia/Kathmandu", "Pacific/Chatham"),
    "Australia/Lord_Howe",  # half an hour of daylight saving
    "America/St_Johns",  # changed a minute after midnight
    "Africa/Casablanca",  # changes by the moon
    "Pacific/Apia",  # left a day out
)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MOMENTS = st.integers(0, YEAR_2100_S * 1000 - 1)


def by_datetime(timestamp_ms: int, zone: str) -> int:
    shown = (EPOCH + timedelta(milliseconds=timestamp_ms)).astimezone(ZoneInfo(zone))
    return (shown.replace(tzinfo=UTC) - EPOCH) // timedelta(milliseconds=1)


def ms(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1000)


@given(st.sampled_from(ZONES), st.lists(MOMENTS, max_size=20))
@example("America/St_Johns", [ms("2010-11-07T02:30:59.999+00:00"), ms("2010-11-07T02:31+00:00")])
@example("Pacific/Apia", [ms("2011-12-30T09:59:59+00:00"), ms("2011-12-30T10:00+00:00")])
def test_moments_read_as_the_standard_library_reads_each(zone: str, moments: list[int]) -> None:
    found_R = local_ms(np.array(moments, np.int64), zone)
    assert found_R.tolist() == [by_datetime(moment, zone) for moment in moments]


@pytest.mark.parametrize(
    ("zone", "change", "jump_ms"),
    [
        ("Europe/Berlin", "2026-03-29T01:00+00:00", HOUR_MS),
        ("Europe/Berlin", "2026-10-25T01:00+00:00", -HOUR_MS),
        ("Australia/Lord_Howe", "2026-04-04T15:00+00:00", -HOUR_MS // 2),
        ("Asia/Kathmandu", "2026-03-29T01:00+00:00", 0),
    ],
)
def test_clocks_jump_in_the_millisecond_in_which_they_change(zone: str, change: str, jump_ms: int) -> None:
    before_ms, after_ms = local_ms(np.array([ms(change) - 1, ms(change)]), zone).tolist()
    assert after_ms - before_ms == 1 + jump_ms


def test_before_1970_and_after_2099_clocks_do_not_change() -> None:
    early, late = -(10**12), 10**13
    found_R = local_ms(np.array([early, late]), "Asia/Kathmandu") - [early, late]
    assert found_R.tolist() == [330 * MINUTE_MS, 345 * MINUTE_MS]


@pytest.mark.parametrize("name", ["", "Berlin", "Europe", "CEST+2", "/etc", "../zone", "a\0b", "\ud800", "x" * 999])
def test_what_names_no_zone_is_none(name: str) -> None:
    assert not is_zone(name)


def test_zones_are_found_by_their_names() -> None:
    assert all(map(is_zone, ZONES))
