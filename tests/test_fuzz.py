"""Nonsense over real HTTP: no answer is a server error, and no good event is lost beside a bad one.

`RAYAPP_FUZZ_EXAMPLES=700 pytest tests/test_fuzz.py` sends over 20,000 requests; the suite sends 2,000.
"""

import asyncio
import contextlib
import gzip
import json
import os
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import response_schema_conformance

from deployments.ingress import build_api
from rayapp.contracts.config import Domain
from rayapp.launch.ports import free_port
from rayapp.serving.events import NDJSON
from tests.api_in_process import running
from tests.tiny_models import publish_models


@schemathesis.serializer(NDJSON)
def lines(_: Any, value: Any) -> bytes:
    """A body of NDJSON, which Schemathesis knows as a text."""
    return str(value).encode("utf-8", "surrogatepass")


EXAMPLES = int(os.environ.get("RAYAPP_FUZZ_EXAMPLES", "60"))
FUZZ = settings(
    max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=False
)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, domain: Domain) -> Iterator[str]:
    """A real server on loopback, its stages and its store in this process."""
    root = tmp_path_factory.mktemp("fuzz")
    publish_models(root, domain)
    port, stop = free_port(), threading.Event()

    async def serve() -> None:
        async with running(root, domain) as graph:
            server = uvicorn.Server(uvicorn.Config(build_api(graph.service), port=port, log_level="critical"))
            task = asyncio.create_task(server.serve())
            await asyncio.to_thread(stop.wait)
            server.should_exit = True
            await task

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    address = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 30
    while True:
        try:
            httpx.get(f"{address}/health/live")
            break
        except httpx.ConnectError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    yield address
    stop.set()
    thread.join()


@pytest.mark.slow
def test_no_request_that_the_api_describes_or_forbids_is_a_server_error(url: str) -> None:
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    asked: dict[str, int] = {}
    for found in schema.get_all_operations():
        assert isinstance(found, Ok)
        operation = found.ok()
        for mode in schemathesis.GenerationMode:

            @FUZZ
            @given(case=operation.as_strategy(generation_mode=mode))
            def check(case: Any) -> None:
                answer = case.call(base_url=url)
                name = f"{case.method} {case.path}"
                asked[name] = asked.get(name, 0) + 1
                assert answer.status_code < 500, (case.path, case.body, answer.status_code, answer.content[:500])
                if answer.status_code >= 400:
                    assert answer.headers["content-type"] == ["application/problem+json"]
                else:
                    case.validate_response(answer, checks=[response_schema_conformance])

            with contextlib.suppress(Unsatisfiable):  # a request without parts can't be made wrong
                check()
    assert len(asked) >= 20, asked
    items = ("POST /v1/items", "GET /v1/items", "DELETE /v1/items/{item_id}", "GET /v1/items/{item_id}/similar")
    assert set(items) <= set(asked)
    print(f"{sum(asked.values()):,} requests")  # noqa: T201


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=5),
    max_leaves=8,
)
fields = ("event_id", "user_id", "item_id", "action", "timestamp_ms", "value", "position", "request_id", "surface")
spoiled = st.dictionaries(st.sampled_from(fields), junk, max_size=9)


def good_event(user_id: str, number: int) -> dict[str, Any]:
    now_ms = time.time_ns() // 1_000_000
    event = {"event_id": str(uuid.uuid4()), "user_id": user_id, "item_id": f"i{number % 30}", "action": "save"}
    return {**event, "timestamp_ms": now_ms - number}


