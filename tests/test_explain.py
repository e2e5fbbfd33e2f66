"""Explanations: what is said of an action is what the model says of a twin who did everything else."""

import asyncio
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayapp.contracts.presets import nano, variant
from rayapp.registry.aliases import SHADOW, promote
from rayapp.registry.models import LoadedModel
from rayapp.root.facts import make_root
from rayapp.serving.closed_steps import GRACE_MS
from rayapp.serving.explaining import (
    LEAST_CHANGE,
    NUM_REASONS,
    ROUNDING,
    ExplainCall,
    Explaining,
    Explanation,
    left_out,
)
from rayapp.serving.fresh_statistics import FreshStatistics
from rayapp.serving.ranking import RankCall, rank
from rayapp.serving.stages import MOST_EXPLAINS
from rayapp.store import Store
from rayapp.store.opening import open_store
from tests.api_in_process import Running
from tests.conftest import T0, make_event
from tests.scorers import DOMAIN, hashes, scorer_of

STEP_MS = DOMAIN.statistics_step_ms
START = T0 // STEP_MS * STEP_MS
NOW = START + 3 * STEP_MS + GRACE_MS
UTILITIES = (1.0, -1.0)
ITEMS = ["i0", "i1", "i2", "i7", "nobody-knows"]
OTHERS = [f"i{n}" for n in range(20, 40)]
PATIENT = {"deadline_ms": 30_000}
VARIANTS = ("v1.1", "v1.0", "cross", "target-attention", "counts", "average-pool", "no-sequence")
ACTIONS = [
    # item, action, ms before the end of the steps
    ("i3", "save", 2 * STEP_MS + 5),
    ("i3", "save", 2 * STEP_MS + 3),  # counts in the step above, once
    ("i4", "hide", 2 * STEP_MS),
    ("i4", "click", 2 * STEP_MS),  # of one item and millisecond one takes the place
    ("i9", "save", STEP_MS + 1),
    ("i6", "click", STEP_MS),
    ("i9", "hide", STEP_MS - 100),
    ("i12", "save", 50),
    ("i5", "share", 2),
]


@dataclasses.dataclass(frozen=True)
class Twins:
    """A store in which `ann` did ACTIONS, and for every action somebody did all of them but that one."""

    store: Store
    statistics: FreshStatistics

    def call(self, user: str, items: list[str]) -> RankCall:
        return RankCall.of(user, self.store.lookup(user), NOW, items, {"hour": 3.0})


def act(store: Store, user: str, without: set[int]) -> None:
    """An event has the same id for each twin, since ids settle what comes first in one millisecond."""
    events = [
        make_event(n, user=user, item=item, action=action, at=NOW - GRACE_MS - before_ms)
        for n, (item, action, before_ms) in enumerate(ACTIONS)
        if n not in without
    ]
    assert len(store.append(events)) == len(events)


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twins]:
    root = tmp_path_factory.mktemp("twins") / "root"
    make_root(root, DOMAIN, num_buckets=4)
    store, clock_ms = open_store(root), [START]
    statistics = FreshStatistics(root, DOMAIN, store, lambda: clock_ms[0] * 1_000_000)
    people = {
        "ann": set[int](),
        **{f"without-{n}": {n} for n in range(len(ACTIONS))},
        "without-3-2": {2, 3},
        "without-g0": {0, 1, 4, 5, 6, 7},
    }
    for user, without in people.items():
        act(store, user, without)
        row = {"request_id": user, "user_id": user, "timestamp_ms": START, "item_ids": ["i3", "i4", "i9", "i30"]}
        store.log_requests([row])
    clock_ms[0] = NOW
    statistics.refresh()
    yield Twins(store, statistics)
    store.close()


def model_of(name: str) -> LoadedModel:
    config = variant(nano(), name).model
    scorer = scorer_of(config)
    return LoadedModel(name, config, DOMAIN.head_names, scorer, scorer.inputs.table, DOMAIN)


def explained(model: LoadedModel, twins: Twins, items: list[str], others: list[str]) -> Explanation:
    asked = ExplainCall(twins.call("ann", items), hashes(*others), UTILITIES)
    explaining = Explaining(model, twins.statistics, DOMAIN, asked)
    for part in explaining.parts():
        explaining.score(part)
    return explaining.explanation()


