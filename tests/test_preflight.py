"""Each finding of a preflight, from exactly the thing that is broken."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml
from click.testing import CliRunner

from rayapp.cli.main import cli
from rayapp.contracts.config import Domain
from rayapp.launch.node import ENVIRONMENT
from rayapp.preflight import files, node_checks
from rayapp.preflight.findings import CHECKS, Finding, Report
from rayapp.preflight.node import NodeFacts, look
from rayapp.preflight.preflight import before_up, on_machine
from rayapp.root.facts import make_root
from rayapp.serving.keys import Role, add_key
from rayapp.store.redis_client import durability_problems
from tests.redis_server import free_port, start, stop

ROOT = Path(__file__).parents[1]
HEALTHY = NodeFacts(
    node="10.0.0.12",
    versions={"python": "3.12.3", "ray": "2.60.0", "rayapp": "0.2.0", "torch": "2.13.0"},
    environment=dict(ENVIRONMENT),
    haproxy="/venv/bin/rayapp-haproxy",
    token_mode=0o600,
    sees_probe=True,
    root_error=None,
    store_error=None,
    busy_ports=(),
    shm_bytes=8 * 10**9,
    files=1 << 20,
    disks={"/tmp": (50 * 10**9, 100 * 10**9)},
)
HEAD = dataclasses.replace(HEALTHY, node="10.0.0.11")
THIRD = dataclasses.replace(HEALTHY, node="10.0.0.13")


def every_check_of_nodes(nodes: list[NodeFacts]) -> list[Finding]:
    checks: list[Iterable[Finding]] = [
        node_checks.of_cluster(nodes),
        node_checks.of_machine(nodes),
        node_checks.of_root(nodes, "/mnt/rayapp/root"),
        node_checks.of_store(nodes),
    ]
    return [finding for found in checks for finding in found]


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "versions": ({"versions": HEALTHY.versions | {"rayapp": "0.1.0"}}, "rayapp is 0.1.0 here and 0.2.0 on most nodes"),
    "profile": (
        {"environment": {k: v for k, v in ENVIRONMENT.items() if k != "RAY_SERVE_ENABLE_HA_PROXY"}},
        "RAY_SERVE_ENABLE_HA_PROXY=, not 1",
    ),
    "token": ({"environment": ENVIRONMENT | {"RAY_AUTH_MODE": "disabled"}}, "answer everybody"),
    "haproxy": ({"haproxy": None}, "`rayapp-haproxy` is missing"),
    "shared memory": ({"shm_bytes": 64 * 2**20}, "holds 67 MB"),
    "file handles": ({"files": 1_000}, "may open 1,000 files"),
    "disk": ({"disks": {"/tmp": (3 * 10**9, 100 * 10**9)}}, "/tmp has 3.0 GB left of 100.0"),
    "ports": ({"busy_ports": (9101,)}, "port 9101"),
    "root": ({"sees_probe": False}, "is not the directory that the head sees"),
    "store": ({"store_error": "Redis does not answer: TimeoutError"}, "does not answer"),
}


def test_a_healthy_cluster_has_no_findings() -> None:
    assert every_check_of_nodes([HEAD, HEALTHY, THIRD]) == []


@pytest.mark.parametrize("check", BROKEN)
def test_each_fault_of_one_node_is_found_there_and_nowhere_else(check: str) -> None:
    change, words = BROKEN[check]
    (found,) = every_check_of_nodes([HEAD, dataclasses.replace(HEALTHY, **change), THIRD])
    assert (found.check, found.where) == (check, "10.0.0.12")
    assert words in found.problem
    assert found.fix


def test_a_root_that_is_read_only_and_tokens_that_others_read() -> None:
    (found,) = every_check_of_nodes([HEAD, dataclasses.replace(HEALTHY, root_error="Read-only file system")])
    assert (found.check, "Read-only file system" in found.problem) == ("root", True)
    for mode, words in ((None, "no token"), (0o644, "others on this machine")):
        (found,) = every_check_of_nodes([HEAD]) or node_checks.of_token(mode, "x")
        assert words in found.problem
    (found,) = every_check_of_nodes([dataclasses.replace(HEALTHY, files=20_000)])
    assert found.severity == "warning", "fewer than a busy replica wants, and enough to run"


@pytest.mark.skipif(shutil.which("faketime") is None, reason="Debian's faketime is not installed")
@pytest.mark.parametrize(("shift", "word"), [("+1h", "ahead of"), ("-90s", "behind")])
def test_a_clock_that_is_wrong(shift: str, word: str) -> None:
    program = "from rayapp.preflight.node import clock_s; print(clock_s())"
    command = ["faketime", "-f", shift, sys.executable, "-c", program]
    before = time.time()
    there = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    after = time.time()
    ahead_s, error_s = there - (before + after) / 2, (after - before) / 2
    (found,) = node_checks.of_clocks([("10.0.0.11", 0.1, 0.01), ("10.0.0.12", ahead_s, error_s)])
    assert (found.check, found.where) == ("clocks", "10.0.0.12")
    assert f"s {word} the head's" in found.problem


def test_a_slow_answer_is_no_wrong_clock() -> None:
    assert list(node_checks.of_clocks([("10.0.0.12", 1.4, 1.0)])) == []


def test_this_machine_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = look("here", str(tmp_path), None, None, ())
    assert facts.haproxy is not None
    assert facts.sees_probe
    assert facts.root_error is None
    assert set(facts.disks) == {"/tmp", str(tmp_path)}
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"
    assert look("here", str(tmp_path), "another probe", None, ()).sees_probe is False
    monkeypatch.setenv("RAY_SERVE_HAPROXY_BINARY_PATH", "/usr/sbin/haproxy")
    assert look("here", None, None, "redis://127.0.0.1:1/0", ()).haproxy is None, "Ray's own, with open pages"
    assert "does not answer" in str(look("here", None, None, "redis://127.0.0.1:1/0", ()).store_error)


# ---- the files -------------------------------------------------------------------------------------------------------


@pytest.fixture
def ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Copies of cluster.yaml, with everything set, and of production.yaml, in a home with a token."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    token = tmp_path / ".ray/auth_token"
    token.parent.mkdir()
    token.write_text("t" * 64)
    token.chmod(0o600)
    (tmp_path / "dist").mkdir()
    text = files.PLACEHOLDERS.sub("set", (ROOT / "cluster.yaml").read_text())
    (tmp_path / "cluster.yaml").write_text(text)
    shutil.copy(ROOT / "deployments/production.yaml", tmp_path / "production.yaml")
    return tmp_path / "cluster.yaml", tmp_path / "production.yaml"


def test_files_that_are_ready_have_no_findings(ready: tuple[Path, Path]) -> None:
    report = before_up(*ready)
    assert report.findings == []
    assert report.made == {"cluster file", "head", "serve file", "capacity", "store", "token"}


def drop_redis(config: dict[str, Any]) -> None:
    config["head_start_ray_commands"][-1] = config["head_start_ray_commands"][-1].replace("RAY_REDIS_ADDRESS", "X")


CLUSTER_FAULTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str, str]] = {
    "unknown key": (lambda c: c.update(serve={}), "cluster file", "Ray does not take it"),
    "placeholder": (
        lambda c: c["available_node_types"]["gpu"]["node_config"].update(ImageId="AMI_UBUNTU_2404_GPU"),
        "cluster file",
        "AMI_UBUNTU_2404_GPU is left to be set",
    ),
    "no wheel": (lambda c: c["file_mounts"].update({"~/rayapp/dist": "nowhere"}), "cluster file", "nowhere"),
    "head": (drop_redis, "head", "in the head's memory alone"),
    "too small": (
        lambda c: c["available_node_types"]["cpu"].update(max_workers=2),
        "capacity",
        "replicas scale to 40 CPUs, and nodes with tier=cpu have 32",
    ),
}


@pytest.mark.parametrize("fault", CLUSTER_FAULTS)
def test_each_fault_of_the_cluster_file(fault: str, ready: tuple[Path, Path]) -> None:
    change, check, words = CLUSTER_FAULTS[fault]
    config = yaml.safe_load(ready[0].read_text())
    change(config)
    ready[0].write_text(yaml.safe_dump(config))
    (found,) = before_up(*ready).findings
    assert (found.check, words in found.problem) == (check, True), found


SERVE_FAULTS: dict[str, tuple[str, str, str, str]] = {
    "unknown key": ("max_queued_requests: 8", "max_queue: 8", "serve file", "nothing knows applications[rayapp]."),
    "unknown argument": ("ranker_calls: 8", "ranker_call: 8", "serve file", "the argument ranker_call is wrong"),
    "wrong type": ("port: 8000", "port: many", "serve file", "Ray does not take http_options.port"),
    "no such module": ("deployments.app:build", "deployments.app:make", "serve file", "can't be imported"),
    "LMDB": ("store: redis://redis.internal:6379/0", "store: lmdb:///x", "store", "would share an LMDB"),
}


@pytest.mark.parametrize("fault", SERVE_FAULTS)
def test_each_fault_of_the_serve_file(fault: str, ready: tuple[Path, Path]) -> None:
    old, new, check, words = SERVE_FAULTS[fault]
    text = ready[1].read_text()
    assert text.count(old) == 1
    ready[1].write_text(text.replace(old, new))
    (found,) = before_up(*ready).findings
    assert (found.check, words in found.problem) == (check, True), found


def test_files_that_are_missing_or_no_yaml(ready: tuple[Path, Path], tmp_path: Path) -> None:
    ready[0].write_text("cluster_name: [")
    found = before_up(ready[0], tmp_path / "none.yaml").findings
    assert [(finding.check, finding.where) for finding in found] == [
        ("cluster file", str(ready[0])),
        ("serve file", str(tmp_path / "none.yaml")),
    ]


def test_the_token_of_the_laptop(ready: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / ".ray/auth_token").chmod(0o644)
    (found,) = before_up(*ready).findings
    assert found.check == "token"


def test_fewer_cpus_than_the_first_replicas_need_is_an_error() -> None:
    wanted = [files.Asked("Ranker", 2, 8, 1.0, {"tier": "cpu"}), files.Asked("Ingress", 2, 2, 1.0, {})]
    there = [files.Room(1, 16.0, {"tier": "gpu"}), files.Room(1, 1.0, {"tier": "cpu"})]
    few, many = files.check_capacity("x", wanted, there)
    assert (few.severity, many.severity) == ("error", "warning")
    assert "start with 2 CPUs, and nodes with tier=cpu have 1" in few.problem


# ---- the root and the store ------------------------------------------------------------------------------------------


def test_a_root_without_model_or_keys(tmp_path: Path, domain: Domain) -> None:
    make_root(tmp_path / "root", domain)
    report = on_machine(tmp_path / "root", None, free_port(), keys=True)
    found = {finding.check: finding for finding in report.findings if finding.severity == "error"}
    assert set(found) == {"model", "keys"}
    assert "rayapp keys add" in found["keys"].fix
    add_key(tmp_path / "root", "ops", Role.ADMIN)
    again = on_machine(tmp_path / "root", None, free_port(), keys=True)
    assert {f.check for f in again.findings if f.severity == "error"} == {"model"}


def test_a_store_that_loses_events(tmp_path: Path) -> None:
    port = free_port()
    server = start(tmp_path, port)
    url = f"redis://127.0.0.1:{port}/0"
    try:
        assert durability_problems(url) == []
        with redis.Redis(port=port) as client:
            client.config_set("appendfsync", "everysec")
        (problem,) = durability_problems(url)
        assert "appendfsync always" in problem
    finally:
        stop(server)


# ---- what people and programs read -----------------------------------------------------------------------------------


def test_the_report_says_what_holds_and_what_to_do() -> None:
    report = Report()
    report.add({"token", "clocks"}, [Finding("clocks", "10.0.0.12", "its clock is off", "Run chrony")])
    report.add({"head"}, [Finding("head", "x", "one head", "Name a Redis", "warning")])
    ok, warn, fail = "ok    token", "warn  head", "FAIL  clocks"
    text = report.text()
    assert text.index(warn) < text.index(ok) < text.index(fail), "in the order of CHECKS"
    assert "10.0.0.12: its clock is off. Run chrony." in text
    assert report.failed
    assert report.as_json()["ok"] is False
    assert set(report.as_json()["checks"]) <= set(CHECKS)


def test_the_command_tells_by_its_exit_code(ready: tuple[Path, Path]) -> None:
    options = ["preflight", "--cluster", str(ready[0]), "--serve", str(ready[1])]
    done = CliRunner().invoke(cli, options)
    assert done.exit_code == 0, done.output
    os.chmod(ready[0].parent / ".ray/auth_token", 0o666)
    failed = CliRunner().invoke(cli, [*options, "--json"])
    assert failed.exit_code == 1
    assert [finding["check"] for finding in json.loads(failed.stdout)["findings"]] == ["token"]
    assert CliRunner().invoke(cli, [*options, "--running"]).exit_code == 2
