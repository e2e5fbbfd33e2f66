"""What operators run: cluster.yaml and serve.yaml are valid, and say what they should."""

import importlib
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from rayapp.graph import GraphError, check_port, free_port, serve_config

ROOT = Path(__file__).parents[1]


def test_serve_yaml_holds_known_keys_and_names_a_real_application(tmp_path: Path) -> None:
    from ray.serve.schema import DeploymentSchema, ServeApplicationSchema, ServeDeploySchema

    config = serve_config(tmp_path, 8123)
    ServeDeploySchema.model_validate(config)
    (application,) = config["applications"]
    assert set(application) <= set(ServeApplicationSchema.model_fields)
    for deployment in application["deployments"]:
        assert set(deployment) <= set(DeploymentSchema.model_fields), "Ray accepts unknown keys in silence"
        assert deployment["max_queued_requests"] > 0, "queues are finite"
        assert deployment["ray_actor_options"]["memory"] > 0
    assert config["http_options"]["host"] == "127.0.0.1"
    assert config["http_options"]["port"] == 8123
    assert application["args"] == {"root": str(tmp_path), "store": None}
    module, name = application["import_path"].split(":")
    assert callable(getattr(importlib.import_module(module), name))


def test_the_yaml_sizes_every_deployment_of_the_graph(tmp_path: Path) -> None:
    from deployments.app import AppArgs, build

    built = build(AppArgs(root=str(tmp_path)))
    names = {d["name"] for d in serve_config(tmp_path, 1)["applications"][0]["deployments"]}
    assert names == {"Ingress", "Sequences", "Candidates", "Ranker"}
    assert built._bound_deployment.name == "Ingress"
    with pytest.raises(ValueError, match="Extra inputs"):
        AppArgs(root="x", model="y")  # type: ignore[call-arg]


def test_cluster_yaml_passes_ray_s_own_validator() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    text = yaml.safe_dump(config)
    validate_config(prepare_config(config))
    assert "nightly" not in text
    assert "--dashboard-host=127.0.0.1" in text
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        assert "RAY_AUTH_MODE=token" in commands[-1]


def test_a_busy_port_is_told_apart() -> None:
    import socket

    check_port(free_port())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(GraphError, match=f"port {taken.getsockname()[1]}"):
            check_port(taken.getsockname()[1])


def test_the_examples_of_schedules_run_commands_that_exist() -> None:
    from rayapp.cli.main import cli

    job: dict[str, Any] = yaml.safe_load((ROOT / "docs/examples/retrain-cronjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "CronJob")
    pod = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    (rule,) = job["spec"]["jobTemplate"]["spec"]["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    assert pod["restartPolicy"] == "Never", "a podFailurePolicy needs it"
    commands = [[*container["command"], *container["args"]]]
    lines = [line for line in (ROOT / "docs/examples/crontab").read_text().splitlines() if not line.startswith("#")]
    commands += [shlex.split(line.split("&&")[1].split(">")[0]) for line in lines]
    assert len(commands) == 3
    for program, name, *arguments in commands:
        assert Path(program).name == "rayapp"
        cli.commands[name].make_context(name, arguments)
