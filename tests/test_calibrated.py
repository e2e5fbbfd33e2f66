"""Calibrated re-ranking: lists whose categories follow what the user liked, as far as the weight says."""

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayapp.contracts.config import CalibratedRanking, Cap, Domain
from rayapp.contracts.json_values import from_json, to_json
from rayapp.importing.domains.parse import DomainError, parse_domain
from rayapp.retrieval.candidates import Judged
from rayapp.serving.blend import blend
from rayapp.serving.calibrated import CALIBRATED_PLACES, Target
from tests.api_in_process import running

FILE = (Path(__file__).parents[1] / "rayapp/importing/domains/movielens.toml").read_text()

UTILITIES = (1.0, 0.0)
GENRES = "abcd"
B = Judged(("b",), liked=True)
HIDDEN = Judged(("b",), liked=False)
HALF = CalibratedRanking(attribute="genres", weight=0.9)
candidates = st.lists(
    st.tuples(st.lists(st.sampled_from(GENRES), max_size=3, unique=True).map(tuple), st.integers(0, 100)),
    min_size=1,
    max_size=40,
)
likes = st.lists(
    st.builds(Judged, st.lists(st.sampled_from(GENRES), max_size=2, unique=True).map(tuple), st.booleans()), max_size=10
)


def ranked(
    values: list[tuple[str, ...]], scores: list[float], number: int, judged: list[Judged], **more: object
) -> list[int]:
    probability = np.array([[score, 0.0] for score in scores], np.float32).reshape(-1, 2)
    settings = {"calibration": HALF, **more}
    rows = blend(probability, UTILITIES, number, values={"genres": values}, judged=judged, **settings)  # type: ignore[arg-type]
    return [row.index for row in rows]


def divergence(values: list[tuple[str, ...]], judged: list[Judged], scores: list[float], rows: list[int]) -> float:
    """Of the whole list: what the paper's metric says."""
    first = np.argsort(-np.array(scores), kind="stable")[: len(rows)].tolist()
    target = Target(values, judged, first)
    for row in rows[:-1]:
        target.take(row)
    return float(target.divergence(np.array(rows[-1:]))[0])


def test_five_likes_of_a_kind_bring_it_and_the_best_of_the_rest_stays() -> None:
    values: list[tuple[str, ...]] = [("a",)] * 20 + [("b",)] * 20
    scores = np.linspace(1, 0.8, 20).tolist() + np.linspace(0.7, 0.5, 20).tolist()
    assert ranked(values, scores, 10, []) == list(range(10)), "a new user's list is the feed's own"
    rows = ranked(values, scores, 10, [B] * 5)
    assert 4 <= sum(row >= 20 for row in rows) <= 8
    assert rows[0] in (0, 20)
    assert [row for row in rows if row < 20] == sorted(row for row in rows if row < 20), "each kind best first"
    assert sum(row >= 20 for row in ranked(values, scores, 10, [HIDDEN] * 4 + [B] * 5)) <= 2, "hidden since"
    assert ranked(values, scores, 10, [HIDDEN] * 5) == list(range(10)), "there is nothing to follow"
    slight = CalibratedRanking(attribute="genres", weight=0.01)
    assert sum(row >= 20 for row in ranked(values, scores, 10, [B] * 5, calibration=slight)) <= 2


@given(candidates, likes, st.integers(1, 40), st.sampled_from([0.1, 0.5, 0.9]))
def test_lists_stay_whole_and_are_nearer_to_their_target_than_by_score(
    given_C: list[tuple[tuple[str, ...], int]], judged: list[Judged], number: int, weight: float
) -> None:
    values, scores = [has for has, _ in given_C], [score / 100 for _, score in given_C]
    rows = ranked(values, scores, number, judged, calibration=CalibratedRanking(attribute="genres", weight=weight))
    plain = ranked(values, scores, number, judged, calibration=None)
    assert len(rows) == len(set(rows)) == min(number, len(values))
    if len(rows) == 1:  # greedy: exact for the first place
        spread = max(max(scores) - min(scores), 1e-9)

        def worth(row: int) -> float:
            relative = (scores[row] - min(scores)) / spread
            return (1 - weight) * relative - weight * divergence(values, judged, scores, [row])

        if any(one.liked for one in judged):
            assert worth(rows[0]) >= max(map(worth, range(len(values)))) - 1e-6
        else:
            assert rows == plain


