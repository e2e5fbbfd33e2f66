"""With Ray: the data stages, a Ray Train run, and the Serve graph over real HTTP, on one small made-up world."""

import datetime
import json
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from ray import serve

from rayapp.cli.main import cli
from rayapp.contracts.presets import COUNTS
from rayapp.contracts.schema import EVENT_SCHEMA, bucket_of
from rayapp.importing.domains import BUILT_IN, load_domain
from rayapp.launch.graph import running_graph
from rayapp.launch.ports import free_port
from rayapp.loop.artifacts import Prepared
from rayapp.loop.first_import import import_once
from rayapp.registry.aliases import BASELINE, CHAMPION, promote, read_aliases
from rayapp.registry.models import load_model
from rayapp.root.catalogue import read_catalogue
from rayapp.root.logs import read_bucket, read_log
from rayapp.root.publish import log_manifest, read_manifest
from tests.conftest import RAYAPP, until

pytestmark = pytest.mark.cluster
SERVED = 400


def test_logs_hold_every_row_once_in_its_user_s_bucket(world: tuple[Path, Prepared]) -> None:
    root, _ = world
    raw = pq.read_table(root / "raw" / "events", partitioning=None)
    assert sorted(read_log(root, "events", ["event_id"])["event_id"].to_pylist()) == sorted(raw["event_id"].to_pylist())
    _, manifest = log_manifest(root / "events")
    for bucket in range(16):
        for table in read_bucket(root, "events", bucket, manifest, EVENT_SCHEMA):
            assert all(bucket_of(user, 16) == bucket for user in set(table["user_id"].to_pylist()))
    assert not import_once(root, load_domain("synthetic"), lambda: pytest.fail("imported twice"))


def test_windows_are_published_per_bucket_and_every_request_is_in_one(world: tuple[Path, Prepared]) -> None:
    root, prepared = world
    requests = 0
    for name in prepared.windows:
        directory = root / "windows" / name
        manifest = read_manifest(directory)
        seen: set[str] = set()
        for bucket in manifest["buckets"]:
            file = f"bucket={bucket['bucket']:04d}.parquet"
            histories = pq.read_table(directory / "histories" / file, partitioning=None)
            cut = pq.read_table(directory / "requests" / file, partitioning=None)
            users = histories["user_id"].to_pylist()
            assert len(users) == len(set(users))
            assert not seen & set(users), "a user lies in one bucket"
            seen |= set(users)
            assert bucket["requests"] == cut.num_rows
            assert (cut["start"].to_numpy() <= cut["end"].to_numpy()).all()
            requests += cut.num_rows
    assert requests == read_log(root, "requests", ["request_id"]).num_rows


def test_a_trained_model_is_complete_and_knows_its_descent(world: tuple[Path, Prepared]) -> None:
    root, prepared = world
    version = json.loads((root / "aliases" / "champion.json").read_text())["version"]
    directory = root / "models" / version
    assert {p.name for p in directory.iterdir()} == {
        "weights.safetensors",
        "config.json",
        "schema.json",
        "calibration.json",
        "train.jsonl",
        "training.svg",
        "metrics.json",
        "manifest.json",
    }
    manifest = read_manifest(directory)
    assert manifest["train_windows"] == list(prepared.train_windows)
    assert read_manifest(root / "item_tables" / manifest["item_table"])["until_ms"] <= prepared.validation_ms
    metrics = json.loads((directory / "metrics.json").read_text())
    assert set(metrics["heads"]) == set(prepared.domain.head_names)
    assert metrics["heads"]["save"]["auc"] > 0.55, "it learnt something about requests it had not seen"
    assert not (root / "runs" / version).exists(), "the run's files went with its end"
    load_model(root, version, prepared.domain)


@pytest.fixture(scope="module")
def client(world: tuple[Path, Prepared]) -> Iterator[httpx.Client]:
    """The running graph."""
    with running_graph(world[0], free_port()) as url, httpx.Client(base_url=url, timeout=30) as opened:
        yield opened
    serve.shutdown()  # its controller and proxy would take a tenth of a core from the tests that follow


def event(user_id: str, item_id: str, action: str = "save", **changes: Any) -> dict[str, Any]:
    return {
        "event_id": str(uuid.uuid4()),
        "user_id": user_id,
        "item_id": item_id,
        "action": action,
        "timestamp_ms": time.time_ns() // 1_000_000,
        **changes,
    }


