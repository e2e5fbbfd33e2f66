"""Decayed counts: the closed form, any order, nothing from the future, nothing from a key's neighbour."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from rayapp.contracts.config import FOREVER
from rayapp.features.statistics import UNIT, DecayedCounts, Grid, Increments

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
GRID = Grid(10 * MINUTE_MS, (HOUR_MS, 24 * HOUR_MS, FOREVER))
KINDS = 2
increments = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 60 * 24 * HOUR_MS), st.integers(0, KINDS - 1)), max_size=60
)
moments = st.integers(0, 70 * 24 * HOUR_MS)


def increments_of(rows: list[tuple[int, int, int]], grid: Grid = GRID) -> Increments:
    """Rows of key, time received and kind."""
    if not rows:
        return Increments.none(KINDS)
    key_E, received_ms_E, kind_E = (np.array(column, np.int64) for column in zip(*rows, strict=True))
    count_EA = np.eye(KINDS, dtype=np.int64)[kind_E]
    return Increments.added_up([Increments(key_E.astype(np.uint64), grid.step(received_ms_E), count_EA)])


def counts(rows: list[tuple[int, int, int]]) -> DecayedCounts:
    return DecayedCounts.of(GRID, increments_of(rows))


def steps(at_ms: np.ndarray) -> np.ndarray:
    return GRID.step(at_ms)


def expected(rows: list[tuple[int, int, int]], key: int, at_ms: int, half_life_ms: int) -> np.ndarray:
    total_A, step = np.zeros(KINDS), at_ms // GRID.step_ms
    for other, received_ms, kind in rows:
        age_steps = step - received_ms // GRID.step_ms
        if other == key and age_steps > 0:
            total_A[kind] += 0.5 ** (age_steps * GRID.step_ms / half_life_ms) if half_life_ms else 1.0
    return total_A


@given(increments.filter(bool), st.integers(0, 4), moments)
def test_a_count_is_the_sum_of_what_was_received_before_faded(
    rows: list[tuple[int, int, int]], key: int, at_ms: int
) -> None:
    found_SA = counts(rows).at(np.array([key], np.uint64), steps(np.array([at_ms])))[0]
    for s, half_life_ms in enumerate(GRID.half_lives_ms):
        assert found_SA[s] == pytest.approx(expected(rows, key, at_ms, half_life_ms), rel=1 / UNIT, abs=1e-5)


@given(increments.filter(bool), st.randoms(use_true_random=False), moments)
def test_order_does_not_matter_to_the_last_bit(rows: list[tuple[int, int, int]], random: object, at_ms: int) -> None:
    mixed = list(rows)
    random.shuffle(mixed)  # type: ignore[attr-defined]
    keys, at_Q = np.arange(4, dtype=np.uint64), steps(np.full(4, at_ms))
    assert np.array_equal(counts(rows).at(keys, at_Q), counts(mixed).at(keys, at_Q))


@given(increments.filter(bool), moments)
def test_what_comes_later_changes_nothing_earlier(rows: list[tuple[int, int, int]], at_ms: int) -> None:
    before = [row for row in rows if GRID.step(np.array(row[1])) < at_ms // GRID.step_ms]
    keys, at_Q = np.arange(4, dtype=np.uint64), steps(np.full(4, at_ms))
    if before:
        assert np.array_equal(counts(rows).at(keys, at_Q), counts(before).at(keys, at_Q))
    else:
        assert not counts(rows).at(keys, at_Q).any()


def test_an_increment_shows_from_the_next_boundary_of_the_grid_on() -> None:
    one = counts([(7, 10 * MINUTE_MS + 1, 0)])
    at_ms = np.array([10 * MINUTE_MS + 2, 20 * MINUTE_MS - 1, 20 * MINUTE_MS])
    found_Q = one.at(np.full(3, 7, np.uint64), steps(at_ms))[:, 2, 0]
    assert found_Q.tolist() == [0.0, 0.0, 1.0]


def test_half_lives_must_fit_the_grid() -> None:
    with pytest.raises(ValueError, match="multiples of the grid's step of 600000 ms, not \\[900000\\]"):
        Grid(10 * MINUTE_MS, (15 * MINUTE_MS,))
    with pytest.raises(ValueError, match="takes more than 0 ms"):
        Grid(0, ())


@given(increments.filter(bool), st.integers(0, 60 * 24 * HOUR_MS), st.integers(0, 10 * 24 * HOUR_MS))
def test_what_came_since_may_be_folded_bit_by_bit(rows: list[tuple[int, int, int]], cut_ms: int, later_ms: int) -> None:
    cut = int(GRID.step(np.array(cut_ms)))
    old, new = ([row for row in rows if (row[1] // GRID.step_ms < cut) == early] for early in (True, False))
    step = max(cut, *(row[1] // GRID.step_ms + 1 for row in rows), 1)
    folded = counts([]).advanced(max(cut, 1), increments_of(old)).advanced(step, increments_of(new))
    keys, step_Q = np.arange(4, dtype=np.uint64), np.full(4, step + later_ms // GRID.step_ms)
    assert folded.at(keys, step_Q) == pytest.approx(counts(rows).at(keys, step_Q), rel=2 / UNIT, abs=1e-4)
    assert len(folded.place_E) == len(folded.key_K), "one row a key, however much came"


@given(increments, moments)
def test_saved_counts_are_the_same_from_the_disk(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, int, int]], at_ms: int
) -> None:
    directory = tmp_path_factory.mktemp("counts") / "items"
    kept = counts(rows)
    kept.save(directory)
    keys, step_Q = np.arange(4, dtype=np.uint64), steps(np.full(4, at_ms))
    assert np.array_equal(DecayedCounts.load(directory, GRID).at(keys, step_Q), kept.at(keys, step_Q))
