"""The statistics of experiments: against textbooks, the bootstrap, and over many experiments without an effect."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.experiments import share, simulate
from rayapp.contracts.json_values import from_json, to_json
from rayapp.experiments.effects import rates
from rayapp.experiments.moments import Moments, cumulative
from rayapp.experiments.sample_ratio import chi_square_tail, sample_ratio
from rayapp.experiments.sequential import boundaries, correlation, spent


def canonical(num_looks: int) -> np.ndarray:
    """The correlation of looks at a sum to which every day adds an independent part."""
    day = np.arange(1, num_looks + 1)
    return np.sqrt(np.minimum(day[:, None], day) / np.maximum(day[:, None], day))


def shown_and_positive(rng: np.random.Generator, num_users: int = 600) -> tuple[np.ndarray, np.ndarray]:
    n_UP = rng.poisson(rng.lognormal(0, 1.2, num_users)[:, None], (num_users, 4)) * 5
    return n_UP, rng.binomial(n_UP, rng.beta(0.5, 9.5, num_users)[:, None])[:, :, None]


@pytest.mark.parametrize(("statistic", "degrees"), [(3.8415, 1), (5.9915, 2), (7.8147, 3), (11.0705, 5), (18.3070, 10)])
def test_the_chi_square_tail_is_the_table_s(statistic: float, degrees: int) -> None:
    assert chi_square_tail(statistic, degrees) == pytest.approx(0.05, abs=2e-5)
    assert chi_square_tail(0.0, degrees) == 1.0
    assert 0 <= chi_square_tail(2_000.0, degrees) < 1e-100


def test_boundaries_are_those_of_lan_and_demets() -> None:
    """Five equal looks, 2.5 % on a side: the values that textbooks and other programs give."""
    bound = boundaries(canonical(5), np.arange(1, 6) / 5, 0.025)
    assert bound == pytest.approx([4.8769, 3.3569, 2.6803, 2.2898, 2.0310], abs=0.06)


def test_spending_ends_with_the_whole_rate() -> None:
    assert spent(0.05, 1.0) == pytest.approx(0.05)
    assert spent(0.05, 2.0) == pytest.approx(0.05)
    assert spent(0.05, 0.0) == 0.0
    assert [spent(0.05, t) for t in (0.2, 0.4, 0.8)] == sorted(spent(0.05, t) for t in (0.2, 0.4, 0.8))


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 12), st.floats(0, 1), st.integers(0, 2**31))
def test_boundaries_hold_the_rate_whatever_the_correlation(num_looks: int, same: float, seed: int) -> None:
    """From looks at the same users again (1) to looks at new ones (0), and a look that nobody was there for."""
    correlation_KK = same * np.ones((num_looks, num_looks)) + (1 - same) * canonical(num_looks)
    fraction_K = np.arange(1, num_looks + 1) / num_looks
    bound = boundaries(correlation_KK, fraction_K, 0.05)
    factor = np.linalg.cholesky(correlation_KK + 1e-9 * np.eye(num_looks))
    z_KS = factor @ np.random.default_rng(seed).standard_normal((num_looks, 40_000))
    assert (z_KS > bound[:, None]).any(0).mean() == pytest.approx(0.05, abs=0.01)
    shorter = boundaries(correlation_KK[:-1, :-1], fraction_K[:-1], 0.05)
    assert shorter == pytest.approx(bound[:-1], abs=1e-4), "a look does not move the boundaries before it"


def test_a_look_without_users_can_not_alarm() -> None:
    correlation_KK = canonical(4)
    correlation_KK[0], correlation_KK[:, 0] = np.nan, np.nan
    bound = boundaries(correlation_KK, np.arange(1, 5) / 4, 0.05)
    assert math.isinf(bound[0])
    assert np.isfinite(bound[1:]).all()
    nothing = boundaries(np.full((2, 2), np.nan), np.array([0.5, 1.0]), 0.05)
    assert np.isinf(nothing).all()


def test_moments_of_spans_are_those_of_users_summed_over_the_span(rng: np.random.Generator) -> None:
    n_UP, x_UPH = shown_and_positive(rng, 50)
    member = np.array([[True, True, False, False], [False, True, True, True]])
    grouped = Moments.of_users(n_UP, x_UPH).grouped(member)
    direct = Moments.of_users(n_UP @ member.T, np.einsum("uph,qp->uqh", x_UPH, member))
    halves = Moments.of_users(n_UP[:20], x_UPH[:20]) + Moments.of_users(n_UP[20:], x_UPH[20:])
    for name in ("n_P", "x_PH", "nn_PP", "xn_PPH", "xx_PPH"):
        assert getattr(grouped, name) == pytest.approx(getattr(direct, name))
        assert getattr(halves, name) == pytest.approx(getattr(Moments.of_users(n_UP, x_UPH), name))
    again = from_json(Moments, to_json(grouped))
    assert (again.xn_PPH == grouped.xn_PPH).all()


def test_covariances_over_looks_are_the_bootstrap_s(rng: np.random.Generator) -> None:
    """And the interval by user is wider than one that takes shown items for independent."""
    n_UP, x_UPH = shown_and_positive(rng)
    found = rates(Moments.of_users(n_UP, x_UPH).grouped(cumulative(4)), 0)
    n_UK, x_UK = np.cumsum(n_UP, 1), np.cumsum(x_UPH[:, :, 0], 1)
    assert found.rate_Q == pytest.approx(x_UK.sum(0) / n_UK.sum(0))
    weight_BU = rng.multinomial(len(n_UK), np.full(len(n_UK), 1 / len(n_UK)), 4_000)
    rate_BK = (weight_BU @ x_UK) / (weight_BU @ n_UK)
    assert found.covariance_QQ == pytest.approx(np.cov(rate_BK.T), rel=0.15)
    assert found.deviations[-1] > 1.5 * math.sqrt(found.rate_Q[-1] * (1 - found.rate_Q[-1]) / n_UK[:, -1].sum())
    assert np.diagonal(correlation(found.covariance_QQ)) == pytest.approx(np.ones(4))


def test_a_period_without_anything_shown_has_no_rate() -> None:
    n_UP = np.array([[0, 10], [0, 20]])
    found = rates(Moments.of_users(n_UP, np.array([[[0], [1]], [[0], [0]]])).grouped(cumulative(2)), 0)
    assert math.isnan(found.rate_Q[0])
    assert found.estimate(0).value is None
    assert found.rate_Q[1] == pytest.approx(1 / 30)
    assert np.isnan(correlation(found.covariance_QQ)[0]).all()


def test_sample_ratio_follows_the_steps_of_growth() -> None:
    """Shares of 1:9, then 5:5. The users of today do not stand 5:5, and nothing is wrong with that."""
    slots = np.array([[100, 900], [4_900, 4_100]])
    fair = np.array([[510, 4_480], [12_300, 10_230]])
    assert not sample_ratio(fair, slots).alarm
    assert sample_ratio(fair.sum(0, keepdims=True), np.array([[5_000, 5_000]])).alarm
    assert sample_ratio(fair - np.array([[0, 0], [0, 900]]), slots).alarm
    assert sample_ratio(fair, slots, misplaced=1).alarm
    assert sample_ratio(np.array([[2, 3]]), np.array([[1, 1]])).p_value is None, "too few to tell"
    assert sample_ratio(np.array([[5_000, 0]]), np.array([[1, 0]])).p_value is None, "one arm, nothing to compare"


@pytest.mark.slow
def test_the_stop_is_wrong_as_seldom_as_it_says_and_a_broken_split_is_caught() -> None:
    """200 experiments without an effect, looked at daily. The bench `experiments` runs 1,000 and more users."""
    number = 200
    outcomes = [simulate(n, 700, 10, seed=1) for n in range(number)]
    stopped = sum(outcome.crossed_day is not None for outcome in outcomes)
    assert 0.01 < stopped / number < 0.10  # 5 %; the ends are 2.6 and 3.2 standard deviations away
    assert sum(outcome.naive for outcome in outcomes) > 1.5 * stopped, "looking daily without the boundaries"
    assert sum(outcome.mismatch for outcome in outcomes) <= 2
    assert all(simulate(n, 3_000, 2, lost=0.25, seed=2).mismatch for n in range(5))
    assert sum(simulate(n, 2_000, 10, lift=1.0, seed=3).crossed_day is not None for n in range(8)) >= 6


def test_a_share_s_interval_is_wilson_s() -> None:
    assert share(5, 100) == pytest.approx({"share": 0.05, "low": 0.0215, "high": 0.1118}, abs=1e-4)
    assert share(0, 10)["low"] == pytest.approx(0.0, abs=1e-12)
