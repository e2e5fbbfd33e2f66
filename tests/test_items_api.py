"""Items over HTTP: many at once, deleted and put again, searched, what is like them, and what a feed tells of them."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rayapp.contracts.config import Domain
from rayapp.contracts.schema import item_schema
from rayapp.pipeline.export import export
from rayapp.registry.item_tables import load_table
from rayapp.retrieval.index import CandidateIndex
from rayapp.retrieval.item_search import ItemTexts
from rayapp.root.catalogue import read_catalogue, read_item
from rayapp.root.catalogue_writer import merge
from rayapp.root.places import ITEMS
from rayapp.serving.events import NDJSON
from tests.api_in_process import Running, running
from tests.films import item, table_of
from tests.redis_server import free_port, start, stop
from tests.tiny_models import item_table

DEADLINE_S = 20.0
NEW = {"title": "Brand new", "genres": ["g1"], "year": 2026.0}


async def until(condition: Callable[[], Coroutine[Any, Any, bool]]) -> None:
    """Awaits what replicas do within seconds."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            if await condition():
                return
            await asyncio.sleep(0.01)


async def shown(graph: Running, **more: Any) -> list[str]:
    return [row["item_id"] for row in (await graph.feed("new", num_results=100, deadline_ms=10_000, **more))["items"]]


async def deleted_and_put_again(graph: Running) -> None:
    root, client, store = graph.service.root, graph.client, graph.service.stages.sequences._store
    await graph.act("ann", "i29")
    assert (await client.put("/v1/items/i29", json=NEW)).status_code == 200
    export(root, store, 1)
    assert read_item(root, "i29") is not None
    assert "i29" in await shown(graph)
    for _ in range(2):
        answer = await client.delete("/v1/items/i29")
        assert (answer.status_code, answer.content) == (204, b"")
    assert (await client.get("/v1/items/i29")).status_code == 404, "at once"
    assert (await client.patch("/v1/items/i29", json={"available": True})).status_code == 404, (
        "PATCH brings nothing back"
    )

    async def gone() -> bool:
        return "i29" not in await shown(graph)

    await until(gone)
    assert "i29" not in await shown(graph, filter={"genres": ["g1"]})
    assert (await client.get("/v1/items", params={"query": "i29"})).json() == {"items": []}
    assert (await client.get("/v1/items/i29/similar")).status_code == 404
    export(root, store, 1)
    assert read_item(root, "i29") is None
    feed = await graph.feed("ann")
    assert feed["sequence"]["length"] == 1, "what was done with it stays"
    ranked = (await graph.post("/v1/rank", {"user_id": "ann", "item_ids": ["i1", "i29"], "fields": ["title"]})).json()
    assert {row["item_id"]: row["fields"] for row in ranked["items"]}["i29"] is None
    async with running(root, graph.service.domain, store=graph.store) as other:  # a replica that starts later
        assert "i29" not in await shown(other)
    assert (await client.put("/v1/items/i29", json=NEW)).status_code == 200

    async def back() -> bool:
        return "i29" in await shown(graph)

    await until(back)
    export(root, store, 1)
    assert read_catalogue(root).to_pylist()[0]["title"] == "Brand new"


def test_a_deleted_item_is_in_no_feed_and_no_catalogue_until_it_is_put_again(api: Any) -> None:
    api(deleted_and_put_again)


def test_a_deleted_item_is_gone_from_every_replica_over_redis(
    models: tuple[Path, Any], domain: Domain, tmp_path: Path
) -> None:
    root, own = models
    own.close()
    port = free_port()
    server = start(tmp_path / "redis", port)

    async def test() -> None:
        async with running(root, domain, store=f"redis://127.0.0.1:{port}/0") as graph:
            await deleted_and_put_again(graph)

    try:
        asyncio.run(test())
    finally:
        stop(server)


