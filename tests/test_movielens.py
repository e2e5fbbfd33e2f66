"""MovieLens' times, moved by whole weeks to end yesterday: once for a directory, release dates too."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayapp.sources import Size, movielens

LAST_S = 893_286_638
"""The last rating."""


@given(st.integers(LAST_S, 1_790_000_000), st.integers(1_790_000_000, 2_500_000_000))
def test_times_are_moved_by_whole_weeks_to_before_today(last_s: int, now_s: int) -> None:
    weeks = movielens.weeks_to_yesterday(last_s, now_s)
    moved_s, today_s = last_s + weeks * movielens.WEEK_S, now_s // 86_400 * 86_400
    assert weeks >= 0
    assert today_s - movielens.WEEK_S <= moved_s < today_s or weeks == 0


def test_release_dates_move_with_the_ratings() -> None:
    assert movielens.released(pd.Series([1997.0, float("nan")]), 0) == ["1997-01-01", None]
    assert movielens.released(pd.Series([1997.0, float("nan")]), 2) == ["1997-01-15", None]


def test_files_fetched_again_are_moved_as_far_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "wheel", "w") as wheel:
        ratings = "user_id\titem_id\trating\ttimestamp\n" + "".join(
            f"u{n}\ti{n}\t5\t{893286638 - n}\n" for n in range(9)
        )
        films = "item_id\ttitle\tyear\tgenres\n" + "".join(f"i{n}\tFilm {n}\t1997\tDrama\n" for n in range(9))
        wheel.writestr(movielens.MEMBER + "inter", ratings)
        wheel.writestr(movielens.MEMBER + "item", films)
    monkeypatch.setattr(movielens, "fetch", lambda cache: tmp_path / "wheel")
    found = []
    for now_s in (1_796_000_000, 1_800_000_000):
        monkeypatch.setattr("time.time", lambda now_s=now_s: now_s)
        files = movielens.write_files(tmp_path, Size(), run_here)
        found.append([pd.read_parquet(path) for path in (files.events, files.requests, files.items)])
    for first, again in zip(*found, strict=True):
        pd.testing.assert_frame_equal(first, again)
    events, requests, items = found[0]
    assert events["timestamp"].max() == requests["timestamp"].max() == LAST_S + 1_492 * movielens.WEEK_S
    assert set(items["released"]) == {str(np.datetime64("1997-01-01") + 7 * 1_492)}
    for size in (Size(original_times=True), Size()):
        original = movielens.write_files(tmp_path, size, run_here)
        assert pd.read_parquet(original.events)["timestamp"].max() == LAST_S


def run_here(count: int, part: Callable[[int], dict[str, Any]]) -> None:
    """A public data set needs no parts."""
