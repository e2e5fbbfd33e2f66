"""Runs a server for a bench in a process of its own: the Serve graph on its own Ray, or the hand-written one.

`python -m benchmarks.host PROFILE` reads a Serve configuration from its standard input, says "ready" on a line of its
own once the graph runs, and stops at the end of that input: with the bench, however that ends.
"""

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.processes import environment, wait_for_start, wait_until_ready
from rayapp.launch.graph import deployed, serve_config
from rayapp.launch.ports import free_port
from rayapp.launch.runtime import Profile, local_ray

STOP_S: Final = 90


def main() -> None:
    profile: Profile = "throughput" if sys.argv[1] == "throughput" else "plain"
    config = json.loads(sys.stdin.readline())
    with local_ray(profile=profile), deployed(config):
        print("ready", flush=True)  # noqa: T201
        sys.stdin.read()


def sized(config: dict[str, Any], replicas: dict[str, int]) -> dict[str, Any]:
    """The configuration with fixed numbers of replicas."""
    for application in config["applications"]:
        options = {d["name"]: d for d in application["deployments"]}
        options |= {name.capitalize(): o for name, o in application["args"]["apart"].items()}
        for name, option in options.items():
            count = replicas.get(name, 1)
            option["autoscaling_config"] |= {"min_replicas": count, "max_replicas": count}
            option["ray_actor_options"] = {"num_cpus": 0.1}  # several graphs share the machine, one works at a time
    return config


def side_by_side(configs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """One configuration with every one's application, each under the path `/name`."""
    first = next(iter(configs.values()))
    applications = [
        {**config["applications"][0], "name": name, "route_prefix": f"/{name}"} for name, config in configs.items()
    ]
    return {**first, "applications": applications}


@dataclass(frozen=True, slots=True)
class Server:
    """A running server."""

    url: str
    pid: int
    """Of the process whose descendants all its processes are."""


@contextlib.contextmanager
def graph(profile: Profile, config: dict[str, Any]) -> Iterator[Server]:
    """The Serve graph of `config` on a Ray of its own.

    Raises:
        GraphError: it did not start; its own words.
    """
    command = [sys.executable, "-m", "benchmarks.host", profile]
    with contextlib.ExitStack() as stack:
        log = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rayapp-host-"))) / "log"
        output = stack.enter_context(log.open("w"))
        # In a session of its own: Ctrl-C reaches the bench alone, which then closes the pipe.
        process = stack.enter_context(
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=output, stderr=output, env=environment(), start_new_session=True
            )
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps(config).encode() + b"\n")
        process.stdin.flush()
        try:
            wait_for_start(process, log, lambda: says_ready(log.read_text(errors="replace")))
            yield Server(f"http://127.0.0.1:{config['http_options']['port']}", process.pid)
        finally:
            process.stdin.close()
            try:
                process.wait(timeout=STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()


def says_ready(output: str) -> bool:
    """Whether a graph's process has said that it runs, among whatever Ray has to say."""
    return any(line.strip() == "ready" for line in output.splitlines())


@contextlib.contextmanager
def handwritten(root: Path, workers: int) -> Iterator[str]:
    """The FastAPI application of `benchmarks.handwritten` under uvicorn workers; yields its URL."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "benchmarks.handwritten:make_app", "--factory", "--no-access-log"]
    command += ["--workers", str(workers), "--host", "127.0.0.1", "--port", str(port), "--log-level", "error"]
    with subprocess.Popen(command, env=environment(RAYAPP_ROOT=str(root))) as process:
        url = f"http://127.0.0.1:{port}"
        try:
            wait_until_ready(f"{url}/health")
            yield url
        finally:
            process.terminate()
            process.wait(timeout=30)


def empty_config(inline: list[str]) -> dict[str, Any]:
    """A graph of the same shape that computes nothing (`benchmarks/empty.py`)."""
    config = serve_config(Path(), free_port())
    (application,) = config["applications"]
    options = application["args"]["apart"]
    application |= {
        "import_path": "benchmarks.empty:build",
        "args": {"inline": inline, "apart": options},
    }
    return config


if __name__ == "__main__":
    main()
