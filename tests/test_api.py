"""The HTTP surface over real stages and a real store, all in this process: keys, users, paging, the request log."""

import asyncio
import dataclasses
import signal
import time
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pytest

from rayapp.contracts.config import Domain
from rayapp.contracts.schema import item_schema
from rayapp.pipeline.export import export
from rayapp.registry.aliases import CHAMPION, SHADOW, promote, read_aliases
from rayapp.root.catalogue import read_catalogue
from rayapp.root.catalogue_writer import merge
from rayapp.root.logs import read_log
from rayapp.root.places import EVENTS, ITEMS, REQUESTS
from rayapp.serving.keys import Role, add_key
from rayapp.store.opening import open_store
from tests.api_in_process import RANKER_CALLS, Running, running
from tests.redis_server import free_port, start, stop


def test_a_feed_sees_what_was_just_done_and_is_logged_as_it_was_shown(api: Any, domain: Domain) -> None:
    async def test(graph: Running) -> None:
        await graph.act("ann", "i3")
        feed = await graph.feed("ann", num_results=4)
        assert feed["sequence"]["length"] == 1
        assert "i3" not in [row["item_id"] for row in feed["items"]]
        await graph.service.answers.requests.flush()
        store, root = graph.service.stages.sequences._store, graph.service.root
        export(root, store, 1)
        (row,) = read_log(root, REQUESTS, ["request_id", "item_ids", "watermark", "sequence_hash"]).to_pylist()
        assert row["request_id"] == feed["request_id"]
        assert row["item_ids"] == [item["item_id"] for item in feed["items"]]
        assert row["watermark"] == feed["sequence"]["watermark"]
        assert f"{row['sequence_hash']:016x}" == feed["sequence"]["hash"]

    api(test)


def test_a_shadow_scores_what_is_shown_and_is_never_shown(api: Any, models: Any, domain: Domain) -> None:
    promote(models[0], SHADOW, "b")

    async def test(graph: Running) -> None:
        feed = await graph.feed("ann", num_results=4)
        assert feed["model_version"] == "a"
        await asyncio.gather(*graph.service.answers.shadows)
        await graph.service.answers.requests.flush()
        export(graph.service.root, graph.service.stages.sequences._store, 1)
        (row,) = read_log(graph.service.root, REQUESTS, ["shadow_version", "shadow_probabilities"]).to_pylist()
        assert row["shadow_version"] == "b"
        assert len(row["shadow_probabilities"]) == 4 * len(domain.heads)

    api(test)


def test_an_item_that_was_switched_off_and_on_is_what_it_was(api: Any, domain: Domain) -> None:
    """In the catalogue too, and whether it was put or imported."""
    imported = {
        "item_id": "i1",
        "title": "One",
        "genres": ["g1"],
        "year": 1999.0,
        "created_at_ms": 5,
        "vector": [0.5] * 8,
    }
    put = {"title": "New one", "genres": ["g1", "rare"], "year": 2026.0}

    async def test(graph: Running) -> None:
        root, client = graph.service.root, graph.client
        schema = item_schema(domain.attributes).append(pa.field("vector", pa.large_list(pa.float32())))
        merge(root, ITEMS, pa.Table.from_pylist([imported], schema=schema), domain)
        assert (await client.put("/v1/items/new", json=put)).status_code == 200
        assert (await client.get("/v1/items/nobody")).status_code == 404
        assert (await client.patch("/v1/items/nobody", json={"year": 1})).status_code == 404
        refused = await client.put("/v1/items/new", json={"available": False})
        assert refused.status_code == 422
        assert refused.json()["errors"][0]["field"] == "title"
        assert "PATCH" in refused.json()["detail"]
        for item_id, whole in (("new", put), ("i1", imported)):
            for available in (False, True):
                answer = await client.patch(f"/v1/items/{item_id}", json={"available": available})
                assert answer.status_code == 200
                shown = (await client.get(f"/v1/items/{item_id}")).json()
                assert answer.json() == shown
                assert shown["available"] is available
                assert {name: shown[name] for name in put} == {name: whole[name] for name in put}
        answer = await client.patch("/v1/items/new", json={"year": None, "created_at_ms": 9})
        assert (answer.json()["year"], answer.json()["created_at_ms"], answer.json()["title"]) == (None, 9, "New one")
        assert (await client.patch("/v1/items/new", json={"colour": 1})).status_code == 422
        export(root, graph.service.stages.sequences._store, 1)
        one, new = (row for row in read_catalogue(root).to_pylist())
        assert {name: one[name] for name in imported} == imported
        assert (new["title"], new["genres"], new["available"]) == ("New one", ["g1", "rare"], True)
        found: list[str] = []
        while found != ["new"]:  # as soon as the candidates have seen it
            feed = await graph.feed("ann", num_results=8, filter={"genres": ["rare"]})
            found = [row["item_id"] for row in feed["items"]]
            await asyncio.sleep(0.01)

    api(test)