def post_feed(client: httpx.Client, user_id: str, **more: Any) -> dict[str, Any]:
    answer = client.post("/v1/recommendations", json={"user_id": user_id, **more})
    assert answer.status_code == 200, answer.text
    assert {"store;dur", "candidates;dur", "ranker;dur", "total;dur"} <= {
        part.split("=")[0].strip() for part in answer.headers["Server-Timing"].split(",")
    }
    body: dict[str, Any] = answer.json()
    return body


def test_health_and_api_description(client: httpx.Client) -> None:
    assert client.get("/health/live").status_code == 200
    assert client.get("/health/ready").json()["status"] == "ready"
    assert client.get("/docs").status_code == 200
    page = client.get("/")
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert client.get("/", headers={"If-None-Match": page.headers["ETag"]}).status_code == 304
    paths = set(client.get("/openapi.json").json()["paths"])
    assert paths == {
        "/v1/recommendations",
        "/v1/explain",
        "/v1/rank",
        "/v1/events",
        "/v1/items",
        "/v1/items/{item_id}",
        "/v1/items/{item_id}/similar",
        "/v1/users/{user_id}",
        "/v1/users/{user_id}:merge",
        "/v1/users/{user_id}/sequence",
        "/v1/users:sample",
        "/v1/domain",
        "/v1/models",
        "/v1/models/{version}:promote",
        "/v1/models/{version}:rollback",
        "/health/live",
        "/health/ready",
    }


def test_an_unknown_user_gets_a_popular_feed_that_says_so(client: httpx.Client) -> None:
    feed = post_feed(client, "never-seen", num_results=7, explain=True)
    assert len(feed["items"]) == 7
    assert feed["fallback_reason"] == "unknown_user"
    assert feed["degraded"] is False
    assert feed["sequence"]["last_event_at"] is None
    assert {s for row in feed["items"] for s in row["sources"]} <= {"popular", "newest", "trending", "explore"}
    assert set(feed["items"][0]["probabilities"]) == {"save", "click", "hide"}
    scores = [row["score"] for row in feed["items"]]
    assert scores[0] == max(scores), "behind the best one diversity has a say"


def test_the_next_feed_has_seen_what_was_acknowledged(client: httpx.Client) -> None:
    user = f"live-{uuid.uuid4()}"
    for n, item in enumerate(("i1", "i2", "i3"), 1):
        assert client.post("/v1/events", json=event(user, item)).json()["accepted"] == 1
        time.sleep(0.002)  # the window is "before now", to the millisecond
        feed = post_feed(client, user)
        assert feed["sequence"]["length"] == n
        assert feed["fallback_reason"] is None
        assert item not in [row["item_id"] for row in feed["items"]]
    assert "nearest" in {s for row in feed["items"] for s in row["sources"]}
    stored = client.get(f"/v1/users/{user}/sequence").json()
    assert [e["item_id"] for e in stored["events"]] == ["i3", "i2", "i1"]
    assert stored["events"][0]["action"] == "save"


def test_actions_of_the_log_are_in_the_seeded_store(client: httpx.Client, world: tuple[Path, Prepared]) -> None:
    users = read_log(world[0], "events", ["user_id"])["user_id"].to_pylist()
    assert client.get(f"/v1/users/{users[0]}/sequence").json()["length"] > 0


