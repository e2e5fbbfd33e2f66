"""The request path without Ray or HTTP: stages that are late, fail or lack a model; pages; the request log."""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayapp.contracts.config import Domain
from rayapp.contracts.hashing import hash64
from rayapp.contracts.schema import request_schema
from rayapp.experiments.assignment import Assignment
from rayapp.features.sequence import History
from rayapp.retrieval.candidates import Candidates, Query
from rayapp.serving.answers import add_shadow, feed_body, request_row
from rayapp.serving.feed import Answer, Ask, Feed
from rayapp.serving.fresh_statistics import Read
from rayapp.serving.live import Live
from rayapp.serving.paging import MAX_AGE_MS, MAX_SHOWN, BadToken, ExpiredToken, Page, read_token
from rayapp.serving.ranking import RankCall, Ranking
from rayapp.serving.request_log import MAX_WAITING as MAX_ROWS_WAITING
from rayapp.serving.request_log import RequestLog
from rayapp.serving.request_run import FALLBACK_REASONS
from rayapp.serving.stages import Stages
from rayapp.store import UserSequence
from tests.conftest import T0

ITEMS = [f"i{n}" for n in range(30)]
NUMBER = {hash64(i): int(i[1:]) for i in ITEMS}


async def late() -> Any:
    await asyncio.sleep(60)


async def broken() -> Any:
    raise RuntimeError("the replica died")


class Fakes:
    """Stages over 30 items: item n has score n. Each may be made late or broken, or not to know a model."""

    def __init__(self) -> None:
        self.fault: dict[str, Callable[[], Awaitable[Any]]] = {}
        self.lacking: set[str] = set()
        self.fresh = True
        self.asked: list[tuple[str, str]] = []
        self.queries: list[Query] = []

    async def lookup(self, user_id: str) -> UserSequence:
        if "store" in self.fault:
            await self.fault["store"]()
        if user_id == "new":
            return UserSequence.unknown(7)
        one, hashes = np.array([T0]), np.array([hash64("i29")], np.uint64)
        return UserSequence(History(one, one, one, hashes, hashes, np.array([3], np.uint8)), ("i29",), 7)

    async def fetch(self, version: str, user: UserSequence, query: Query) -> Candidates | None:
        self.asked.append(("candidates", version))
        self.queries.append(query)
        if "candidates" in self.fault:
            await self.fault["candidates"]()
        if version in self.lacking:
            return None
        hidden = {*query.exclude_hash.tolist(), *user.history.item_hash_E.tolist()}
        items = [i for i in ITEMS if hash64(i) not in hidden][: query.num_candidates]
        ones = np.ones(len(items), np.float32)
        hashes = np.array([hash64(i) for i in items], np.uint64)
        return Candidates(
            items, hashes, ["popular"] * len(items), np.linspace(0, 1, len(items), dtype=np.float32), ones
        )

    async def describe(self, version: str, item_ids: Sequence[str], fields: Sequence[str]) -> list[Any] | None:
        if "items" in self.fault:
            await self.fault["items"]()
        return [dict.fromkeys(fields, item_id) for item_id in item_ids]

    async def rank(self, version: str, call: RankCall) -> Ranking | None:
        self.asked.append(("ranker", version))
        if "ranker" in self.fault:
            await self.fault["ranker"]()
        if version in self.lacking:
            return None
        save_C = np.array([NUMBER[h] / 100 for h in call.item_hash_C.tolist()], np.float32)
        probability_CH = np.stack([save_C, np.zeros_like(save_C)], axis=1)
        count = len(save_C)
        vector_CE = np.eye(count, 40, dtype=np.float16)
        read = Read(np.zeros(4, np.float32), np.ones((count, 3), np.float32), T0, fresh=self.fresh)
        return Ranking(version, probability_CH, np.ones(count, bool), vector_CE, len(call.user.history), 5, "t", read)


class NoArms:
    def arm_of(self, user_id: str, now_ms: int) -> Assignment | None:
        return None


class OneArm:
    def arm_of(self, user_id: str, now_ms: int) -> Assignment | None:
        return Assignment("trial", "b", "challenger", (-1.0, 0.0), None)


def ask(user_id: str = "u", **changes: Any) -> Ask:
    asked = Ask(request_id="r1", user_id=user_id, at_ms=T0 + 1, page=Page.first(T0), num_results=5, deadline_ms=300)
    return dataclasses.replace(asked, **changes)


def recommend(domain: Domain, fakes: Fakes, arms: Any = None, asked: Ask | None = None, share: float = 0.0) -> Answer:
    live = Live("v2", "v1", {"champion": "v2", "challenger": "v3"}, popular=ITEMS[::-1])
    stages = Stages(fakes, fakes, fakes, asyncio.Semaphore(8))
    answer = asyncio.run(Feed(domain, stages, live, arms or NoArms(), share).recommend(asked or ask()))
    assert set(answer.run.reasons) <= set(FALLBACK_REASONS)
    return answer