def test_an_unknown_id_can_be_deleted_and_stays_out_of_the_catalogue(api: Any) -> None:
    async def test(graph: Running) -> None:
        store = graph.service.stages.sequences._store
        assert (await graph.client.delete("/v1/items/nobody")).status_code == 204
        assert export(graph.service.root, store, 1).items == 1
        assert read_item(graph.service.root, "nobody") is None
        assert (await graph.client.delete("/v1/items/%01")).status_code == 422

    api(test)


def test_many_items_are_taken_and_bad_ones_are_named(api: Any) -> None:
    whole = [{"item_id": f"n{n}", **NEW} for n in range(3)]
    bad: list[tuple[Any, str, str | None]] = [
        ("text", "wrong_type", None),
        (NEW, "missing_field", "item_id"),
        ({"item_id": 7, **NEW}, "wrong_type", "item_id"),
        ({"item_id": "", **NEW}, "bad_id", "item_id"),
        ({"item_id": "x", "title": "t"}, "missing_field", "genres"),
        ({"item_id": "x", **NEW, "colour": 1}, "unknown_field", "colour"),
        ({"item_id": "x", **NEW, "year": 10**400}, "invalid", "year"),
        ({"item_id": "x", **NEW, "title": "\ud800"}, "invalid", "title"),
        ({"item_id": "x", **NEW, "available": 1}, "invalid", "available"),
    ]
    values = [whole[0], *(value for value, _, _ in bad), whole[1], whole[2]]

    async def test(graph: Running) -> None:
        lines = "\n".join(json.dumps(value) for value in values) + "\n{\n"
        headers = {"Content-Type": f"{NDJSON}; charset=utf-8"}
        rejected = [{"index": n, "code": code, "field": field} for n, (_, code, field) in enumerate(bad, 1)]
        for sent, more in (
            ({"content": json.dumps(values)}, []),
            ({"content": json.dumps({"items": values})}, []),
            ({"content": lines, "headers": headers}, [{"index": len(values), "code": "malformed_json", "field": None}]),
        ):
            answer = await graph.client.post("/v1/items", **sent)  # type: ignore[arg-type]
            assert (answer.status_code, answer.json()["accepted"]) == (200, 3), answer.text
            told = answer.json()["rejected"]
            assert all(row.pop("message") for row in told)
            assert told == [*rejected, *more]
        for n in range(3):
            assert (await graph.client.get(f"/v1/items/n{n}")).json()["title"] == "Brand new"
        one = {"item_id": "alone", **NEW}
        assert (await graph.post("/v1/items", one)).json() == {"accepted": 1, "rejected": []}
        twice = [{**one, "title": "first"}, {**one, "title": "second"}]
        assert (await graph.post("/v1/items", twice)).json()["accepted"] == 2
        assert (await graph.client.get("/v1/items/alone")).json()["title"] == "second"
        assert (await graph.post("/v1/items", [])).json() == {"accepted": 0, "rejected": []}
        refused = await graph.post("/v1/items", [{"item_id": "x"}])
        assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "title")
        assert refused.json()["errors"][0]["index"] == 0
        too_many = await graph.post("/v1/items", [one] * 1_001)
        assert (too_many.status_code, "at most 1000" in too_many.text) == (400, True)

        async def recommended() -> bool:
            return {"n0", "n1", "n2", "alone"} <= set(await shown(graph, filter={"genres": ["g1"]}))

        await until(recommended)

    api(test)