def test_whoever_has_seen_everything_still_gets_a_feed(api: Any) -> None:
    async def test(graph: Running) -> None:
        every = [row["item_id"] for row in (await graph.feed("new", num_results=100))["items"]]
        assert len(every) > 3
        for item_id in every:
            await graph.act("ann", item_id)
        for stages in ("all", "no candidates"):
            first = await graph.feed("ann", num_results=3)
            assert len(first["items"]) == 3, stages
            assert {source for row in first["items"] for source in row["sources"]} == {"seen_again"}
            assert {row["item_id"] for row in first["items"]} == set(every[:3])
            second = await graph.feed("ann", num_results=3, page_token=first["next_page_token"])
            assert {row["item_id"] for row in second["items"]} == set(every[3:6])
            graph.service.live.popular = every
            graph.service.live.version = graph.service.live.previous = "a model that nobody holds"

    api(test)


ODD_IDS = ("a/b", "/", "//", "a/b/sequence", "..", ".", "a b", "ü", "50%", "a%2Fb", "x:merge", "a?b#c", "\U0001f600")


@pytest.mark.parametrize("odd", ODD_IDS)
def test_every_id_that_is_taken_can_be_read_and_erased(api: Any, odd: str) -> None:
    path = quote(odd, safe="").replace(".", "%2E")  # clients take . and .. for parts of the path

    async def test(graph: Running) -> None:
        client = graph.client
        await graph.act(odd, "i3")
        answer = await client.get(f"/v1/users/{path}/sequence")
        assert (answer.json()["user_id"], answer.json()["length"]) == (odd, 1)
        assert (await client.put(f"/v1/users/{path}", json={})).json()["user_id"] == odd
        assert (await client.get(f"/v1/users/{path}")).json()["user_id"] == odd
        await graph.act("anonymous", "i4")
        merged = await client.post(f"/v1/users/{path}:merge", json={"anonymous_id": "anonymous"})
        assert merged.json() == {"user_id": odd, "merged": 1}
        assert (await client.delete(f"/v1/users/{path}")).status_code == 204
        assert (await client.get(f"/v1/users/{path}/sequence")).json()["length"] == 0
        item = {"title": "t", "genres": [], "year": None}
        assert (await client.put(f"/v1/items/{path}", json=item)).json() == {"item_id": odd}
        assert (await client.get(f"/v1/items/{path}")).json()["item_id"] == odd
        assert (await client.get("/v1/users/%01/sequence")).status_code == 422, "no control character comes in this way"
        assert (await client.get("/v1/users/%01%2F/sequence")).status_code == 422

    api(test)


