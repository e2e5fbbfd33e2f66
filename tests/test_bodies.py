"""How a body comes in, and how bodies and answers are described: gzip, media types, limits, the OpenAPI document."""

import gzip
import json
import time
import zlib
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from deployments.http import Problem
from deployments.ingress import build_api
from deployments.middleware import MAX_BODY_BYTES, Unpacked
from rayapp.serving.keys import Role, add_key
from tests.api_in_process import Running

FEED = {"user_id": "ann", "num_results": 3}
NEW = {"title": "Brand new", "genres": ["g1"], "year": 2026.0}


def event(user_id: str = "ann") -> dict[str, Any]:
    now_ms = time.time_ns() // 1_000_000
    return {"user_id": user_id, "item_id": "i1", "action": "save", "timestamp_ms": now_ms}


async def packed(graph: Running, path: str, body: bytes, encoding: str = "gzip", kind: str = "application/json") -> Any:
    headers = {"Content-Encoding": encoding, "Content-Type": kind}
    return await graph.client.post(path, content=body, headers=headers)


def test_bodies_that_come_as_gzip_are_read(api: Any) -> None:
    async def test(graph: Running) -> None:
        for encoding in ("gzip", "GZIP", " x-gzip "):
            answer = await packed(graph, "/v1/recommendations", gzip.compress(json.dumps(FEED).encode()), encoding)
            assert (answer.status_code, len(answer.json()["items"])) == (200, 3), answer.text
        lines = b"\n".join(json.dumps({"item_id": f"n{n}", **NEW}).encode() for n in range(500))
        halves = gzip.compress(lines[:9_000]) + gzip.compress(lines[9_000:])  # a file of two members, as pigz writes
        answer = await packed(graph, "/v1/items", halves, kind="application/x-ndjson")
        assert answer.json() == {"accepted": 500, "rejected": []}
        assert (await packed(graph, "/v1/events", json.dumps(event()).encode(), "identity")).json()["accepted"] == 1

    api(test)


def test_what_a_body_unpacks_to_is_limited_and_broken_gzip_is_told(api: Any) -> None:
    async def test(graph: Running) -> None:
        whole = gzip.compress(json.dumps([event()] * 20).encode())
        bomb = gzip.compress(b" " * (MAX_BODY_BYTES + 1))
        assert len(bomb) < 5_000
        for body, encoding, status, words in (
            (bomb, "gzip", 413, f"larger than {MAX_BODY_BYTES} bytes once it is unpacked"),
            (gzip.compress(b"") * 150_000, "gzip", 413, f"larger than {MAX_BODY_BYTES} bytes"),
            (b"x" * (MAX_BODY_BYTES + 1), "identity", 413, f"larger than {MAX_BODY_BYTES} bytes"),
            (whole[:-9], "gzip", 400, "cut off"),
            (whole[:20] + b"\xff" * 8 + whole[28:], "gzip", 400, "not the gzip"),
            (whole + b"more", "gzip", 400, "not the gzip"),
            (b"{}", "gzip", 400, "not the gzip"),
            (whole, "br", 415, "'br' is not read"),
            (whole, "gzip, gzip", 415, "gzip, gzip"),
            (zlib.compress(b"{}"), "deflate", 415, "deflate"),
        ):
            answer = await packed(graph, "/v1/events", body, encoding)
            assert (answer.status_code, words in answer.json()["detail"]) == (status, True), answer.text
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["request_id"]
        exact = json.dumps([event()]).encode()
        exact += b" " * (MAX_BODY_BYTES - len(exact))
        assert (await packed(graph, "/v1/events", gzip.compress(exact))).json()["accepted"] == 1

    api(test)


@given(
    parts=st.lists(st.binary(max_size=400), max_size=4),
    cuts=st.lists(st.integers(0, 600), max_size=5),
    limit=st.integers(0, 900),
)
def test_gzip_is_unpacked_however_it_arrives(parts: list[bytes], cuts: list[int], limit: int) -> None:
    """Members and network chunks end where they like; more than the limit is refused, all else comes whole."""
    whole, sent = b"".join(parts), b"".join(gzip.compress(part) for part in parts)
    edges = sorted({0, len(sent), *(cut for cut in cuts if cut < len(sent))})
    body = Unpacked(limit, gzip=True)

    def read() -> bytes:
        for start, end in pairwise(edges):
            body.add(sent[start:end])
        return body.whole()

    if max(len(whole), len(sent)) <= limit:
        assert read() == whole
    else:
        with pytest.raises(Problem) as error:
            read()
        assert error.value.status == 413


@pytest.mark.parametrize(
    "kind", ["application/json; charset=utf-8", "Application/JSON;charset=UTF-8", "application/json"]
)
def test_media_types_may_have_parameters(api: Any, kind: str) -> None:
    async def test(graph: Running) -> None:
        for path, body in (
            ("/v1/recommendations", FEED),
            ("/v1/events", event()),
            ("/v1/items", {"item_id": "n", **NEW}),
        ):
            answer = await graph.client.post(path, content=json.dumps(body), headers={"Content-Type": kind})
            assert answer.status_code == 200, answer.text
        assert (
            await graph.client.put("/v1/items/n", content=json.dumps(NEW), headers={"Content-Type": kind})
        ).is_success
        for lines in ("application/x-ndjson;charset=utf-8", "application/ndjson", "Application/JSONL; x=1"):
            body = "\n".join(json.dumps(event(f"u{n}")) for n in range(3))
            answer = await graph.client.post("/v1/events", content=body, headers={"Content-Type": lines})
            assert answer.json()["accepted"] == 3, answer.text
        answer = await graph.client.post(
            "/v1/rank", content=b"<a/>", headers={"Content-Type": "text/xml; charset=utf-8"}
        )
        assert answer.status_code == 415

    api(test)