@pytest.mark.parametrize("name", VARIANTS)
def test_what_is_said_of_an_action_is_what_a_twin_without_it_gets(twins: Twins, name: str) -> None:
    model = model_of(name)
    told = explained(model, twins, ITEMS, OTHERS)

    def scores(user: str, items: list[str]) -> np.ndarray:
        ranking = rank(model, twins.statistics, DOMAIN, twins.call(user, items))
        return ranking.probability_CH @ np.array(UTILITIES, np.float32)

    whole_C, others_O = scores("ann", ITEMS), scores("ann", OTHERS)
    # What was done to i4 in one millisecond goes together: the hide would take the place of the click.
    twin_of = {n: f"without-{n}" for n in range(len(ACTIONS))} | {2: "without-3-2"}
    number_of = {(item, NOW - GRACE_MS - before): n for n, (item, _, before) in reversed(list(enumerate(ACTIONS)))}
    seen = 0
    for c, item in enumerate(told.items):
        assert item.score == pytest.approx(whole_C[c], abs=1e-5)
        above_O = (others_O > whole_C[c] + ROUNDING).sum() if c < 4 else len(OTHERS)
        assert item.rank == 1 + above_O + ((c == 4 and 4) or (np.delete(whole_C, [c, 4]) > whole_C[c] + ROUNDING).sum())
        assert len(item.reasons) <= NUM_REASONS
        changes = [abs(reason.score_without - item.score) for reason in item.reasons]
        assert changes == sorted(changes, reverse=True)
        assert all(change >= LEAST_CHANGE for change in changes)
        for reason in item.reasons:
            if reason.kind == "category":
                twin = f"without-{reason.category}"
                assert (reason.category, reason.count, reason.action) == ("g0", 6, None)
            else:
                twin = twin_of[number_of[reason.item_id or "", reason.timestamp_ms or 0]]
            without = scores(twin, ITEMS)[c]
            assert reason.score_without == pytest.approx(without, abs=1e-5), reason
            rest_C = np.delete(whole_C, [c, 4])
            if c < 4:
                assert (
                    reason.rank_without
                    == 1 + (others_O > without + ROUNDING).sum() + (rest_C > without + ROUNDING).sum()
                )
            seen += 1
    assert seen >= (2 if name == "no-sequence" else 8)


def test_last_actions_stand_one_by_one_and_then_by_category(twins: Twins) -> None:
    call = twins.call("ann", ITEMS)
    history = call.user.history
    groups = left_out(call, model_of("cross"), DOMAIN)
    assert [(g.reason["item_id"], g.reason["action"]) for g in groups[:8]] == [
        ("i5", "share"), ("i12", "save"), ("i9", "hide"), ("i6", "click"),
        ("i9", "save"), ("i4", "click"), ("i3", "save"), ("i3", "save"),
    ]  # fmt: skip
    assert [(g.reason["category"], g.reason["count"]) for g in groups[8:]] == [("g0", 6)]
    assert np.array_equal(groups[8].gone_E, np.isin(history.item_hash_E, hashes("i3", "i6", "i9", "i12")))
    assert [int(g.gone_E.sum()) for g in groups[:8]] == [1, 1, 1, 1, 1, 2, 1, 1]


@given(others=st.lists(st.integers(0, 44), max_size=30, unique=True))
def test_ranks_are_places_among_all_candidates_once_each(twins: Twins, others: list[int]) -> None:
    """Named items among the candidates count once; unknown ones stand below."""
    told = explained(model_of("counts"), twins, ITEMS, [f"i{n}" for n in others])
    num = len({*ITEMS, *(f"i{n}" for n in others)})
    ranks = [item.rank for item in told.items]
    order = np.argsort([-item.score for item in told.items[:4]])
    assert [ranks[n] for n in order] == sorted(ranks[:4])
    assert max(ranks) <= num
    assert ranks[4] > max(ranks[:4])
    for item in told.items:
        for reason in item.reasons:
            assert 1 <= reason.rank_without <= num
            assert (reason.rank_without - item.rank) * (item.score - reason.score_without) >= 0