def test_keys_open_what_their_role_allows(api: Any, models: Any) -> None:
    client, admin = add_key(models[0], "shop", Role.CLIENT), add_key(models[0], "ops", Role.ADMIN)

    async def test(graph: Running) -> None:
        async def status(method: str, path: str, key: str | None, header: str = "Authorization") -> int:
            value = f"Bearer {key}" if header == "Authorization" else str(key)
            headers = {header: value} if key is not None else {}
            answer = await graph.client.request(method, path, headers=headers, json={"user_id": "u"})
            if answer.status_code == 401:
                assert answer.headers["WWW-Authenticate"] == "Bearer"
                assert answer.headers["Content-Type"] == "application/problem+json"
            return answer.status_code

        for key in (None, "", "nope", client[:-1]):
            assert await status("POST", "/v1/recommendations", key) == 401
            assert await status("DELETE", "/v1/users/u", key) == 401
            assert await status("POST", "/v1/models/b:promote", key) == 401
            assert await status("GET", "/v1/models", key) == 401
        assert await status("POST", "/v1/recommendations", client) == 200
        assert await status("POST", "/v1/recommendations", client, "X-API-Key") == 200
        assert await status("GET", "/v1/models", client) == 200
        assert await status("DELETE", "/v1/users/u", client) == 403
        assert await status("POST", "/v1/models/b:promote", client) == 403
        assert await status("POST", "/v1/models/a:rollback", client) == 403
        assert await status("DELETE", "/v1/users/u", admin) == 204
        assert await status("GET", "/health/live", None) == 200
        assert await status("GET", "/health/ready", None) == 200

    api(test, keys=True)


def test_a_user_s_attributes_are_recorded_from_a_moment_on(api: Any) -> None:
    async def test(graph: Running) -> None:
        assert (await graph.client.get("/v1/users/ann")).status_code == 404
        answer = await graph.client.put("/v1/users/ann", json={"effective_at_ms": 5})
        assert answer.json() == {"user_id": "ann", "effective_at_ms": 5}
        assert (await graph.client.get("/v1/users/ann")).json()["effective_at_ms"] == 5
        for bad, field in (({"effective_at_ms": 2**60}, "effective_at_ms"), ({"colour": 1}, "colour"), ([], "")):
            answer = await graph.client.put("/v1/users/ann", json=bad)
            assert answer.status_code in (400, 422), answer.text
            assert field in answer.text

    api(test)


def test_an_anonymous_user_s_actions_become_a_known_one_s_once(api: Any, domain: Domain) -> None:
    async def test(graph: Running) -> None:
        for item in ("i1", "i2"):
            await graph.act("anonymous-7", item)
        await graph.act("ann", "i9")
        body = {"anonymous_id": "anonymous-7"}
        assert (await graph.post("/v1/users/ann:merge", body)).json() == {"user_id": "ann", "merged": 2}
        assert (await graph.post("/v1/users/ann:merge", body)).json()["merged"] == 0
        events = (await graph.client.get("/v1/users/ann/sequence")).json()["events"]
        assert [e["item_id"] for e in events] == ["i9", "i2", "i1"], "by the time of the action"
        assert events[1]["received_at_ms"] > events[0]["received_at_ms"], "known as of the merge"
        assert (await graph.post("/v1/users/ann:merge", {"anonymous_id": "ann"})).status_code == 422

    api(test)