# ---- the OpenAPI document --------------------------------------------------------------------------------------------


def operations(document: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{method.upper()} {path}", operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


def example_of(content: dict[str, Any], document: dict[str, Any]) -> Any:
    """What the document gives as an example of a body or an answer."""
    schema = content["schema"]
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    found = content.get("example", schema.get("examples", [None])[0])
    assert found is not None, content
    return found


def check(value: Any, content: dict[str, Any], document: dict[str, Any]) -> None:
    Draft202012Validator({**content["schema"], "components": document["components"]}).validate(value)


def test_every_body_and_answer_has_a_schema_that_its_example_keeps(api: Any) -> None:
    async def test(graph: Running) -> None:
        document = build_api(graph.service).openapi()
        names = [name for name, _ in operations(document)]
        assert len(names) >= 20
        for name, operation in operations(document):
            contents = [answer["content"] for status, answer in operation["responses"].items() if status == "200"]
            contents += [operation["requestBody"]["content"]] if "requestBody" in operation else []
            assert contents or operation["responses"].keys() >= {"204"}, name
            for content in contents:
                assert content["application/json"]["schema"], name
                check(example_of(content["application/json"], document), content["application/json"], document)
                if lines := content.get("application/x-ndjson"):
                    check(json.loads(lines["example"]), content["application/json"], document)
            problem = operation["responses"]["4XX"]["content"]["application/problem+json"]
            check(example_of(problem, document), problem, document)
            assert "422" not in operation["responses"], "one form of errors"
        for name, operation in operations(document):
            keyed = {scheme for one in operation.get("security", []) for scheme in one}
            assert keyed == (set() if "/health/" in name else {"Bearer", "APIKeyHeader"}), name
        schemes = document["components"]["securitySchemes"]
        assert (schemes["Bearer"]["type"], schemes["Bearer"]["scheme"]) == ("http", "bearer")
        assert (schemes["APIKeyHeader"]["in"], schemes["APIKeyHeader"]["name"]) == ("header", "X-API-Key")

    api(test)


def test_answers_are_what_the_document_says(api: Any, models: Any) -> None:
    """One of each, with a key."""
    key = add_key(models[0], "ops", Role.ADMIN)
    item = {"item_id": "n", **NEW}
    calls: list[tuple[str, str, str, Any]] = [
        ("post", "/v1/events", "/v1/events", [event(), {}]),
        ("post", "/v1/items", "/v1/items", [item, {}]),
        ("put", "/v1/items/{item_id}", "/v1/items/n", NEW),
        ("patch", "/v1/items/{item_id}", "/v1/items/n", {"available": True}),
        ("get", "/v1/items/{item_id}", "/v1/items/n", None),
        ("get", "/v1/items", "/v1/items?query=film", None),
        ("get", "/v1/items/{item_id}/similar", "/v1/items/i1/similar", None),
        ("post", "/v1/recommendations", "/v1/recommendations", {**FEED, "explain": True, "fields": ["title", "year"]}),
        (
            "post",
            "/v1/rank",
            "/v1/rank",
            {"user_id": "u", "item_ids": ["i1", "x"], "explain": True, "fields": ["title"]},
        ),
        ("post", "/v1/explain", "/v1/explain", {"user_id": "ann", "item_ids": ["i1", "x"]}),
        ("put", "/v1/users/{user_id}", "/v1/users/ann", {}),
        ("get", "/v1/users/{user_id}", "/v1/users/ann", None),
        ("get", "/v1/users/{user_id}/sequence", "/v1/users/ann/sequence", None),
        ("post", "/v1/users/{user_id}:merge", "/v1/users/bob:merge", {"anonymous_id": "ann"}),
        ("get", "/v1/domain", "/v1/domain", None),
        ("get", "/v1/users:sample", "/v1/users:sample", None),
        ("get", "/v1/models", "/v1/models", None),
        ("post", "/v1/models/{version}:promote", "/v1/models/b:promote", None),
        ("get", "/health/live", "/health/live", None),
        ("get", "/health/ready", "/health/ready", None),
    ]

    async def test(graph: Running) -> None:
        document = build_api(graph.service).openapi()
        for method, path, url, body in calls:
            answer = await graph.client.request(method, url, json=body)
            assert answer.status_code == 200, answer.text
            check(
                answer.json(),
                document["paths"][path][method]["responses"]["200"]["content"]["application/json"],
                document,
            )
        refused = await graph.client.get("/v1/models", headers={"Authorization": "Bearer nope"})
        problem = document["paths"]["/v1/models"]["get"]["responses"]["4XX"]["content"]["application/problem+json"]
        check(refused.json(), problem, document)

    api(test, keys=True, key=key)
