"""`rayapp serve` as a user starts it, with HAProxy: who can reach what, clients that go away, an end without leftovers;
and a short run of the faults."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from benchmarks.http_load import FEED, HttpAnswer, ask, session
from benchmarks.processes import CHECKOUT, replica_pids, tree, wait_until_ready
from benchmarks.served import MODELS, publish_untrained
from rayapp.launch.ports import free_port
from rayapp.loop.artifacts import Prepared
from rayapp.registry.aliases import BASELINE, CHAMPION, promote, read_aliases
from rayapp.root.places import ITEM_TABLES
from rayapp.serving.keys import Role, add_key
from tests.conftest import RAYAPP

pytestmark = pytest.mark.cluster
LISTENS = "0A"
WRONG_KEY = "rayapp_client_wrong-but-secret-all-the-same"
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


@dataclass
class Served:
    url: str
    port: int
    process: subprocess.Popen[bytes]
    key: str
    root: Path
    log: Path
    ray_logs: Path

    def feed(self) -> httpx.Response:
        return httpx.post(f"{self.url}{FEED}", json={"user_id": "u1"}, headers=self.headers, timeout=30)

    @property
    def headers(self) -> dict[str, str]:
        return {"X-API-Key": self.key}


@pytest.fixture(scope="module")
def served(world: tuple[Path, Prepared]) -> Iterator[Served]:
    """The default profile, and callers need keys."""
    port, key = free_port(), add_key(world[0], "test", Role.CLIENT)
    command = [RAYAPP, "serve", "--root", str(world[0]), "--port", str(port), "--keys"]
    log = world[0].parent / "serve.log"
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            wait_until_ready(f"http://127.0.0.1:{port}/health/ready")
            yield Served(f"http://127.0.0.1:{port}", port, process, key, world[0], log, ray_logs_of(process.pid))
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)


def listeners(pid: int) -> set[tuple[str, str, int]]:
    """`(process, address, port)` of every TCP socket on which `pid` or a descendant of it listens."""
    found: dict[str, tuple[str, int]] = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            address, port = local.split(":")
            if state == LISTENS:
                found[rest[5]] = (address, int(port, 16))
    sockets = set()
    for process in (Path(f"/proc/{below}") for below in tree(pid)):
        with contextlib.suppress(OSError):
            name = (process / "comm").read_text().strip()
            for descriptor in (process / "fd").iterdir():
                inode = os.readlink(descriptor).removeprefix("socket:[").removesuffix("]")
                if inode in found:
                    sockets.add((name, *found[inode]))
    return sockets


def is_ours(address: str, port: int) -> bool:
    """Whether the port answers with the API, or with HAProxy's own page. (Ray's exporter has one page for all.)"""
    for path, words in (("/health/live", '"status":"live"'), ("/stats", "Statistics Report for HAProxy")):
        with contextlib.suppress(httpx.HTTPError):
            if words in httpx.get(f"http://{address}:{port}{path}", timeout=2).text:
                return True
    return False


def test_a_feed_comes_through_haproxy_and_nothing_of_ours_can_be_reached_from_outside(served: Served) -> None:
    answer = served.feed()
    assert answer.status_code == 200
    assert answer.json()["degraded"] is False
    sockets = listeners(served.process.pid)
    haproxy = {row for row in sockets if row[0] == "haproxy"}
    assert served.port in {port for _, _, port in haproxy}
    assert len(haproxy) == 3, "the API, metrics, statistics"
    assert {address for _, address, _ in haproxy} <= LOOPBACK
    # What listens on every interface is Ray's own: gRPC behind Ray's token, and its exporters of metrics.
    outside = socket.gethostbyname(socket.gethostname())
    for name, address, port in sockets:
        if address not in LOOPBACK:
            assert not is_ours(outside, port), f"{name} answers on {address}:{port}"
    assert is_ours("127.0.0.1", served.port)


def test_an_id_with_a_slash_comes_through_haproxy_as_it_is(served: Served) -> None:
    answer = httpx.get(f"{served.url}/v1/users/team%2Fann/sequence", headers=served.headers, timeout=30)
    assert answer.json()["user_id"] == "team/ann"


def test_a_client_that_goes_away_or_sends_half_a_body_harms_nobody(served: Served) -> None:
    def request(path: str, body: bytes, announced: int) -> bytes:
        lines = (f"POST {path} HTTP/1.1", "Host: x", f"X-API-Key: {served.key}", "Content-Type: application/json")
        return "\r\n".join((*lines, f"Content-Length: {announced}", "", "")).encode() + body

    whole = b'{"user_id": "u1", "num_candidates": 200}'
    half = request("/v1/events", b'[{"user_id":', 5000)
    for sent in (half, request(FEED, whole, len(whole)), half[:40]):
        for _ in range(10):
            with socket.create_connection(("127.0.0.1", served.port), timeout=5) as connection:
                connection.sendall(sent)
    for _ in range(20):
        answer = served.feed()
        assert answer.status_code == 200
        assert answer.json()["degraded"] is False


def test_what_comes_beyond_the_queue_is_told_to_come_again(served: Served) -> None:
    async def burst() -> list[HttpAnswer]:
        async with session(served.url, served.headers) as client:
            body = {"user_id": "u1", "num_candidates": 200}
            return [answer for answer, _ in await asyncio.gather(*(ask(client, FEED, body) for _ in range(300)))]

    answers = asyncio.run(burst())
    assert {a.status for a in answers} == {200, 429}
    assert all(a.retry_after for a in answers if a.status == 429)


def test_a_killed_ranker_costs_no_answer(served: Served) -> None:
    (ranker, *_) = replica_pids(served.process.pid, "Ranker")
    os.kill(ranker, signal.SIGKILL)
    deadline = time.monotonic() + 90
    whole = 0
    while whole < 5:
        answer = served.feed()
        assert answer.status_code == 200
        assert answer.json()["items"]
        whole = 0 if answer.json()["degraded"] else whole + 1
        assert time.monotonic() < deadline, "the ranker did not come back"
    assert ranker not in replica_pids(served.process.pid, "Ranker")


@pytest.mark.extended
def test_a_second_graph_on_this_machine_answers_on_its_own_port_alone(served: Served, tmp_path: Path) -> None:
    """From its start, and while its only ingress is gone: nobody else answers there, or takes its events."""
    root, port, user = tmp_path / "other", free_port(), "of-the-other-graph"
    shutil.copytree(served.root, root)
    own = read_aliases(root)[BASELINE]
    promote(root, CHAMPION, own)
    url, seen, after_kill = f"http://127.0.0.1:{port}", set[tuple[int, str | None]](), set[tuple[int, str | None]]()
    command, log = [RAYAPP, "serve", "--root", str(root), "--port", str(port)], tmp_path / "log"
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            deadline = time.monotonic() + 120
            killed = False
            while True:
                assert time.monotonic() < deadline, seen
                time.sleep(0.05)  # a client that never rests would keep the graph from starting
                with contextlib.suppress(httpx.TransportError):
                    models = httpx.get(f"{url}/v1/models", timeout=60)
                    who = models.status_code, models.json()["serving"] if models.status_code == 200 else None
                    (after_kill if killed else seen).add(who)
                    event = {
                        "user_id": user,
                        "item_id": "i1",
                        "action": "save",
                        "timestamp_ms": time.time_ns() // 10**6,
                    }
                    taken = httpx.post(f"{url}/v1/events", json=event, timeout=60).status_code == 200
                    if not taken or models.status_code != 200:
                        continue
                    if killed:
                        break
                    (ingress,) = replica_pids(process.pid, "Ingress")
                    os.kill(ingress, signal.SIGKILL)
                    killed = True
            seen |= after_kill
            assert {status for status, _ in seen} <= {200, 429, 503}, seen
            assert {serving for status, serving in seen if status == 200} == {own}
            assert (503, None) in after_kill, "at once, and not when the next ingress is up"
            answer = httpx.get(f"{served.url}/v1/users/{user}/sequence", headers=served.headers, timeout=30)
            assert answer.json()["length"] == 0, "the first graph took an event of the second one's clients"
            assert httpx.get(f"{url}/v1/users/{user}/sequence", timeout=30).json()["length"] > 0
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)


def test_prometheus_reads_what_the_graph_did(served: Served) -> None:
    url = re.search(r"Prometheus: (http://\S+/metrics)", served.log.read_text())
    assert url is not None, "the start says where"
    now_ms = time.time_ns() // 1_000_000
    event = {"event_id": "seen", "user_id": "u1", "item_id": "i1", "action": "save", "timestamp_ms": now_ms}
    assert httpx.post(f"{served.url}/v1/events", json=event, headers=served.headers, timeout=30).status_code == 200
    assert served.feed().status_code == 200
    names = (
        "rayapp_answers_total",
        "rayapp_stage_ms_bucket",
        "rayapp_probability_bucket",
        "rayapp_freshness_ms_bucket",
    )
    missing = set(names)
    deadline = time.monotonic() + 60  # Ray hands its metrics on every ten seconds
    while missing:
        assert time.monotonic() < deadline, f"not exported: {missing}"
        page = httpx.get(url[1], timeout=10).text
        missing = {name for name in names if f"ray_{name}{{" not in page}
        time.sleep(0.5)
    version = read_aliases(served.root)[CHAMPION]
    answers = [line for line in page.splitlines() if line.startswith("ray_rayapp_answers_total{")]
    assert any(f'model_version="{version}"' in line and 'reason="none"' in line for line in answers)


def test_a_wrong_key_opens_nothing_whatever_the_request(served: Served) -> None:
    """A right key and a wrong one, in both headers, also with requests that fail; they are looked for in logs later."""
    for key in (served.key, WRONG_KEY):
        for headers in ({"X-API-Key": key}, {"Authorization": f"Bearer {key}"}):
            for body in (b'{"user_id": "u1"}', b"{", b'{"user_id": 7}'):
                status = httpx.post(f"{served.url}{FEED}", content=body, headers=headers, timeout=30).status_code
                assert status == 401 if key == WRONG_KEY else status in (200, 400, 415, 422)


def ray_logs_of(pid: int) -> Path:
    """The logs of the Ray that a process started, from its raylet's command line."""
    for below in tree(pid):
        with contextlib.suppress(OSError):
            for word in Path(f"/proc/{below}/cmdline").read_text().split("\0"):
                if word.startswith(("--session_dir=", "--session-dir=")):
                    return Path(word.partition("=")[2]) / "logs"
    raise AssertionError("no raylet")