def test_an_erased_user_is_gone_at_once_and_stays_gone(api: Any, domain: Domain) -> None:
    async def test(graph: Running) -> None:
        await graph.act("ann", "i1", event_id="e1", timestamp_ms=(old := time.time_ns() // 1_000_000))
        assert (await graph.client.delete("/v1/users/ann")).status_code == 204
        assert (await graph.client.get("/v1/users/ann/sequence")).json()["length"] == 0
        body = {"event_id": "e1", "user_id": "ann", "item_id": "i1", "action": "save", "timestamp_ms": old}
        answer = (await graph.post("/v1/events", body)).json()
        assert (answer["accepted"], answer["rejected"][0]["code"]) == (0, "erased")
        await graph.act("ann", "i2")
        assert (await graph.client.get("/v1/users/ann/sequence")).json()["length"] == 1
        export(graph.service.root, graph.service.stages.sequences._store, 1)
        assert len(read_log(graph.service.root, EVENTS, ["event_id"])) == 2, "compaction removes it from the log"

    api(test)


def test_pages_filters_and_exclusions_over_http(api: Any) -> None:
    async def test(graph: Running) -> None:
        seen: list[str] = []
        token: str | None = None
        for _ in range(10):
            feed = await graph.feed("new", num_results=7, page_token=token)
            seen += [row["item_id"] for row in feed["items"]]
            token = feed["next_page_token"]
            if token is None:
                break
        assert len(seen) == len(set(seen)) == 30
        only = await graph.feed("new", num_results=30, filter={"genres": ["g1"]}, exclude_item_ids=["i1"])
        assert {int(row["item_id"][1:]) % 3 for row in only["items"]} == {1}
        assert "i1" not in [row["item_id"] for row in only["items"]]
        assert (await graph.feed("new", filter={"genres": ["nothing"]}))["fallback_reason"] == "filtered_out"
        for body, field in (
            ({"page_token": "x"}, "page_token"),
            ({"filter": {"title": ["x"]}}, "filter"),
            ({"utilities": {"nope": 1.0}}, "utilities"),
            ({"utilities": {"save": 1e9}}, "utilities"),
            ({"deadline_ms": 1}, "deadline_ms"),
            ({"exclude_item_ids": ["x"] * 1_001}, "exclude_item_ids"),
            ({"num_candidates": 5_000}, "num_candidates"),
        ):
            answer = await graph.post("/v1/recommendations", {"user_id": "u", **body})
            assert answer.status_code == 422, answer.text
            assert field in answer.text

    api(test)


def test_utilities_of_a_request_turn_the_list(api: Any) -> None:
    async def test(graph: Running) -> None:
        ids = [f"i{n}" for n in range(10)]
        lists = []
        for save in (1.0, -1.0):
            answer = await graph.post(
                "/v1/rank", {"user_id": "u", "item_ids": ids, "utilities": {"save": save, "hide": 0.0}}
            )
            lists.append([row["item_id"] for row in answer.json()["items"]])
        assert lists[0] == lists[1][::-1]

    api(test)


def test_freshness_is_measured_where_an_action_is_taken_and_not_when_its_user_comes_back(
    models: Any,
    domain: Domain,
) -> None:
    """With two ingresses: what one has taken counts, though its user is only ever read through the other."""
    root, own = models
    own.close()

    async def test() -> None:
        async with running(root, domain) as taking, running(root, domain) as reading:
            measured: dict[str, list[float]] = {"taking": [], "reading": []}
            for name, graph in (("taking", taking), ("reading", reading)):
                graph.service.stages.sequences._freshness_ms = measured[name].append
            sent_ms = time.time_ns() // 1_000_000
            await taking.act("ann", "i1")
            for _ in range(1_000):
                if measured["taking"]:
                    break
                await asyncio.sleep(0.005)
            assert 0 <= measured["taking"][0] <= time.time_ns() // 1_000_000 - sent_ms
            assert (await reading.feed("ann"))["sequence"]["length"] == 1
            await taking.feed("ann")
            assert (len(measured["taking"]), measured["reading"]) == (1, [])

    asyncio.run(test())


def test_live_events_are_held_to_the_domain_s_earliest_day(models: Any, domain: Domain) -> None:
    root, own = models
    own.close()
    day_1995, day_2010 = 788_918_400_000, 1_262_304_000_000

    async def status(earliest_ms: int, at_ms: int) -> int:
        async with running(root, dataclasses.replace(domain, earliest_ms=earliest_ms)) as graph:
            event = {"user_id": "ann", "item_id": "i1", "action": "save", "timestamp_ms": at_ms}
            return (await graph.post("/v1/events", event)).status_code

    assert asyncio.run(status(day_1995, day_1995)) == 200, "an archive that goes on"
    assert asyncio.run(status(day_2010, day_1995)) == 422


def test_readiness_is_red_when_no_feed_can_be_answered(api: Any) -> None:
    async def test(graph: Running) -> None:
        live = graph.service.live
        live.version = live.previous = "not-there"
        answer = await graph.client.get("/health/ready")
        assert answer.status_code == 503
        assert answer.headers["Retry-After"]
        assert "model not-there is not loaded" in answer.json()["detail"]
        assert (await graph.feed("ann"))["items"] == []
        live.popular = ["i1", "i2"]
        assert (await graph.client.get("/health/ready")).status_code == 200
        assert (await graph.feed("ann"))["items"]

    api(test)


def test_readiness_does_not_hang_with_a_store_that_hangs(
    models: Any,
    domain: Domain,
    tmp_path: Path,
) -> None:
    root, own = models
    own.close()
    port = free_port()
    server = start(tmp_path / "redis", port)

    async def test() -> None:
        async with running(root, domain, store=f"redis://127.0.0.1:{port}/0") as graph:
            server.send_signal(signal.SIGSTOP)
            async with asyncio.timeout(15):  # each of these would wait five seconds for Redis, four times
                for _ in range(3):
                    answer = await graph.client.get("/health/ready")
                    assert (answer.status_code, answer.json()["store"]) == (200, "it does not answer")
            server.send_signal(signal.SIGCONT)
            state = ""
            while state != "ok":
                state = (await graph.client.get("/health/ready")).json()["store"]
                await asyncio.sleep(0.05)

    try:
        asyncio.run(test())
    finally:
        stop(server)


def test_operators_move_models_over_http(api: Any, models: Any) -> None:
    async def test(graph: Running) -> None:
        answer = await graph.post("/v1/models/b:promote", None)
        assert answer.json() == {"alias": CHAMPION, "version": "b", "previous": "a"}
        assert (await graph.post("/v1/models/nope:promote", None)).status_code == 409
        graph.service.live.aliases = read_aliases(models[0])
        assert (await graph.post("/v1/models/a:rollback", None)).status_code == 409, "a is not live"
        assert (await graph.post("/v1/models/b:rollback", None)).json()["version"] == "a"
        assert read_aliases(models[0]) == {CHAMPION: "a"}

    api(test)


def test_readiness_tells_of_a_store_that_fails_and_feeds_stay_up(api: Any) -> None:
    """A balancer that probes readiness must not take every node out because of what they share."""

    async def test(graph: Running) -> None:
        answer = await graph.client.get("/health/ready")
        assert answer.status_code == 200
        well = {"status": "ready", "model_version": "a", "store": "ok", "candidates": "ok", "ranker": "ok"}
        assert answer.json() == well
        store = graph.service.stages.sequences._store
        store._env.close()  # as an unmounted disk: every use fails from now on
        answer = await graph.client.get("/health/ready")
        assert answer.status_code == 200
        assert "closed" in answer.json()["store"]
        assert {**answer.json(), "store": "ok"} == well
        feed = await graph.feed("ann", num_results=3)
        assert (feed["degraded"], feed["fallback_reason"]) == (True, "store_unavailable")
        assert len(feed["items"]) == 3
        body = {"user_id": "ann", "item_id": "i1", "action": "save", "timestamp_ms": time.time_ns() // 1_000_000}
        answer = await graph.post("/v1/events", body)
        assert answer.status_code == 503
        assert answer.headers["Retry-After"]

    api(test)


def test_an_error_names_the_request(api: Any) -> None:
    async def test(graph: Running) -> None:
        answer = await graph.client.get("/v1/nowhere", headers={"X-Request-ID": "mine-1"})
        assert answer.json()["request_id"] == "mine-1"
        answer = await graph.client.get("/v1/nowhere", headers={"X-Request-ID": "\x01"})
        assert uuid.UUID(answer.json()["request_id"])

    api(test)


def test_an_open_store_is_the_one_that_the_url_names(models: Any) -> None:
    store = open_store(models[0], f"lmdb://{models[0] / 'elsewhere'}")
    store.close()
    assert (models[0] / "elsewhere" / "data.mdb").exists()


def test_calls_beyond_what_rankers_take_wait_in_the_ingress(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(graph: Running) -> None:
        ranker = graph.service.stages.ranker
        rank, under_way, most = ranker.rank, 0, 0

        async def counted(version: str, call: Any) -> Any:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            await asyncio.sleep(0)  # whoever else may start does so now
            answer = await rank(version, call)
            under_way -= 1
            return answer

        monkeypatch.setattr(ranker, "rank", counted)
        answers = await asyncio.gather(*(graph.feed(f"u{n}") for n in range(6)))
        assert [answer["degraded"] for answer in answers] == [False] * 6
        assert most == RANKER_CALLS

    api(test)
