"""How a feed reacts: what the probe asks a served feed, and what its report makes of it."""

import asyncio
import concurrent.futures
import json
from typing import Any

import httpx
import pytest

from rayapp.client.reaction_report import Probe, Reaction, Shares, report, summary
from rayapp.client.reactions import _Category
from rayapp.client.session import Genres, Session, SessionError, strongest
from rayapp.contracts.config import Domain
from rayapp.contracts.schema import ActionKind
from rayapp.registry.aliases import BASELINE, promote
from tests.api_in_process import Running
from tests.tiny_models import item_table


class Bridge(httpx.BaseTransport):
    """A plain client's way to an API that lives on another thread's event loop."""

    def __init__(self, graph: Running, loop: asyncio.AbstractEventLoop) -> None:
        self._graph, self._loop = graph, loop

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        sent = self._graph.client.post(
            str(request.url), content=request.read(), headers={"content-type": "application/json"}
        )
        answer = asyncio.run_coroutine_threadsafe(sent, self._loop).result()
        return httpx.Response(answer.status_code, content=answer.content)


def test_a_probe_acts_as_people_do_and_counts_what_feeds_hold(api: Any, models: Any, domain: Domain) -> None:
    promote(models[0], BASELINE, "b")
    genres = Genres(domain, item_table(domain))

    def probe(transport: Bridge) -> Probe:
        with httpx.Client(transport=transport, base_url="http://api") as client:
            return _Category(client, genres, "g1", "save", "hide", plain=True).probe(2)

    async def test(graph: Running) -> None:
        loop = asyncio.get_running_loop()
        with concurrent.futures.ThreadPoolExecutor() as pool:
            found = await loop.run_in_executor(pool, probe, Bridge(graph, loop))
        assert (found.category, found.items) == ("g1", 10)
        for reaction in (found.new, found.past):
            assert reaction.hidden is not None
            for shares in (reaction.before, reaction.after, reaction.twin, reaction.hidden):
                assert all(0 <= share <= 1 for share in (shares.rank, shares.by_score, shares.feed))
            assert 0 <= reaction.feeds_to_half <= 20
        assert found.no_sequence is not None
        assert all(0 <= share <= 1 for share in found.no_sequence)
        assert found.seconds > 0

    api(test)


def test_the_fixed_items_hold_enough_and_not_all_of_a_genre(domain: Domain) -> None:
    genres = Genres(domain, item_table(domain))
    assert genres.sizes() == {"g0": 10, "g1": 10, "g2": 10}
    for fewest, most, expected in ((0, 10, 4), (6, 10, 6), (0, 2, 2)):
        fixed = genres.mixture("g1", 12, fewest, most)
        assert len(fixed) == len(set(fixed)) == 12
        assert sum(genres.has("g1", item_id) for item_id in fixed) == expected
    assert not genres.has("g1", "newer than the table")


def reaction(before: float, after: float, twin: float, hidden: float | None) -> Reaction:
    def same(share: float) -> Shares:
        return Shares(share, share, share)

    return Reaction(same(before), same(after), same(twin), None if hidden is None else same(hidden), 2)


def test_the_summary_counts_what_rises_falls_and_follows() -> None:
    told = summary([reaction(0.1, 0.35, 0.4, 0.1), reaction(0.3, 0.4, 0.4, 0.4), reaction(0.1, 0.2, 0.4, 0.5)])
    assert (told["feed"]["rises"], told["feed"]["falls"], told["follows"]) == (3, 1, 2)
    assert told["rank"]["mean_after"] == pytest.approx(0.95 / 3)
    assert told["rank"]["mean_twin"] == pytest.approx(0.4)


@pytest.mark.parametrize("hidden", [0.1, None])
def test_the_report_is_told_with_and_without_negative_actions(
    capsys: pytest.CaptureFixture[str], hidden: float | None
) -> None:
    one = reaction(0.1, 0.5, 0.4, hidden)
    probes = [Probe("Horror", 92, one, one, (0.1, 0.1), 0.04), Probe("War", 71, one, one, None, 0.05)]
    report(probes, "m", 10, as_json=True, write=None)
    told = json.loads(capsys.readouterr().out)
    assert (told["categories"], told["new"]["follows"], told["seconds_max"]) == (2, 2, 0.05)
    assert "rises_more_than_no_sequence" not in told
    report(probes, "m", 10, as_json=False, write=None)
    text = capsys.readouterr().out
    assert "| Horror (92) | 10% → 50% |" in text
    assert ("falls for 2 of 2" in text) == (hidden is not None)


def test_sessions_post_what_came_before_in_order(api: Any, domain: Domain) -> None:
    def acts(transport: Bridge) -> dict[str, Any]:
        with httpx.Client(transport=transport, base_url="http://api") as client:
            session = Session(client, "ann")
            session.act_on(["i1", "i2", "i3"], "save")
            session.act_on([], "save")
            with pytest.raises(SessionError, match="no-such-action"):
                session.act_on(["i4"], "no-such-action")
            return session.feed(5, exclude=["i9"])

    async def test(graph: Running) -> None:
        loop = asyncio.get_running_loop()
        with concurrent.futures.ThreadPoolExecutor() as pool:
            feed = await loop.run_in_executor(pool, acts, Bridge(graph, loop))
        events = (await graph.client.get("/v1/users/ann/sequence")).json()["events"]
        assert [event["item_id"] for event in events] == ["i3", "i2", "i1"]
        assert not {"i1", "i2", "i3", "i9"} & {row["item_id"] for row in feed["items"]}

    api(test)


def test_a_domain_without_such_an_action_is_told(domain: Domain) -> None:
    assert strongest(domain, ActionKind.NEGATIVE) == "hide"
    kept = tuple(action for action in domain.vocabulary.actions if action.kind is not ActionKind.NEGATIVE)
    without = type("D", (), {"vocabulary": type(domain.vocabulary)(kept), "name": "test"})
    with pytest.raises(SessionError, match="no negative action"):
        strongest(without, ActionKind.NEGATIVE)  # type: ignore[arg-type]
