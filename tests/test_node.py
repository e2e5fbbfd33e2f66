"""Ray on a node of a cluster: it is started again when it ends, and replicas are spread again when they are uneven."""

import http.server
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from rayapp.launch import node, spot
from rayapp.launch.ports import GraphError
from rayapp.launch.spread import MARK, marked, placed, uneven
from tests.conftest import until
from tests.redis_server import free_port, start, stop

SUPERVISE = """
import os, sys
from rayapp.launch.node import supervise
log = sys.argv[1]
ends = f'echo start $PROFILE >> {log}; [ $(grep -c start {log}) -gt 2 ] && exec sleep 600; exit 7'
supervise(["sh", "-c", ends], ["sh", "-c", f"echo clean >> {log}"], {**os.environ, "PROFILE": "throughput"})
"""


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    log = tmp_path / "log"
    log.touch()
    command = [sys.executable, "-c", SUPERVISE, str(log)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    yield process, log
    process.kill()
    process.communicate()


@pytest.mark.slow
def test_what_ends_is_cleaned_up_and_started_again_until_the_supervisor_is_told(
    supervised: tuple[subprocess.Popen[str], Path],
) -> None:
    process, log = supervised
    until(lambda: log.read_text().count("start") == 3, 30)
    process.send_signal(signal.SIGTERM)
    words, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    assert log.read_text().split("\n")[:-1] == ["clean", "start throughput"] * 3 + ["clean"]
    assert words.count("Ray ended after 0 s with exit code 7; again in") == 2, "it says so, and pauses longer each time"
    assert "again in 2 s" in words
    assert "again in 4 s" in words


class Metadata(http.server.BaseHTTPRequestHandler):
    """What AWS tells a machine about itself, version 2 of the protocol: first a token, then the question."""

    going = False

    def do_PUT(self) -> None:
        self._answer(200 if "X-aws-ec2-metadata-token-ttl-seconds" in self.headers else 400, b"token")

    def do_GET(self) -> None:
        if self.headers["X-aws-ec2-metadata-token"] != "token":
            self._answer(401, b"")
        elif self.path == "/latest/meta-data/spot/instance-action" and Metadata.going:
            self._answer(200, b'{"action": "terminate", "time": "2026-11-30T10:02:00Z"}')
        else:
            self._answer(404, b"")

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        pass


def test_a_spot_machine_is_drained_when_aws_gives_notice_and_not_before(tmp_path: Path) -> None:
    assert spot.notice("http://127.0.0.1:1") is None, "no machine of AWS"
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url, ended, Metadata.going = f"http://127.0.0.1:{server.server_port}", threading.Event(), False
        assert spot.notice(url) is None
        log = tmp_path / "drained"
        drain = ["sh", "-c", f"echo drain >> {log}; [ $(wc -l < {log}) -gt 1 ]"]  # Ray refuses the first one
        watch = threading.Thread(target=spot.drain_on_notice, args=(drain, {}, ended, url, 0.02))
        watch.start()
        Metadata.going = True
        watch.join(20)
        assert not watch.is_alive()
        assert log.read_text() == "drain\ndrain\n"
        server.shutdown()


def test_how_ray_was_started_is_kept_for_its_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GraphError, match="rayapp ray start"):
        node.read(tmp_path)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "t")
    made = node.node_of(["--head"], {"RAY_AUTH_TOKEN": "t", "RAYAPP_STORE": "redis://:secret@h/0"})
    node._write(tmp_path / node.NODE_FILE, '{"arguments": [], "environment": {}, "installed": ""}')
    assert node.read(tmp_path) == node.Node((), {}, "")
    assert (tmp_path / node.NODE_FILE).stat().st_mode & 0o777 == 0o600
    assert made.environment["RAYAPP_STORE"] == "redis://:secret@h/0"
    assert made.installed == node.node_of(["--head"], {"RAY_AUTH_TOKEN": "t"}).installed


