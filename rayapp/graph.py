"""Starts Ray and the Serve graph on this machine, and stops both. It knows the graph only as a YAML file."""

import contextlib
import importlib.resources
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

APPLICATION: Final = "rayapp"
START_TIMEOUT_S: Final = 180


class GraphError(RuntimeError):
    """The graph could not be started; the message says why."""


@contextlib.contextmanager
def local_ray(spare_cpus: int = 2) -> Iterator[None]:
    """A Ray of our own, whatever else runs on this machine; stopped at the end, with everything on it.

    With Serve a few logical CPUs more than there are cores: replicas wait more than they compute. A job that only
    computes is quicker and smaller with none to spare.
    """
    settings = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
        "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    import ray
    import ray.data

    ray.data.DataContext.get_current().print_on_execution_start = False
    for quiet in ("ray.data", "ray.train"):
        logging.getLogger(quiet).setLevel(logging.WARNING)
    for noisy in ("ray.serve", "ray._private.authentication.authentication_token_setup"):
        logging.getLogger(noisy).addFilter(_only_errors)  # a filter, because Ray sets these levels anew
    ray.init(
        address="local",
        num_cpus=(os.cpu_count() or 1) + spare_cpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.WARNING,
        namespace="serve",
    )
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def ray_of_job_or_local() -> Iterator[None]:
    """The cluster that this process is a job of (`ray job submit` sets RAY_ADDRESS), else a Ray of our own."""
    if "RAY_ADDRESS" not in os.environ:
        with local_ray(spare_cpus=0):
            yield
        return
    import ray

    ray.init(log_to_driver=False, logging_level=logging.WARNING)
    try:
        yield
    finally:
        ray.shutdown()


def _only_errors(line: logging.LogRecord) -> bool:
    return line.levelno >= logging.ERROR


def check_port(port: int) -> None:
    """Finds out early that somebody else has the port.

    Raises:
        GraphError: names the port and what to do.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise GraphError(
                f"port {port} on 127.0.0.1 can't be used ({error.strerror}); stop what uses it or choose another --port"
            ) from None


def free_port() -> int:
    """A port that nobody uses at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def serve_config(root: Path, port: int, store_url: str | None = None) -> dict[str, Any]:
    """`deployments/serve.yaml` with the root, the port and the store filled in."""
    text = importlib.resources.files("deployments").joinpath("serve.yaml").read_text()
    config: dict[str, Any] = yaml.safe_load(text)
    config["http_options"]["port"] = port
    config["applications"][0]["args"]["root"] = str(root.resolve())
    config["applications"][0]["args"]["store"] = store_url
    return config


@contextlib.contextmanager
def running_graph(root: Path, port: int, store_url: str | None = None) -> Iterator[str]:
    """The graph on the current Ray; yields its URL once it is ready and takes the application down at the end.

    Raises:
        GraphError: a deployment failed, in its own words, or nothing was ready in time.
    """
    from ray import serve
    from ray.serve._private.api import serve_start
    from ray.serve.schema import ServeDeploySchema

    check_port(port)
    config = ServeDeploySchema.model_validate(serve_config(root, port, store_url))
    # What `serve run FILE` does, without its own Ray and its endless wait.
    client = serve_start(proxy_location=config.proxy_location, http_options=config.http_options.model_dump())
    try:
        client.deploy_apps(config)
        _wait_until_running()
        yield f"http://127.0.0.1:{port}"
    finally:
        # Drains and stops the replicas. The controller and the proxy go with Ray, which is stopped next: stopping
        # them here too makes Ray print an error about its own shutdown.
        serve.delete(APPLICATION)


def _wait_until_running() -> None:
    from ray import serve

    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        application = serve.status().applications.get(APPLICATION)
        if application is not None:
            if application.status == "RUNNING":
                return
            if application.status in ("DEPLOY_FAILED", "UNHEALTHY"):
                words = [application.message, *(d.message for d in application.deployments.values())]
                raise GraphError("the Serve graph did not start: " + "\n".join(w for w in words if w))
        time.sleep(0.2)
    raise GraphError(f"the Serve graph was not ready after {START_TIMEOUT_S} s; `serve status` tells more")
