"""Metrics against values worked out by hand and against slow definitions; comparisons with their intervals."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayapp.contracts.config import Domain
from rayapp.training.comparison import Row, auc_gap, compare, difference_table, table
from rayapp.training.evaluate import EvaluationSet, feed_score, measures, popularity_logits, report
from rayapp.training.metrics import (
    auc,
    auc_by_request,
    calibration_ratio,
    hit_rate,
    hits_at_k,
    mean_known,
    normalised_entropy,
)

SMALL = st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.integers(0, 3)), min_size=1, max_size=30)


def test_metrics_against_values_worked_out_by_hand() -> None:
    score, label = np.array([0.9, 0.8, 0.8, 0.1], np.float32), np.array([1, 0, 1, 0], np.float32)
    assert auc(score, label)[0] == pytest.approx((1 + 1 + 0.5 + 1) / 4)
    assert np.isnan(auc(score, np.ones(4, np.float32))[0])
    scores = np.array([[4, 3, 2, 1, 9], [1, 1, 1, 1, 1]], np.float32)
    labels = np.array([[0, 0, 1, 1, 1], [0, 0, 0, 0, 1]], np.float32)
    valid = np.array([[True] * 4 + [False], [True] * 5])
    assert hits_at_k(scores, labels, valid).tolist() == pytest.approx([1.0, 0.6])  # a tie of five: chance
    assert normalised_entropy(np.full(4, 0.5, np.float32), label)[0] == pytest.approx(1.0)
    assert np.isnan(normalised_entropy(np.full(4, 0.5, np.float32), np.zeros(4, np.float32))[0])
    assert calibration_ratio(np.full(4, 0.25, np.float32), label)[0] == pytest.approx(0.5)
    assert np.isnan(calibration_ratio(np.full(4, 0.25, np.float32), np.zeros(4, np.float32))[0])
    by_request = auc_by_request(scores, labels, valid)
    assert by_request.tolist() == pytest.approx([0.0, 0.5])
    assert mean_known(np.array([0.5, np.nan, 1.0]))[0] == pytest.approx(0.75)


@settings(max_examples=200)
@given(rows=SMALL)
def test_weighted_auc_is_that_of_repeated_rows(rows: list[tuple[int, bool, int]]) -> None:
    score, label, weight = (np.array(column) for column in zip(*rows, strict=True))
    expected = _slow_auc(np.repeat(score, weight), np.repeat(label, weight))
    got = auc(score.astype(np.float32), label.astype(np.float32), weight[None].astype(np.float64))[0]
    assert got == pytest.approx(expected, nan_ok=True)


def _slow_auc(score: np.ndarray, label: np.ndarray) -> float:
    pairs = [(p > n) + 0.5 * (p == n) for p in score[label] for n in score[~label]]
    return float(np.mean(pairs)) if pairs else float("nan")


@settings(max_examples=100)
@given(rows=SMALL)
def test_weighted_entropy_and_calibration_are_those_of_repeated_rows(rows: list[tuple[int, bool, int]]) -> None:
    score, label, weight = (np.array(column) for column in zip(*rows, strict=True))
    probability = (score.astype(np.float32) + 1) / 6
    for metric in (normalised_entropy, calibration_ratio):
        weighted = metric(probability, label.astype(np.float32), weight[None].astype(np.float64))[0]
        repeated = metric(np.repeat(probability, weight), np.repeat(label, weight).astype(np.float32))
        assert weighted == pytest.approx(repeated[0] if weight.sum() else np.nan, nan_ok=True)


@pytest.fixture
def window(rng: np.random.Generator, domain: Domain) -> EvaluationSet:
    users = rng.integers(0, 40, 300)
    return EvaluationSet(
        (rng.random((300, 5, len(domain.heads))) < 0.3).astype(np.float32),
        np.arange(5) < rng.integers(1, 6, 300)[:, None],
        users.astype(np.uint64),
        rng.integers(0, 60, 300),
        np.array([f"r{n}" for n in range(300)], object),
    )


def test_segments_part_the_requests(window: EvaluationSet) -> None:
    parts = np.stack([window.segment(name) for name in ("cold", "casual", "core")])
    assert (parts.sum(axis=0) == 1).all()
    assert (window.activity_R[window.segment("cold")] < 5).all()
    assert window.segment("all").all()


def test_a_report_is_blind_to_what_is_padded(window: EvaluationSet, domain: Domain, rng: np.random.Generator) -> None:
    logits = rng.normal(size=window.label_RCH.shape).astype(np.float32)
    before = report(window, logits, domain)
    logits[~window.valid_RC] = 50.0
    assert report(window, logits, domain) == before


def test_a_better_model_is_seen_to_be_better_and_an_equal_one_is_not(
    window: EvaluationSet, domain: Domain, rng: np.random.Generator
) -> None:
    noise = [rng.normal(size=window.label_RCH.shape).astype(np.float32) for _ in range(3)]
    signal = 1.5 * window.label_RCH
    logits = {"good": [signal + n for n in noise], "base": noise, "same": [n + 0.01 for n in noise]}
    rows = compare(window, logits, domain, references=["base"], draws=100)
    found = {(r.model, r.head, r.metric, r.segment): r for r in rows}
    for head in domain.head_names:
        good = found["good", head, "auc", "all"]
        assert good.differences["base"].low > 0.1
        assert good.estimate.low < good.estimate.value < good.estimate.high
        same = found["same", head, "auc", "all"].differences["base"]
        assert (same.low, same.value, same.high) == pytest.approx((0, 0, 0), abs=1e-6)
        assert found["base", head, "auc", "all"].differences == {}
        gap = auc_gap(window, logits["good"][0], noise[0], domain, head, draws=100)
        one = compare(window, {"a": logits["good"][:1], "b": noise[:1]}, domain, references=["b"], draws=100)
        same_draws = next(r for r in one if (r.model, r.head, r.metric, r.segment) == ("a", head, "auc", "all"))
        assert gap == same_draws.differences["b"]
    _check_words(rows, domain)


def _check_words(rows: list[Row], domain: Domain) -> None:
    text = table(rows, domain.head_names[0], "cold")
    assert text.count("\n") == 4  # head, rule, three models
    assert "good" in difference_table(rows, "base", domain.head_names[0], "all")


def test_intervals_cover_the_truth_about_as_often_as_they_say(domain: Domain) -> None:
    """A model's true AUC is known here; of 60 worlds, all but a few intervals must hold it."""
    held = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        label = np.repeat((rng.random((200, 1)) < 0.5).astype(np.float32)[:, :, None], len(domain.heads), axis=2)
        logit = (label + rng.normal(size=label.shape)).astype(np.float32)  # AUC = Phi(1 / sqrt 2) = 0.7602
        people = np.arange(200).astype(np.uint64)
        one = EvaluationSet(label, np.ones((200, 1), bool), people, np.zeros(200, np.int64), people.astype(object))
        measured = compare(one, {"m": [logit]}, domain, heads=domain.head_names[:1], draws=100)
        estimate = next(r.estimate for r in measured if r.metric == "auc" and r.segment == "all")
        held += estimate.low <= 0.7602 <= estimate.high
    assert 50 <= held <= 60