def test_fields_bring_titles_and_attributes_along(api: Any) -> None:
    async def test(graph: Running) -> None:
        feed = await graph.feed("new", num_results=5, fields=["title", "genres", "available"], deadline_ms=10_000)
        assert not feed["degraded"]
        for row in feed["items"]:
            number = int(row["item_id"][1:])
            assert row["fields"] == {"title": f"film {number}", "genres": [f"g{number % 3}"], "available": True}
        assert "fields" not in (await graph.feed("new"))["items"][0]
        body = {"user_id": "u", "item_ids": ["nobody", "i3"], "fields": ["year"], "deadline_ms": 10_000}
        ranked = (await graph.post("/v1/rank", body)).json()["items"]
        assert {row["item_id"]: row["fields"] for row in ranked} == {"i3": {"year": 1993.0}, "nobody": None}
        for path, more in (("/v1/recommendations", {}), ("/v1/rank", {"item_ids": ["i1"]})):
            answer = await graph.post(path, {"user_id": "u", "fields": ["title", "colour"], **more})
            assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "fields")
            assert "'colour'" in answer.json()["detail"]
            assert "genres" in answer.json()["detail"]

        async def hangs(*_: Any) -> None:
            raise OSError("no candidates stage")

        graph.service.stages.candidates.describe = hangs  # type: ignore[method-assign,assignment]
        feed = await graph.feed("new", num_results=3, fields=["title"], deadline_ms=10_000)
        assert [row["fields"] for row in feed["items"]] == [None] * 3
        assert (feed["degraded"], feed["fallback_reason"]) == (True, "items_unavailable")

    api(test)


def test_an_item_that_no_model_knows_and_that_has_no_attributes_is_below_all_others(api: Any) -> None:
    async def test(graph: Running) -> None:
        blank = {"title": None, "genres": None, "year": None}
        await graph.post("/v1/items", [{"item_id": "blank", **blank}, {"item_id": "told", **NEW}])
        everything = [*(f"i{n}" for n in range(30)), "nobody", "blank", "told"]

        async def rank(**more: Any) -> list[dict[str, Any]]:
            body = {"user_id": "u", "item_ids": everything[::-1], "deadline_ms": 10_000, **more}
            answer = (await graph.post("/v1/rank", body)).json()
            rows: list[dict[str, Any]] = answer["items"]
            return rows

        async def known() -> bool:
            return next(row["known"] for row in await rank() if row["item_id"] == "told")

        await until(known)
        for utilities in ({"save": 1.0}, {"save": -100.0, "hide": -100.0}, {"hide": 5.0}):
            rows = await rank(utilities=utilities)
            assert {row["item_id"] for row in rows[-2:]} == {"nobody", "blank"}
            assert [row["known"] for row in rows] == [True] * 31 + [False] * 2
            scores = [row["score"] for row in rows]
            assert scores == sorted(scores, reverse=True)
            assert scores[-2] < scores[-3]
        feed = await shown(graph, num_candidates=200)
        assert feed[-1] == "blank"
        assert "told" in feed

    api(test)


def test_an_item_that_is_imported_while_the_graph_runs_is_scored_from_its_attributes(api: Any, domain: Domain) -> None:
    late = {"item_id": "late", "created_at_ms": 5, **NEW, "genres": ["late"]}
    gone = {"item_id": "gone", "created_at_ms": 5, **NEW, "genres": ["late"]}

    async def test(graph: Running) -> None:
        root, schema = graph.service.root, item_schema(domain.attributes)
        assert (await graph.client.delete("/v1/items/gone")).status_code == 204
        merge(root, ITEMS, pa.Table.from_pylist([late, gone], schema=schema), domain)

        async def recommended() -> bool:
            return await shown(graph, filter={"genres": ["late"]}) == ["late"]

        async def known() -> bool:
            body = {"user_id": "u", "item_ids": ["late", "gone"], "deadline_ms": 10_000}
            rows = (await graph.post("/v1/rank", body)).json()["items"]
            return [row["known"] for row in rows] == [True, False]

        await until(recommended)
        await until(known)
        async with running(root, domain, store=graph.store) as other:
            assert await shown(other, filter={"genres": ["late"]}) == ["late"], "and where a replica starts later"

    api(test)