def shown(answer: Answer) -> list[str]:
    return [item.item_id for item in answer.shown]


def test_all_well(domain: Domain) -> None:
    answer = recommend(domain, Fakes())
    assert shown(answer) == ["i28", "i27", "i26", "i25", "i24"]
    assert (answer.degraded, answer.reason) == (False, None)
    body = feed_body(answer, domain.head_names, explain=True)
    assert body["model_version"] == "v2"
    assert body["items"][0]["probabilities"] == {"save": pytest.approx(0.28), "hide": 0.0}
    assert body["sequence"]["watermark"] == 7


@pytest.mark.parametrize("fault", [late, broken])
def test_without_a_ranker_the_candidates_own_order_stands(domain: Domain, fault: Any) -> None:
    fakes = Fakes()
    fakes.fault["ranker"] = fault
    answer = recommend(domain, fakes)
    assert shown(answer) == ["i28", "i27", "i26", "i25", "i24"]
    assert answer.degraded
    assert answer.reason == ("ranker_timeout" if fault is late else "ranker_unavailable")
    assert feed_body(answer, domain.head_names, explain=True)["items"][0]["probabilities"] is None
    assert "probabilities" not in request_row(answer)


def test_statistics_that_are_behind_are_a_fault_that_is_said(domain: Domain) -> None:
    fakes = Fakes()
    fakes.fresh = False
    answer = recommend(domain, fakes)
    assert shown(answer) == ["i28", "i27", "i26", "i25", "i24"], "ranked all the same"
    assert (answer.degraded, answer.reason) == (True, "statistics")
    assert feed_body(answer, domain.head_names, explain=False)["statistics_at"] == "2026-01-01T00:00:00.000+00:00"


@pytest.mark.parametrize("fault", [late, broken])
def test_without_candidates_the_popular_ones_are_ranked(domain: Domain, fault: Any) -> None:
    fakes = Fakes()
    fakes.fault["candidates"] = fault
    answer = recommend(domain, fakes, asked=ask(exclude=["i28"]))
    assert shown(answer) == ["i27", "i26", "i25", "i24", "i23"], "neither what was seen nor what was excluded"
    assert answer.reason == ("candidates_timeout" if fault is late else "candidates_unavailable")
    assert answer.ranking is not None


@pytest.mark.parametrize("fault", [late, broken])
def test_without_the_store_the_user_is_new(domain: Domain, fault: Any) -> None:
    fakes = Fakes()
    fakes.fault["store"] = fault
    answer = recommend(domain, fakes)
    assert answer.reason == ("store_timeout" if fault is late else "store_unavailable")
    assert answer.degraded
    assert len(answer.shown) == 5
    assert not {"watermark", "sequence_hash"} & set(request_row(answer)), "nobody may re-cut what was never read"


@pytest.mark.parametrize("fault", [late, broken, None])
def test_fields_that_do_not_come_are_null(domain: Domain, fault: Any) -> None:
    fakes = Fakes()
    if fault is not None:
        fakes.fault["items"] = fault
    answer = recommend(domain, fakes, asked=ask(fields=["title"]))
    rows = feed_body(answer, domain.head_names, explain=False)["items"]
    assert [row["fields"] for row in rows] == [None if fault else {"title": row["item_id"]} for row in rows]
    assert answer.reason == {late: "items_timeout", broken: "items_unavailable", None: None}[fault]


def test_everything_broken_still_answers_in_time(domain: Domain) -> None:
    fakes = Fakes()
    fakes.fault = {"store": late, "candidates": late, "ranker": late}
    answer = recommend(domain, fakes)
    assert shown(answer) == ITEMS[::-1][:5]
    assert answer.run.reasons[:3] == ["store_timeout", "candidates_timeout", "ranker_timeout"]
    assert sum(answer.run.stage_ms.values()) < 10_000, "nobody waited for a stage that sleeps a minute"


def test_a_model_that_is_not_held_yet_gives_way_to_the_one_before(domain: Domain) -> None:
    fakes = Fakes()
    fakes.lacking = {"v2"}
    answer = recommend(domain, fakes)
    assert answer.ranking is not None
    assert answer.ranking.model_version == "v1"
    assert not answer.degraded
    fakes.lacking = {"v1", "v2"}
    assert recommend(domain, fakes).run.reasons == ["candidates_unavailable", "ranker_unavailable"]


def test_an_arm_brings_its_model_and_its_utilities(domain: Domain) -> None:
    fakes = Fakes()
    answer = recommend(domain, fakes, OneArm())
    assert answer.ranking is not None
    assert answer.ranking.model_version == "v3"
    assert shown(answer) == ["i0", "i1", "i2", "i3", "i4"], "the arm wants few saves"
    assert request_row(answer)["experiment"] == "trial/b"
    mine = recommend(domain, fakes, OneArm(), ask(utilities=(1.0, 0.0)))
    assert shown(mine)[0] == "i28", "a request's own utilities count most"