def test_hit_rate_weighs_requests(window: EvaluationSet, domain: Domain) -> None:
    measure = measures(window, np.zeros_like(window.label_RCH), domain, 0)["hit3"]
    weights = np.zeros((1, 300))
    weights[0, :10] = 1.0
    first = EvaluationSet(*(getattr(window, name)[:10] for name in EvaluationSet.__slots__))
    expected = measures(first, np.zeros_like(first.label_RCH), domain, 0)["hit3"](None)
    assert measure(weights)[0] == pytest.approx(expected[0])
    assert np.isnan(hit_rate(np.zeros(2), np.zeros(2))[0])


@pytest.mark.parametrize("utilities", [(1.0, 0.5, -1.5), (0.2, 1.0, -5.0), (1.0, 1.0, 1.0)])
def test_popularity_sorts_a_list_by_likes_whatever_the_utilities(domain: Domain, utilities: tuple[float, ...]) -> None:
    names = ("save", "click", "hide")
    heads = tuple(
        dataclasses.replace(domain.heads[0], name=n, utility=u) for n, u in zip(names, utilities, strict=True)
    )
    weighed = dataclasses.replace(domain, heads=heads, positive_head="save", label_weights=())
    logit_CH = popularity_logits(np.array([3, 0, 10, 7]), 10, weighed)
    score_C = feed_score(1 / (1 + np.exp(-logit_CH)), weighed)
    assert np.argsort(-score_C).tolist() == [2, 3, 0, 1]
    more = popularity_logits(np.array([10, 11, 40]), 10, weighed)[:, 0]
    assert (np.diff(more) > 0).all(), "what is tested on may be liked more than anything was before"