@pytest.mark.slow
def test_no_good_event_is_lost_beside_bad_ones(url: str) -> None:
    client = httpx.Client(base_url=url, timeout=30)

    @FUZZ
    @given(bad=st.lists(junk | spoiled, max_size=12), places=st.lists(st.integers(0, 12), min_size=1, max_size=8))
    def check(bad: list[Any], places: list[int]) -> None:
        user = f"fuzz-{uuid.uuid4()}"
        body: list[Any] = list(bad)
        sent = [good_event(user, number) for number in range(len(places))]
        for event, place in zip(sent, places, strict=True):
            body.insert(place, event)
        text = json.dumps(body)  # NaN and lone surrogates are written as Python does
        answer = client.post("/v1/events", content=text.encode("utf-8", "surrogatepass"))
        assert answer.status_code == 200, answer.text
        result = answer.json()
        assert result["accepted"] >= len(sent)
        mine = [n for n, value in enumerate(body) if isinstance(value, dict) and value.get("user_id") == user]
        assert not {rejection["index"] for rejection in result["rejected"]} & set(mine)
        stored = client.get(f"/v1/users/{user}/sequence").json()["events"]
        assert [e["timestamp_ms"] for e in stored] == sorted((e["timestamp_ms"] for e in sent), reverse=True)
        assert client.post("/v1/events", json=sent).json()["duplicates"] == len(sent)

    check()
    client.close()


@pytest.mark.slow
def test_no_good_item_is_lost_beside_bad_ones(url: str) -> None:
    client = httpx.Client(base_url=url, timeout=30)
    names = ("item_id", "title", "genres", "year", "available", "created_at_ms", "colour")
    bad_item = st.dictionaries(st.sampled_from(names), junk, max_size=7)

    @FUZZ
    @given(
        bad=st.lists(junk | bad_item, max_size=12),
        places=st.lists(st.integers(0, 12), min_size=1, max_size=6),
        packed=st.booleans(),
        by_line=st.booleans(),
    )
    def check(bad: list[Any], places: list[int], packed: bool, by_line: bool) -> None:
        body: list[Any] = list(bad)
        sent = [{"item_id": f"fuzz-{uuid.uuid4()}", "title": "t", "genres": [], "year": n} for n in range(len(places))]
        for whole, place in zip(sent, places, strict=True):
            body.insert(place, whole)
        text = "\n".join(map(json.dumps, body)) if by_line else json.dumps(body)
        content, headers = text.encode(), {"Content-Type": NDJSON if by_line else "application/json"}
        if packed:
            content, headers["Content-Encoding"] = gzip.compress(content), "gzip"
        answer = client.post("/v1/items", content=content, headers=headers)
        assert answer.status_code == 200, answer.text
        result = answer.json()
        assert result["accepted"] + len(result["rejected"]) == len(body)
        mine = {place for place, value in enumerate(body) if value in sent}
        assert not {rejection["index"] for rejection in result["rejected"]} & mine
        for whole in sent:
            assert client.get(f"/v1/items/{whole['item_id']}").json()["year"] == whole["year"]

    check()
    client.close()


@pytest.mark.slow
@given(
    st.binary(max_size=200),
    st.sampled_from(["application/json", "application/x-ndjson", "application/json; charset=utf-8", "text/plain", ""]),
    st.sampled_from(["", "gzip", "identity", "br", "gzip, gzip"]),
)
@settings(max_examples=60, deadline=None, database=None)
def test_any_bytes_are_answered(url: str, body: bytes, kind: str, encoding: str) -> None:
    headers = {"Content-Type": kind, "Content-Encoding": encoding}
    for path in ("/v1/events", "/v1/items", "/v1/recommendations", "/v1/rank"):
        answer = httpx.post(f"{url}{path}", content=body, headers=headers)
        assert answer.status_code < 500, answer.text


def test_a_body_that_is_cut_off_and_a_client_that_leaves(url: str) -> None:
    import socket

    host, port = url.removeprefix("http://").split(":")
    for text in (
        "POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n[{",
        "POST /v1/recommendations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 20\r\n\r\n",
        "POST /v1/events HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc",
    ):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(text.encode())
    assert httpx.get(f"{url}/health/live").status_code == 200
    assert httpx.get(f"{url}/health/ready").status_code == 200