@given(candidates, likes)
def test_the_divergence_is_none_negative_and_zero_on_target(
    given_C: list[tuple[tuple[str, ...], int]], judged: list[Judged]
) -> None:
    values = [has for has, _ in given_C]
    target = Target(values, judged, range(len(values)))
    # Values that the target lacks take from the list's other shares, so only a list of its values can reach it.
    assert (target.divergence(np.arange(len(values))) >= -1e-9).all()
    on_target = Target(values, [], range(len(values)))
    for row in range(len(values) - 1):
        on_target.take(row)
    if all(values):
        assert on_target.divergence(np.array([len(values) - 1]))[0] == pytest.approx(0, abs=1e-9)


def test_caps_bind_a_calibrated_list_too_and_far_places_go_by_score() -> None:
    values: list[tuple[str, ...]] = [("a",)] * 30 + [("b",)] * 30
    scores = np.linspace(1, 0, 60).tolist()
    rows = ranked(values, scores, 10, [B] * 9, caps={"genres": Cap(most=3, of=6)})
    kinds = ["ab"[row >= 30] for row in rows]
    assert all(kinds[n : n + 6].count(kind) <= 3 for n in range(5) for kind in "ab")
    rows = ranked(values, scores, 60, [B] * 9)
    assert sorted(rows) == list(range(60))
    assert rows[CALIBRATED_PLACES:] == sorted(rows[CALIBRATED_PLACES:])


def test_the_domain_says_what_is_wrong_and_keeps_the_names_of_versions(domain: Domain) -> None:
    assert "calibration" not in to_json(domain)
    with_it = dataclasses.replace(domain, calibration=HALF)
    assert from_json(Domain, to_json(with_it)) == with_it
    with pytest.raises(ValueError, match="'colour', no categorical attribute"):
        dataclasses.replace(domain, calibration=CalibratedRanking(attribute="colour", weight=0.5))
    for weight in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="above 0 and below 1"):
            CalibratedRanking(attribute="genres", weight=weight)


def test_the_domain_file_says_what_is_calibrated() -> None:
    assert parse_domain(FILE).domain.calibration is None
    attribute = next(a.name for a in parse_domain(FILE).domain.attributes if a.kind == "categories")
    found = parse_domain(f'{FILE}\n[calibration]\nattribute = "{attribute}"\nweight = 0.3\n').domain
    assert found.calibration == CalibratedRanking(attribute=attribute, weight=0.3)
    for bad, words in (
        ('attribute = "title"\nweight = 0.3', "calibration names 'title', no categorical"),
        (f'attribute = "{attribute}"\nweight = 1.5', "calibration weight must be above 0 and below 1"),
        (f'attribute = "{attribute}"', "weight"),
        ("weight = 0.3", "attribute"),
        (f'attribute = "{attribute}"\nweight = 0.3\nlambda = 1', "lambda"),
    ):
        with pytest.raises(DomainError, match=words):
            parse_domain(f"{FILE}\n[calibration]\n{bad}\n")


def test_a_served_feed_follows_its_domain_s_setting(models: tuple[Path, Any], domain: Domain) -> None:
    root, store = models
    store.close()

    async def shares(served: Domain) -> list[float]:
        async with running(root, served) as graph:
            found = []
            for user, liked in (("new", ()), ("liker", (1, 4, 7))):
                for n in liked:
                    await graph.act(user, f"i{n}", "save")
                feed = await graph.feed(user, num_results=8, deadline_ms=30_000)
                assert len(feed["items"]) == 8
                assert not feed["degraded"], feed["fallback_reason"]
                found.append(sum(int(row["item_id"][1:]) % 3 == 1 for row in feed["items"]) / 8)
            return found

    calibration = CalibratedRanking(attribute="genres", weight=0.99)
    plain = asyncio.run(shares(domain))
    new, liker = asyncio.run(shares(dataclasses.replace(domain, calibration=calibration)))
    assert new == plain[0], "a new user has nothing to follow"
    assert liker >= 0.5, "three likes against two that the feed's own categories count as, whatever the model says"
