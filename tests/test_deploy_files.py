"""What operators run: the Serve configurations are valid and say what they should, and HAProxy does."""

import importlib
import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from deployments.haproxy import corrected
from rayapp.launch.graph import serve_config
from rayapp.launch.ports import BLOCKS, GraphError, check_port, free_port, held_port, is_free, own_block
from rayapp.launch.runtime import haproxy_path
from tests.conftest import until

ROOT = Path(__file__).parents[1]
SERVE = ["serve.yaml", "production.yaml"]


def deployments_of(application: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Options by deployment, those of stages that may be inline too."""
    apart = {name.capitalize(): {"name": name, **options} for name, options in application["args"]["apart"].items()}
    return {d["name"]: d for d in application["deployments"]} | apart


@pytest.mark.parametrize("name", SERVE)
def test_serve_yaml_holds_known_keys_and_names_a_real_application(name: str) -> None:
    from ray.serve.config import AutoscalingConfig
    from ray.serve.schema import DeploymentSchema, ServeApplicationSchema, ServeDeploySchema

    config = yaml.safe_load((ROOT / "deployments" / name).read_text())
    ServeDeploySchema.model_validate(config)
    (application,) = config["applications"]
    assert set(application) <= set(ServeApplicationSchema.model_fields)
    options = deployments_of(application)
    for deployment in options.values():
        assert set(deployment) <= set(DeploymentSchema.model_fields), "Ray accepts unknown keys in silence"
        assert set(deployment["autoscaling_config"]) <= set(AutoscalingConfig.model_fields)
        assert deployment["max_queued_requests"] > 0, "queues are finite"
        assert deployment["ray_actor_options"]["memory"] > 0
        scaling = deployment["autoscaling_config"]
        assert scaling["target_ongoing_requests"] < deployment["max_ongoing_requests"], "it scales before it queues"
        assert scaling["downscale_delay_s"] > 5 * scaling["upscale_delay_s"], "up at once, down with patience"
    ingress = options["Ingress"]
    assert ingress["backpressure_config"] == {"status_code": 429, "retry_after_s": 1}
    most = {name: option["autoscaling_config"]["max_replicas"] for name, option in options.items()}
    taken = most["Ranker"] * options["Ranker"]["max_ongoing_requests"]
    assert most["Ingress"] * application["args"]["ranker_calls"] <= taken, "no ingress asks rankers that are full"
    module, function = application["import_path"].split(":")
    assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize("name", SERVE)
@pytest.mark.parametrize("inline", [[], ["candidates"], ["sequences"], ["sequences", "candidates"]])
def test_the_yaml_sizes_every_deployment_of_the_graph(name: str, inline: list[str]) -> None:
    from ray.serve._private.build_app import build_app

    from deployments.app import AppArgs, build

    (application,) = yaml.safe_load((ROOT / "deployments" / name).read_text())["applications"]
    built = build_app(build(AppArgs(**application["args"] | {"inline": inline})), name="rayapp")
    expected = {"Ingress", "Ranker", "Sequences", "Candidates"} - {stage.capitalize() for stage in inline}
    options = deployments_of(application)
    assert {d.name for d in built.deployments} == expected <= set(options)
    for deployment in built.deployments:
        if deployment.name.lower() in application["args"]["apart"]:
            assert deployment.max_queued_requests == options[deployment.name]["max_queued_requests"]
            assert deployment._deployment_config.autoscaling_config.target_ongoing_requests > 2


@pytest.mark.parametrize(("cores", "ingresses"), [(1, 1), (2, 1), (3, 1), (16, 8), (None, 1)])
def test_one_machine_gets_a_ranker_for_each_core(
    cores: int | None, ingresses: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    (application,) = serve_config(tmp_path, 8123)["applications"]
    options = deployments_of(application)
    most = {name: option["autoscaling_config"]["max_replicas"] for name, option in options.items()}
    assert most == {"Ingress": ingresses, "Ranker": cores or 1, "Sequences": 2, "Candidates": 2}
    taken = 2 * options["Ranker"]["max_ongoing_requests"]
    assert application["args"]["ranker_calls"] == taken, "no ingress asks rankers that are full"


def test_whoever_opens_the_port_asks_for_keys() -> None:
    for name in SERVE:
        config = yaml.safe_load((ROOT / "deployments" / name).read_text())
        assert config["http_options"]["host"] == "127.0.0.1" or config["applications"][0]["args"]["keys"] is True


def test_the_arguments_of_the_application_are_checked(tmp_path: Path) -> None:
    from deployments.app import AppArgs

    with pytest.raises(ValueError, match="Extra inputs"):
        AppArgs(root="x", model="y")  # type: ignore[call-arg]
    config = serve_config(tmp_path, 8123, "redis://host:1/0", inline=[])
    assert config["http_options"]["port"] == 8123
    args = config["applications"][0]["args"]
    assert (args["root"], args["store"], args["inline"]) == (str(tmp_path), "redis://host:1/0", [])


def ray_s_haproxy_config(directory: Path, port: int, metrics: int = 9101, stats: int = 8404) -> str:
    """Ray's own template, so that a Ray that changes it is found here and not by a port scan."""
    from jinja2 import Environment
    from ray.serve._private.haproxy import HAProxyConfig
    from ray.serve._private.haproxy_templates import HAPROXY_CONFIG_TEMPLATE
    from ray.serve.config import HTTPOptions

    config = HAProxyConfig(
        http_options=HTTPOptions(host="127.0.0.1", port=port),
        socket_path=str(directory / "admin.sock"),
        server_state_base=str(directory),
        server_state_file=str(directory / "state"),
        metrics_port=metrics,
        stats_port=stats,
        error_file_path=str(directory / "500.http"),
    )
    environment = Environment()
    environment.filters["haproxy_fmt"] = str
    text = environment.from_string(HAPROXY_CONFIG_TEMPLATE).render(
        config=config,
        backends=[],
        route_info=config.build_health_route_info([]),
        healthz_rules="",
        metrics_socket_path=str(directory / "metrics.sock"),
    )
    return f"{text}\n"


def test_haproxy_keeps_its_own_pages_on_loopback(tmp_path: Path) -> None:
    text = ray_s_haproxy_config(tmp_path, 8000)
    assert "bind *:8404" in text
    assert "mode 666" in text
    done = corrected(text)
    binds = re.findall(r"^\s*bind (\S+)", done, re.MULTILINE)
    assert binds == ["127.0.0.1:9101", "127.0.0.1:8000", "127.0.0.1:8404"]
    assert "mode 600 level admin" in done
    assert corrected(done) == done
    assert "errorfile 503" in text
    assert "status 404" in text
    assert "errorfile 503" not in done
    assert "status 404" not in done, "there is no application yet"
    waiting = "    server SERVE_PROXY_ACTOR-fallback-1f 127.0.0.1:8500 check backup\n"
    done = corrected(f"{text}\n    use_backend x if y\nbackend x\n{waiting}")
    assert "8500 check backup disabled\n" in done, "requests don't wait in Serve's own proxy"
    assert "status 404" in done, "paths of no application"
    assert corrected(done) == done
    with pytest.raises(ValueError, match="another form"):
        corrected(text.replace("frontend prometheus", "frontend exporter"))


def test_haproxy_ends_with_whoever_started_it_and_says_503_until_something_is_up(tmp_path: Path) -> None:
    config, port = tmp_path / "haproxy.cfg", free_port()
    (tmp_path / "500.http").write_text("HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n")
    config.write_text(ray_s_haproxy_config(tmp_path, port, free_port(), free_port()))
    starts = "import subprocess, sys; subprocess.Popen(sys.argv[1:]).wait()"
    command = [sys.executable, "-c", starts, haproxy_path(), "-db", "-f", str(config)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as parent:
        until(lambda: not is_free(port), 30)
        answer = httpx.get(f"http://127.0.0.1:{port}/health/ready")
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert answer.json()["status"] == 503
        parent.send_signal(signal.SIGKILL)
    until(lambda: is_free(port), 30)


def test_a_busy_port_is_told_apart() -> None:
    check_port(free_port())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(GraphError, match=f"port {taken.getsockname()[1]}"):
            check_port(taken.getsockname()[1])


def test_graphs_that_start_at_once_share_no_port() -> None:
    with own_block() as first, own_block() as second:
        assert not set(first) & set(second)
        assert {block.start for block in (first, second)} <= set(BLOCKS)
    port = free_port()
    with held_port(port), pytest.raises(GraphError, match=f"port {port}"), held_port(port):
        pass
    with held_port(port), socket.socket() as haproxy:  # whoever holds it can still listen on it
        haproxy.bind(("127.0.0.1", port))
        haproxy.listen()
        assert not is_free(port)
    with socket.socket() as foreign:
        foreign.bind(("127.0.0.1", first.start + 7))
        foreign.listen()
        assert not is_free(first.start + 7), "a block with a listener is passed over"


def test_the_crontab_runs_commands_that_exist() -> None:
    from rayapp.cli.main import cli

    lines = [line for line in (ROOT / "docs/examples/crontab").read_text().splitlines() if not line.startswith("#")]
    commands = [shlex.split(line.split("&&")[1].split(">")[0]) for line in lines]
    assert len(commands) == 2
    for program, name, *arguments in commands:
        assert Path(program).name == "rayapp"
        cli.commands[name].make_context(name, arguments)