def test_events_are_idempotent_and_good_ones_survive_bad_neighbours(client: httpx.Client) -> None:
    user = f"batch-{uuid.uuid4()}"
    good, other = event(user, "i1"), event(user, "i2")
    body = [
        good,
        event(user, "i3", action="nope"),
        {"user_id": user},
        event(user, "i4", timestamp_ms=1_700_000_000),
        other,
        good,
    ]
    answer = client.post("/v1/events", json=body)
    assert answer.status_code == 200
    assert answer.json()["accepted"] == 2
    assert answer.json()["duplicates"] == 1
    assert [(r["index"], r["field"]) for r in answer.json()["rejected"]] == [
        (1, "action"),
        (2, "item_id"),
        (3, "timestamp_ms"),
    ]
    assert client.post("/v1/events", json=good).json() == {"accepted": 0, "duplicates": 1, "rejected": []}
    lines = "\n".join([json.dumps(event(user, "i5")), "{oops", json.dumps(event(user, "i6"))])
    answer = client.post("/v1/events", content=lines, headers={"Content-Type": "application/x-ndjson"})
    assert answer.json()["accepted"] == 2
    assert answer.json()["rejected"][0]["index"] == 1
    assert client.get(f"/v1/users/{user}/sequence").json()["length"] == 4


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "names"),
    [
        ("POST", "/v1/events", b"{", 400, "JSON"),
        ("POST", "/v1/events", b'{"user_id": "u"}', 422, "item_id"),
        (
            "POST",
            "/v1/events",
            b'{"user_id":"u","item_id":"i","action":"save","timestamp_ms":1,"value":NaN}',
            422,
            "value",
        ),
        ("POST", "/v1/events", b" " * (2 * 1024 * 1024 + 1), 413, "2097152"),
        ("POST", "/v1/recommendations", b"{", 400, "JSON"),
        ("POST", "/v1/recommendations", b"{}", 422, "user_id"),
        ("POST", "/v1/recommendations", b'{"user_id": "u", "num_results": 0}', 422, "num_results"),
        ("POST", "/v1/recommendations", b'{"user_id": "u", "nonsense": 1}', 422, "nonsense"),
        ("POST", "/v1/recommendations", b'{"user_id": 7}', 422, "user_id"),
        ("POST", "/v1/recommendations", b'{"user_id": "a\\u0000b"}', 422, "user_id"),
        ("POST", "/v1/rank", b'{"user_id": "u", "item_ids": []}', 422, "item_ids"),
        ("POST", "/v1/rank", b'{"user_id": "u", "item_ids": ["a", "a"]}', 422, "item_ids"),
        ("POST", "/v1/rank", b'{"user_id": "u", "item_ids": ["i1"], "context": {"hour": 3}}', 422, "context.hour"),
        ("POST", "/v1/rank", b'{"user_id": "u", "item_ids": ["i1"], "context": {"device": 3}}', 422, "context.device"),
        ("POST", "/v1/rank", b'{"user_id": "u", "item_ids": ["i1"], "model": "nope"}', 404, "nope"),
        ("PUT", "/v1/items/x", b'{"colour": 1}', 422, "colour"),
        ("PUT", "/v1/items/x", b"[", 400, "JSON"),
        ("GET", "/v1/users/u/sequence?limit=0", b"", 422, "limit"),
        ("GET", "/v1/nowhere", b"", 404, "Not Found"),
        ("DELETE", "/v1/events", b"", 405, "Not Allowed"),
    ],
)
def test_every_error_is_a_problem_that_names_the_field(
    client: httpx.Client, method: str, path: str, content: bytes, status: int, names: str
) -> None:
    answer = client.request(method, path, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    body = answer.json()
    assert set(body) == {"type", "title", "status", "detail", "instance", "request_id", "errors"}
    assert names in body["detail"] + json.dumps(body["errors"])


def test_rank_keeps_the_caller_s_items_and_flags_unknown_ones(client: httpx.Client) -> None:
    ids = ["i5", "not-in-the-catalogue", "i7"]
    answer = client.post("/v1/rank", json={"user_id": "someone", "item_ids": ids}).json()
    assert {row["item_id"]: row["known"] for row in answer["items"]} == {
        "i5": True,
        "not-in-the-catalogue": False,
        "i7": True,
    }
    assert [row["rank"] for row in answer["items"]] == [1, 2, 3]


def test_the_sequence_moves_the_ranking_and_the_ranker_without_it_only_counts(client: httpx.Client) -> None:
    """Two new users do the same things, in opposite orders."""
    users, ids = [f"mover-{uuid.uuid4()}" for _ in range(2)], [f"i{n}" for n in range(100, 150)]

    def scores(user: str, model: str | None) -> np.ndarray:
        answer = client.post("/v1/rank", json={"user_id": user, "item_ids": ids, "model": model}).json()
        of_item = {row["item_id"]: row["score"] for row in answer["items"]}
        return np.array([of_item[item_id] for item_id in ids])

    before, plain_before = scores(users[0], None), scores(users[0], BASELINE)
    now_ms = time.time_ns() // 1_000_000
    for user, order in zip(users, (1, -1), strict=True):
        acts = [("save", "i0"), ("save", "i1"), ("click", "i2"), ("click", "i3"), ("hide", "i4")][::order]
        rows = [event(user, item, action, timestamp_ms=now_ms - 50 + n) for n, (action, item) in enumerate(acts)]
        client.post("/v1/events", json=rows)
    after, other = (scores(user, None) for user in users)
    plain_after, plain_other = (scores(user, BASELINE) for user in users)
    assert np.abs(before - after).max() > 1e-4
    assert np.abs(other - after).max() > 1e-4
    assert np.abs(plain_before - plain_after).max() > 1e-4
    np.testing.assert_allclose(plain_after, plain_other, atol=1e-5)


def test_a_new_item_can_be_recommended_within_seconds(client: httpx.Client) -> None:
    item_id = f"new-{uuid.uuid4().hex[:8]}"
    body = {"title": "Fresh", "topics": ["Travel"], "style": None, "quality": None}
    body["created_at_ms"] = time.time_ns() // 1_000_000
    assert client.put(f"/v1/items/{item_id}", json=body).status_code == 200
    shown = client.get(f"/v1/items/{item_id}").json()
    assert (shown["title"], shown["topics"], shown["available"]) == ("Fresh", ["Travel"], True)
    assert client.put(f"/v1/items/{item_id}", json={"available": False}).status_code == 422
    assert client.patch(f"/v1/items/{item_id}", json={"available": True}).json() == shown
    until(lambda: item_id in [row["item_id"] for row in post_feed(client, "never-seen", num_results=200)["items"]], 10)
    until(lambda: client.post("/v1/rank", json={"user_id": "u", "item_ids": [item_id]}).json()["items"][0]["known"], 10)


def test_an_id_with_a_slash_can_be_read_and_erased(client: httpx.Client) -> None:
    assert client.post("/v1/events", json=event("team/ann", "i1")).json()["accepted"] == 1
    assert client.get("/v1/users/team%2Fann/sequence").json()["length"] == 1
    assert client.delete("/v1/users/team%2Fann").status_code == 204
    assert client.get("/v1/users/team%2Fann/sequence").json()["length"] == 0
    assert client.get("/v1/users/team/ann/sequence").status_code == 404


def test_promotion_is_picked_up_without_a_restart_and_a_broken_model_is_not(
    client: httpx.Client, world: tuple[Path, Prepared]
) -> None:
    root, _ = world
    answer = client.get("/v1/models").json()
    old, new = answer["aliases"][CHAMPION], answer["aliases"][BASELINE]
    assert answer["serving"] == old
    assert {row["version"] for row in answer["models"]} == {old, new, answer["aliases"][COUNTS]}
    promote(root, CHAMPION, new)
    until(lambda: post_feed(client, "u")["model_version"] == new, 10)
    promote(root, CHAMPION, old)
    until(lambda: post_feed(client, "u")["model_version"] == old, 10)
    broken = root / "models" / "broken"
    broken.mkdir()
    (broken / "manifest.json").write_text('{"format": 1}')
    try:
        promote(root, CHAMPION, "broken")
        until(lambda: client.get("/v1/models").json()["aliases"][CHAMPION] == "broken", 10)
        for _ in range(20):
            assert post_feed(client, "u")["model_version"] == old
    finally:
        promote(root, CHAMPION, old)


def test_the_context_of_a_request_and_fresh_statistics_reach_the_ranker(
    client: httpx.Client, world: tuple[Path, Prepared]
) -> None:
    root, prepared = world
    ids = [item["item_id"] for item in read_catalogue(root).slice(0, 20).to_pylist()]
    scores = []
    for device in ("phone", "desktop", "phone"):
        body = {"user_id": "u1", "item_ids": ids, "context": {"device": [device]}}
        answer = client.post("/v1/rank", json=body).json()
        scores.append({item["item_id"]: item["score"] for item in answer["items"]})
    # A moment later the gaps to now are longer by as much.
    assert scores[0] == pytest.approx(scores[2], abs=1e-5)
    assert scores[0] != pytest.approx(scores[1], abs=1e-5)
    at = datetime.datetime.fromisoformat(answer["statistics_at"])
    step_ms = prepared.domain.statistics_step_ms
    assert at.timestamp() * 1000 % step_ms == 0
    assert datetime.datetime.now(datetime.UTC) - at < datetime.timedelta(milliseconds=2 * step_ms)


def said(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180, check=False)


def test_what_was_served_is_scored_again_from_the_log(
    client: httpx.Client, world: tuple[Path, Prepared], on_our_ray: dict[str, str], tmp_path: Path
) -> None:
    """Live requests, two thirds of the events late, the champion moved midway."""
    root, _ = world
    rng, since_ms = np.random.default_rng(3), time.time_ns() // 1_000_000
    aliases = read_aliases(root)  # the graph may lag behind the test before
    versions, asked = set(), set()
    try:
        for n in range(SERVED):
            if n == SERVED // 2:
                promote(root, CHAMPION, aliases[BASELINE])
            user, late_ms = f"again-{n % 12}", int(rng.integers(3_600_000)) if n % 3 else 0
            at_ms = time.time_ns() // 1_000_000 - late_ms
            new = event(user, f"i{rng.integers(200)}", ("save", "click", "hide")[n % 3], timestamp_ms=at_ms)
            assert client.post("/v1/events", json=new).json()["accepted"] == 1
            feed = post_feed(client, user, num_results=10)
            versions.add(feed["model_version"])
            asked.add(feed["request_id"])
    finally:
        promote(root, CHAMPION, aliases[CHAMPION])
    assert versions == {aliases[CHAMPION], aliases[BASELINE]}

    def logged() -> bool:
        assert CliRunner().invoke(cli, ["export", "--root", str(root)]).exit_code == 0
        return asked <= set(read_log(root, "requests", ["request_id"])["request_id"].to_pylist())

    until(logged, 30)
    since = datetime.datetime.fromtimestamp(since_ms / 1000, datetime.UTC).isoformat()
    command = [RAYAPP, "batch-score", "--root", str(root), "--requests", "--since", since, "--strict", "--json"]
    done = said([*command, "--out", str(tmp_path / "audit")], on_our_ray)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["compared"] == told["hashes"] == told["equal_hashes"] == SERVED
    assert told["max_difference"] < 1e-5
    words = [RAYAPP, "parity", "--root", str(root), "--since", since, "--json"]
    parity = json.loads(said(words, on_our_ray).stdout)
    assert parity["equal"] == parity["compared"] == SERVED
    assert parity["statistics"]["equal"] == parity["statistics"]["compared"] == SERVED


def test_models_are_compared_on_a_window(world: tuple[Path, Prepared], tmp_path: Path) -> None:
    root, prepared = world
    out = tmp_path / "compared.md"
    names = [CHAMPION, BASELINE, COUNTS, "popularity"]
    done = CliRunner().invoke(
        cli, ["evaluate", "--root", str(root), *names, "--head", "save", "--json", "--write", str(out)]
    )
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["window"] == prepared.test_window
    champion = next(r for r in result["rows"] if (r["model"], r["metric"], r["segment"]) == ("champion", "auc", "all"))
    manifest = json.loads((root / "aliases" / "champion.json").read_text())
    heads = json.loads((root / "models" / manifest["version"] / "metrics.json").read_text())["heads"]
    assert champion["estimate"][0] == pytest.approx(heads["save"]["auc"], abs=1e-5), "as it was when it was published"
    baseline = next(r for r in result["rows"] if (r["model"], r["metric"], r["segment"]) == (BASELINE, "auc", "all"))
    difference = baseline["estimate"][0] - champion["estimate"][0]
    assert baseline["differences"][CHAMPION][0] == pytest.approx(difference, abs=1e-5)
    assert "| champion |" in out.read_text()
    assert out.with_suffix(".svg").exists()


def test_a_changed_utility_and_an_appended_action_are_followed_within_seconds(
    client: httpx.Client, world: tuple[Path, Prepared], tmp_path: Path
) -> None:
    """The last test of this graph: its domain is another one from now on."""
    root, _ = world
    rank = {"user_id": "u-domain", "item_ids": ["i1", "i2", "i3"], "explain": True}

    def scored_by(save: float) -> bool:
        (first, *_) = client.post("/v1/rank", json=rank).json()["items"]
        utilities = {"save": save, "click": 0.2, "hide": -1.0}
        return abs(first["score"] - sum(utilities[head] * p for head, p in first["probabilities"].items())) < 1e-4

    def shared() -> bool:
        return client.post("/v1/events", json=event("u-domain", "i1", "share")).status_code == 200

    assert scored_by(1.0)
    assert not shared()
    file = tmp_path / "domain.toml"
    text = BUILT_IN["synthetic"].read_text().replace('name = "save"\nutility = 1.0', 'name = "save"\nutility = 7.0')
    file.write_text(text + '\n[[actions]]\nname = "share"\nkind = "positive"\n')
    done = CliRunner().invoke(cli, ["domain", "apply", "--root", str(root), str(file)])
    assert "2 changes made" in done.output, done.exception
    until(lambda: scored_by(7.0), 10)
    until(shared, 10)
    newest = client.get("/v1/users/u-domain/sequence").json()["events"][0]
    assert newest["action"] == "share"
    feed = post_feed(client, "u-domain", num_results=5)
    assert not feed["degraded"]
    assert feed["sequence"]["length"] == 1
    assert "i1" not in [item["item_id"] for item in feed["items"]]