def test_the_end_leaves_nothing_behind(served: Served) -> None:
    """It stops the graph, for the rest of the module too."""
    pids = [pid for name in ("Ingress", "Ranker") for pid in replica_pids(served.process.pid, name)]
    assert pids
    served.process.send_signal(signal.SIGINT)
    assert served.process.wait(timeout=60) == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", served.port), timeout=2)


def test_no_key_was_written_to_a_log(served: Served) -> None:
    """Behind the end, since replicas keep lines back until then."""
    files = [path for path in (*served.ray_logs.rglob("*"), served.log) if path.is_file()]
    assert len(files) > 10, "Ray's logs are there"
    for path in files:
        text = path.read_bytes()
        assert served.key.encode() not in text, path
        assert WRONG_KEY.encode() not in text, path


@pytest.mark.extended
def test_answers_keep_coming_when_things_break(world: tuple[Path, Prepared]) -> None:
    root, prepared = world
    (table,) = (path.name for path in (root / ITEM_TABLES).iterdir())
    for seed, version in enumerate(MODELS):
        publish_untrained(root, prepared.domain, "nano", table, version, seed)
    command = [sys.executable, "-m", "benchmarks", "faults"]
    command += ["--root", str(root), "--preset", "nano", "--seconds", "40", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=CHECKOUT, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["http_5xx_feed"] == 0, result["phases"]
    assert result["lost_events"] == 0
    assert result["events_acknowledged"] > 50
    assert result["mixed_answers"] == 0
    assert result["scores_checked"] > 50
    assert result["swap_failures"] == 0, result["phases"]