def test_search_finds_pieces_of_ids_and_titles(api: Any) -> None:
    async def test(graph: Running) -> None:
        async def find(query: str, **more: Any) -> list[str]:
            answer = await graph.client.get("/v1/items", params={"query": query, **more})
            assert answer.status_code == 200, answer.text
            return [row["item_id"] for row in answer.json()["items"]]

        assert await find("FILM 2", limit=100) == [f"i{n}" for n in (*range(29, 19, -1), 2)]
        assert (await find("i2"))[:2] == ["i2", "i29"], "that of this id, then the most popular"
        assert await find("FILM 2", limit=2) == ["i29", "i28"]
        assert await find("no such film") == []
        assert len(await find("film")) == 20
        await graph.client.put("/v1/items/straße", json={**NEW, "title": "ÜBER den Wolken", "available": False})

        async def there() -> bool:
            return await find("über DEN") == ["straße"]

        await until(there)
        assert await find("STRASSE") == ["straße"]
        (row,) = (await graph.client.get("/v1/items", params={"query": "wolken"})).json()["items"]
        assert row == {**(await graph.client.get("/v1/items/straße")).json(), "available": False}
        for bad in ({}, {"query": ""}, {"query": "x" * 201}, {"query": "a", "limit": 0}, {"query": "a", "limit": 101}):
            answer = await graph.client.get("/v1/items", params=bad)  # type: ignore[arg-type]
            assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")

    api(test)


def test_similar_items_are_the_nearest_that_are_there(api: Any) -> None:
    async def test(graph: Running) -> None:
        answer = (await graph.client.get("/v1/items/i4/similar", params={"limit": 100})).json()
        assert (answer["item_id"], answer["model_version"]) == ("i4", "a")
        near = [row["item_id"] for row in answer["items"]]
        assert "i4" not in near
        assert len(near) == 29
        assert {int(i[1:]) % 3 for i in near[:9]} == {1}, "vectors of one genre are equal"
        assert [row["rank"] for row in answer["items"]] == list(range(1, len(near) + 1))
        assert [row["similarity"] for row in answer["items"][:9]] == [1.0] * 9
        sold_out = {"title": "film 7", "genres": ["g1"], "year": 1997, "available": False}
        await graph.client.put("/v1/items/i7", json=sold_out)

        async def left_out() -> bool:
            rows = (await graph.client.get("/v1/items/i4/similar", params={"limit": 100})).json()["items"]
            return "i7" not in [row["item_id"] for row in rows]

        await until(left_out)
        of_it = (await graph.client.get("/v1/items/i7/similar", params={"limit": 3})).json()["items"]
        assert len(of_it) == 3, "a page of what is sold out may show what is like it"
        assert (await graph.client.get("/v1/items/nobody/similar")).status_code == 404
        assert (await graph.client.get("/v1/items/i4/similar", params={"limit": 101})).status_code == 422
        await graph.client.put("/v1/items/blank", json={"title": None, "genres": None, "year": None})

        async def blank() -> bool:
            answer = await graph.client.get("/v1/items/blank/similar")
            return answer.status_code == 200 and answer.json()["items"] == []

        await until(blank)

    api(test)


def test_texts_that_follow_a_table_are_those_of_the_whole_table(domain: Domain) -> None:
    table = item_table(domain)
    texts = ItemTexts.of(table, "title")
    more = table.with_items([item(3, title="Another"), item(77), {"item_id": "i5", "deleted": True}])
    newest = more.with_items([item(78)])
    followed = texts.following(more).following(newest)
    assert followed.texts.equals(ItemTexts.of(newest, "title").texts)
    other = table_of([item(9)])
    assert followed.following(other).find("M 9", 9, CandidateIndex(other)) == list(other.items)


def test_a_deleted_row_stays_for_histories_and_comes_back_whole(models: tuple[Path, Any]) -> None:
    table = load_table(models[0], "table")
    gone = table.with_items([{"item_id": "i3", "deleted": True}, {"item_id": "never", "deleted": True}])
    assert gone.num_rows == table.num_rows
    row = int(table.rows_of_ids(["i3"])[0])
    assert np.array_equal(gone.vectors_NE, table.vectors_NE)
    assert gone.item(row) == {**table.item(row), "available": False, "deleted": True}
    back = gone.with_items([table.item(row)])
    assert back.item(row) == table.item(row)
    assert np.array_equal(back.vectors_NE, table.vectors_NE)
