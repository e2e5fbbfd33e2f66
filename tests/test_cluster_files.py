"""The files for `ray up` and the image: valid, of one mind with the code, and large enough."""

import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from rayapp.cli.main import cli
from rayapp.launch.node import ENVIRONMENT, node_of
from rayapp.launch.ports import GraphError
from rayapp.preflight.files import asked, check_capacity, rooms

ROOT = Path(__file__).parents[1]
FILES = ("cluster.yaml", "deployments/cluster/onprem.yaml")


def read(name: str) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((ROOT / name).read_text())
    return config


@pytest.mark.parametrize("name", FILES)
def test_ray_s_own_validator_takes_the_file(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(read(name))
    validate_config(config)
    assert "nightly" not in yaml.safe_dump(config)
    assert "boto3>=" not in yaml.safe_dump(config), "Ray's own set-up installs with another Python's pip"


@pytest.mark.parametrize("name", FILES)
def test_every_node_starts_ray_under_the_supervisor_and_the_head_may_die(name: str) -> None:
    config = read(name)
    (head,), (worker,) = config["head_start_ray_commands"], config["worker_start_ray_commands"]
    for command, role in ((head, "--head"), (worker, "--address=$RAY_HEAD_IP:6379")):
        variables, _, arguments = command.partition("~/rayapp/venv/bin/rayapp ray start ")
        words = shlex.split(arguments)
        assert role in words
        made = dict(pair.split("=", 1) for pair in shlex.split(variables))
        assert not set(made) & set(ENVIRONMENT), "the environment of all nodes stands in one place, the code"
        assert ("RAY_REDIS_ADDRESS" in made) == (role == "--head")
        assert not any(word.startswith("--dashboard-host") for word in words), "the dashboard stays on loopback"
    (there,) = [there for there, here in config["file_mounts"].items() if here == "dist"]
    assert not "~/rayapp/venv".startswith(there), "the head copies its mounts to the workers, whole"
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in head
    store = read("deployments/production.yaml")["applications"][0]["args"]["store"]
    assert "RAY_REDIS_ADDRESS=" + store.split("//")[1].split("/")[0] not in head, "the GCS has a Redis of its own"


@pytest.mark.parametrize("name", FILES)
def test_the_cluster_holds_what_production_may_ask_for(name: str) -> None:
    wanted = asked(read("deployments/production.yaml"))
    assert sum(row.most * row.cpus for row in wanted) == 40
    assert list(check_capacity(name, wanted, rooms(read(name)))) == []


def test_two_nodes_serve_and_a_training_asks_for_a_gpu() -> None:
    types = read("cluster.yaml")["available_node_types"]
    assert types["cpu"]["min_workers"] >= 2, "with one node its death is everybody's"
    assert types["head"]["resources"] == {"CPU": 0}
    assert types["gpu"]["min_workers"] == 0
    workers = [row for name, row in types.items() if name != "head"]
    assert sum(row["max_workers"] for row in workers) == read("cluster.yaml")["max_workers"]
    for page in (ROOT / "docs/cluster.md", ROOT / "cluster.yaml"):
        (asked_for,) = set(re.findall(r"--entrypoint-resources\s+(?:# )?'(\{.*?\})'", page.read_text()))
        (resource,) = json.loads(asked_for)
        assert resource in types["gpu"]["resources"], "else the type would never start"
        assert all(resource not in types[name]["resources"] for name in ("head", "cpu"))
    memory = {row["name"]: row for row in read("deployments/production.yaml")["applications"][0]["deployments"]}
    most = sum(
        row["autoscaling_config"]["max_replicas"] * row["ray_actor_options"]["memory"] for row in memory.values()
    )
    assert most < 0.6 * types["cpu"]["max_workers"] * 64e9, "m7i.4xlarge has 64 GB, of which Ray gives tasks 70 %"


def test_ray_comes_with_the_whole_environment_and_a_guard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(GraphError, match="get-auth-token"):
        node_of(["--head"], {})
    secret = {"RAY_AUTH_TOKEN": "t"}
    with pytest.raises(GraphError, match="what this node is"):
        node_of(["--num-cpus=4"], secret)
    with pytest.raises(GraphError, match="pages would be open"):
        node_of(["--head"], {**secret, "RAY_SERVE_HAPROXY_BINARY_PATH": str(tmp_path / "none")})
    given = {**secret, "RAY_REDIS_ADDRESS": "gcs:6379", "RAYAPP_STORE": "redis://:p@redis/0", "EDITOR": "vi"}
    given["RAY_USAGE_STATS_ENABLED"] = "1"  # as `ray up` exports it on the head
    node = node_of(["--head", "--num-cpus=0"], given)
    assert set(ENVIRONMENT) | set(given) - {"EDITOR"} <= set(node.environment)
    assert "EDITOR" not in node.environment
    assert ENVIRONMENT.items() <= node.environment.items(), "the same on every node"
    assert Path(node.environment["RAY_SERVE_HAPROXY_BINARY_PATH"]).name == "rayapp-haproxy"
    program, *arguments = node.command
    assert Path(program).name == "ray"
    assert arguments[-1] == "--block"
    assert {"--head", "--num-cpus=0", "--dashboard-host=127.0.0.1", "--metrics-export-port=8080"} <= set(arguments)
    worker = node_of(["--address=h:6379"], secret).command
    assert not any(word.startswith(("--dashboard", "--port")) for word in worker)


def test_the_set_up_installs_the_wheel_once_and_a_new_one_whole(tmp_path: Path) -> None:
    """With a stand-in for pip, since an index of packages is not ours to ask: what it is told, and when."""
    home = tmp_path / "home"
    (home / ".ray").mkdir(parents=True)
    (home / ".ray/auth_token").write_text("t")
    for name in ("venv/bin", "dist"):
        (home / "rayapp" / name).mkdir(parents=True, exist_ok=True)
    for name, text in {
        "pip": f'echo "$@" >> {tmp_path}/pip.log',
        "python": ":",
        "rayapp-haproxy": ":",
    }.items():
        program = home / "rayapp/venv/bin" / name
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
    (home / "rayapp/dist/constraints.txt").touch()
    (home / ".bashrc").write_text("case $- in *i*) ;; *) return;; esac\n")

    def set_up() -> list[str]:
        (tmp_path / "pip.log").write_text("")
        environment = {"HOME": str(home), "PATH": os.environ["PATH"]}
        subprocess.run(["bash", ROOT / "deployments/cluster/setup.sh"], env=environment, check=True)
        return (tmp_path / "pip.log").read_text().splitlines()

    (home / "rayapp/dist/rayapp-1-py3-none-any.whl").write_text("first")
    os.utime(home / "rayapp/dist/rayapp-1-py3-none-any.whl", (1, 1))
    torch, removed, wheel = set_up()
    assert torch.endswith("--index-url https://download.pytorch.org/whl/cpu torch")
    assert removed.startswith("uninstall")
    assert wheel.endswith("rayapp-1-py3-none-any.whl[redis]")
    assert set_up() == [], "a wheel that is there is left alone: replicas run from it"
    assert (home / ".ray/auth_token").stat().st_mode & 0o777 == 0o600
    for file in (".bashrc", ".profile"):
        assert (home / file).read_text().count("rayapp/env") == 1
    assert (home / ".bashrc").read_text().startswith(". ~/rayapp/env"), "before it returns for shells of scripts"
    command = ["bash", "-lc", "echo $RAY_AUTH_MODE"]
    assert subprocess.check_output(command, env={"HOME": str(home)}, text=True).strip() == "token"
    (home / "rayapp/dist/rayapp-2-py3-none-any.whl").write_text("second")
    assert [line.split()[0] for line in set_up()] == ["install", "uninstall", "install"]


def test_the_head_may_do_what_its_autoscaler_does_and_no_more() -> None:
    policy = json.loads((ROOT / "deployments/cluster/iam-head.json").read_text())
    actions = {action for row in policy["Statement"] for action in row["Action"]}
    assert not any("*" in action.partition(":")[2] and not action.startswith("ec2:Describe") for action in actions)
    assert {"ec2:RunInstances", "ec2:TerminateInstances", "ec2:CreateTags", "iam:PassRole"} <= actions


def test_the_image_is_slim_not_root_and_made_of_what_is_there() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    copies = [line.split()[1:-1] for line in lines if line.startswith("COPY") and "--from" not in line]
    for source in [word for words in copies for word in words if not word.startswith("--")]:
        assert (ROOT / source).exists(), source
    assert [line for line in lines if line.startswith("FROM")][-1].split(":")[1].startswith("3.12-slim")
    users = [line for line in lines if line.startswith("USER")]
    assert users == ["USER 1000:1000"], "a number: Kubernetes checks runAsNonRoot by it"
    text = "\n".join(lines)
    assert "download.pytorch.org/whl/cpu" in text
    assert "-c constraints.txt" in text
    assert "pip install" not in text[text.rindex("FROM") :], "the last stage gets a finished environment"
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".git", ".venv", "rayapp-data"} <= set(ignored)


def test_the_commands_of_the_page_exist() -> None:
    text = (ROOT / "docs/cluster.md").read_text()
    for words in re.findall(r"rayapp ((?:ray|keys|preflight|retrain|batch-score)[^'`\n|&]*)", text):
        name, *arguments = shlex.split(words.replace("…", "x"))
        command: Any = cli.commands[name]
        while getattr(command, "commands", None) and arguments:
            command = command.commands[arguments.pop(0)]
        options = {option for parameter in command.params for option in parameter.opts}
        named = {word.split("=")[0] for word in arguments if word.startswith("--")}
        assert named <= options or command.name == "start", words


def test_the_image_starts_ray_in_the_environment_of_every_node() -> None:
    text = (ROOT / "Dockerfile").read_text()
    made = dict(re.findall(r"(RAY_\w+)=(\S+)", text))
    assert made.pop("RAY_SERVE_HAPROXY_BINARY_PATH") == "/opt/rayapp/bin/rayapp-haproxy"
    assert made == ENVIRONMENT