def test_reasons_that_are_no_fault(domain: Domain) -> None:
    assert recommend(domain, Fakes(), asked=ask("new")).reason == "unknown_user"
    nothing = recommend(domain, Fakes(), asked=ask(exclude=ITEMS))
    assert (nothing.shown, nothing.reason, nothing.degraded) == ([], "filtered_out", False)
    assert nothing.next_page_token is None


def test_pages_repeat_nothing_and_end(domain: Domain) -> None:
    fakes, page, seen = Fakes(), Page.first(T0), list[str]()
    for _ in range(20):
        answer = recommend(domain, fakes, asked=ask(page=page))
        seen += shown(answer)
        if answer.next_page_token is None:
            break
        page = read_token(answer.next_page_token, "u", T0 + 5)
    assert sorted(seen) == sorted(ITEMS[:29])


def test_a_share_of_feeds_is_in_random_order_and_says_so(domain: Domain) -> None:
    answers = [recommend(domain, Fakes(), asked=ask(request_id=f"r{n}"), share=0.2) for n in range(200)]
    drawn = [answer for answer in answers if answer.random_order]
    assert 15 <= len(drawn) <= 65
    assert all(request_row(answer)["random_order"] for answer in drawn)
    assert len({tuple(shown(answer)) for answer in drawn}) > len(drawn) * 0.9
    assert {feed_body(a, domain.head_names, explain=False)["ordering"] for a in answers} == {"random", "score"}


def test_a_row_of_the_request_log_fits_its_schema(domain: Domain) -> None:
    answer = recommend(domain, Fakes(), OneArm())
    row = request_row(answer)
    assert answer.ranking is not None
    add_shadow(row, answer.ranking)
    table = pa.Table.from_pylist([row], schema=request_schema(domain.context_attributes))
    (stored,) = table.to_pylist()
    assert stored["item_ids"] == shown(answer)
    assert len(stored["probabilities"]) == 5 * 2
    assert (stored["watermark"], stored["sequence_hash"], stored["shadow_version"]) == (7, 5, "v3")
    assert not set(row) - set(table.schema.names)


# ---- page tokens -----------------------------------------------------------------------------------------------------


@given(st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=60), st.text(min_size=1, max_size=20))
def test_a_token_gives_back_what_was_shown(items: list[str], user: str) -> None:
    token = Page.first(T0).next_token(user, items)
    assert token is not None
    page = read_token(token, user, T0 + 1)
    assert page.shown_hash_S.tolist() == [hash64(i) for i in items]
    assert page.started_ms == T0


@given(st.text(max_size=200))
def test_any_text_is_refused_in_words(text: str) -> None:
    with pytest.raises(BadToken, match="page_token"):
        read_token(text, "u", T0)


def test_tokens_of_others_and_of_yesterday() -> None:
    token = Page.first(T0).next_token("ann", ["a"])
    assert token is not None
    with pytest.raises(BadToken, match="another user"):
        read_token(token, "bob", T0)
    with pytest.raises(ExpiredToken):
        read_token(token, "ann", T0 + MAX_AGE_MS + 1)
    with pytest.raises(BadToken):
        read_token(token + "A" * 50_000, "ann", T0)
    assert Page.first(T0).next_token("ann", [str(n) for n in range(MAX_SHOWN)]) is None


# ---- the request log -------------------------------------------------------------------------------------------------


def test_rows_wait_for_a_store_that_is_away_and_arrive_in_order() -> None:
    sent: list[dict[str, Any]] = []
    lost: list[int] = []
    away = True

    async def send(rows: Sequence[dict[str, Any]]) -> None:
        if away:
            raise RuntimeError("away")
        sent.extend(rows)

    async def run() -> None:
        nonlocal away
        log = RequestLog(send, lost.append)
        for n in range(1_200):
            log.add({"n": n})
        with pytest.raises(RuntimeError):
            await log.flush()
        assert len(log) == 1_200
        away = False
        log.add({"n": 1_200})
        await log.flush()

    asyncio.run(run())
    assert [row["n"] for row in sent] == list(range(1_201))
    assert lost == []


def test_what_is_lost_is_the_oldest_and_is_counted() -> None:
    lost: list[int] = []

    async def send(rows: Sequence[dict[str, Any]]) -> None:
        raise RuntimeError("away")

    log = RequestLog(send, lost.append)
    for n in range(MAX_ROWS_WAITING + 3):
        log.add({"n": n})
    assert len(log) == MAX_ROWS_WAITING
    assert sum(lost) == 3