# ---- over HTTP -------------------------------------------------------------------------------------------------------


def test_the_api_tells_what_the_ranker_says_and_needs_no_action(api: Any, models: Any) -> None:
    promote(models[0], SHADOW, "b")

    async def test(graph: Running) -> None:
        nothing = (await graph.post("/v1/explain", {"user_id": "new", "item_ids": ["i1"], **PATIENT})).json()
        assert (nothing["items"][0]["reasons"], nothing["fallback_reason"]) == ([], None)
        for item_id, action in (("i3", "save"), ("i6", "hide"), ("i4", "click")):
            await graph.act("ann", item_id, action)
        ranked = (
            await graph.post("/v1/rank", {"user_id": "ann", "item_ids": ["i1", "i2"], "explain": True, **PATIENT})
        ).json()
        answer = await graph.post("/v1/explain", {"user_id": "ann", "item_ids": ["i1", "i2"], **PATIENT})
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert all(f"{stage};" in answer.headers["Server-Timing"] for stage in ("store", "candidates", "ranker"))
        assert body["model_version"] == "a"
        assert body["sequence"]["hash"] == ranked["sequence"]["hash"]
        score_of = {row["item_id"]: row for row in ranked["items"]}
        for item in body["items"]:
            assert item["score"] == pytest.approx(score_of[item["item_id"]]["score"], abs=1e-5)
            assert item["probabilities"] == pytest.approx(score_of[item["item_id"]]["probabilities"], abs=1e-5)
            assert item["reasons"], "three actions, and an untrained model reads all"
            assert {reason["kind"] for reason in item["reasons"]} <= {"action", "category"}
        assert body["kept"]
        other = (
            await graph.post("/v1/explain", {"user_id": "ann", "item_ids": ["i1"], "model": SHADOW, **PATIENT})
        ).json()
        assert (other["model_version"], other["degraded"]) == ("b", False)

    api(test)


def test_bad_questions_name_the_field(api: Any) -> None:
    async def test(graph: Running) -> None:
        for more, status, word in (
            ({"item_ids": []}, 422, "item_ids"),
            ({"item_ids": [f"i{n}" for n in range(11)]}, 422, "item_ids"),
            ({"item_ids": ["i1", "i1"]}, 422, "twice"),
            ({"item_ids": ["i1"], "context": {"colour": 1}}, 422, "colour"),
            ({"item_ids": ["i1"], "model": "nobody"}, 404, "nobody"),
            ({"item_ids": ["i1"], "num_results": 3}, 422, "num_results"),
        ):
            answer = await graph.post("/v1/explain", {"user_id": "ann", **more})
            assert (answer.status_code, word in answer.text) == (status, True), answer.text

    api(test)


def test_explanations_that_pile_up_are_turned_away_and_feeds_go_on(api: Any) -> None:
    async def test(graph: Running) -> None:
        await graph.act("ann", "i3")
        stages = graph.service.stages
        async with stages.explains.turn:  # one is under way
            body = {"user_id": "ann", "item_ids": ["i1"], **PATIENT}
            asked = [asyncio.ensure_future(graph.post("/v1/explain", body)) for _ in range(MOST_EXPLAINS + 1)]
            (done,), waiting = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            assert (done.result().status_code, done.result().headers["Retry-After"]) == (503, "1")
            assert not (await graph.feed("ann", num_results=3, **PATIENT))["degraded"]
        answers = await asyncio.gather(*waiting)
        assert [answer.status_code for answer in answers] == [200] * MOST_EXPLAINS
        assert not any(answer.json()["degraded"] for answer in answers)

    api(test)


def test_without_a_ranker_in_time_an_answer_says_so(api: Any) -> None:
    async def test(graph: Running) -> None:
        async with graph.service.stages.explains.turn:
            late = (await graph.post("/v1/explain", {"user_id": "ann", "item_ids": ["i1"], "deadline_ms": 60})).json()
        assert (late["degraded"], late["fallback_reason"]) == (True, "ranker_timeout")
        assert late["items"] == [{"item_id": "i1", "score": None, "rank": None, "probabilities": {}, "reasons": []}]

    api(test)