def test_a_process_that_only_has_the_number_is_no_supervisor(tmp_path: Path) -> None:
    assert node.supervisor(tmp_path) is None
    for text in ("1", "none", "1 7", f"{os.getpid()} 7", "4194304 7"):
        (tmp_path / node.PID_FILE).write_text(text)
        assert node.supervisor(tmp_path) is None, text
    (tmp_path / node.PID_FILE).write_text(f"{os.getpid()} {node._began(os.getpid())}")
    assert node.supervisor(tmp_path) == os.getpid()
    with pytest.raises(GraphError, match="supervised here already"):
        node.run(node.Node((), {}, ""), tmp_path)


def test_the_cluster_s_state_is_forgotten_and_nothing_else(tmp_path: Path) -> None:
    port = free_port()
    server = start(tmp_path, port)
    try:
        with redis.Redis(port=port) as client:
            client.hset("RAYrayapp@ACTOR", "a", "1")
            client.hset("RAYother@ACTOR", "a", "1")
            settings = {"RAY_REDIS_ADDRESS": f"127.0.0.1:{port}", "RAY_external_storage_namespace": "rayapp"}
            node.forget(settings)
            assert client.keys("*") == [b"RAYother@ACTOR"]
    finally:
        stop(server)
    with pytest.raises(GraphError, match="names no Redis"):
        node.forget({})
    with pytest.raises(GraphError, match="HOST:PORT"):
        node.forget({"RAY_REDIS_ADDRESS": "nowhere"})


@pytest.mark.parametrize(
    ("nodes", "replicas", "is_uneven"),
    [
        (["a", "b"], ["a", "b"], False),
        (["a", "b"], ["a", "a"], True),
        (["a", "b"], ["a", "a", "b"], False),
        (["a", "b"], ["a", "a", "a", "b"], True),
        (["a"], ["a", "a"], False),
        (["a", "b", "c"], ["a", "b"], False),
        (["a", "b"], [], False),
    ],
)
def test_uneven(nodes: list[str], replicas: list[str], is_uneven: bool) -> None:
    assert (uneven({("rayapp", "Ranker"): replicas}, nodes) != []) is is_uneven


def test_a_deployment_is_replaced_by_a_mark_that_changes_nothing_else() -> None:
    from ray.serve.schema import ServeDeploySchema

    actor = {"num_cpus": 1.0, "runtime_env": {"env_vars": {"A": "1"}}}
    application = {
        "name": "rayapp",
        "import_path": "deployments.app:build",
        "args": {"root": "/r"},
        "deployments": [{"name": "Ingress", "ray_actor_options": actor}, {"name": "Ranker"}],
    }
    replica = {"node_id": "a", "state": "RUNNING", "replica_id": "x"}
    starting = {"node_id": "b", "state": "STARTING", "replica_id": "y"}
    there = {"Ingress": {"replicas": [replica, starting]}}
    details: dict[str, Any] = {
        "proxy_location": "EveryNode",
        "http_options": {"host": "0.0.0.0", "port": 8000, "location": "EveryNode", "root_path": ""},
        "applications": {
            "rayapp": {
                "deployed_app_config": application,
                "deployments": there,
            }
        },
    }
    assert placed(details) == {("rayapp", "Ingress"): ["a"]}
    config = marked(details, "rayapp", "Ingress", "17")
    ServeDeploySchema.model_validate(config)
    (made,) = config["applications"]
    assert made["deployments"][0]["ray_actor_options"]["runtime_env"]["env_vars"] == {"A": "1", MARK: "17"}
    assert actor["runtime_env"] == {"env_vars": {"A": "1"}}, "what came in is not changed"
    assert made["deployments"][1] == {"name": "Ranker"}
    assert {**made, "deployments": None} == {**application, "deployments": None}
    assert config["http_options"] == {"host": "0.0.0.0", "port": 8000, "root_path": ""}
    added = marked(details, "rayapp", "Sequences", "17")["applications"][0]["deployments"][-1]
    assert added["name"] == "Sequences"
