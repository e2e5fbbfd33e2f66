"""Starts the Serve graph on a running Ray, and stops it. It knows the graph only as a YAML file."""

import contextlib
import importlib.resources
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

from rayapp.launch.ports import EVERY_INTERFACE, LOOPBACK, GraphError, held_port

APPLICATION: Final = "rayapp"
START_TIMEOUT_S: Final = 180


def serve_config(
    root: Path, port: int, store_url: str | None = None, host: str = LOOPBACK, **args: Any
) -> dict[str, Any]:
    """`deployments/serve.yaml` with the root, the port and the store filled in, sized to this machine, and other
    arguments changed."""
    text = importlib.resources.files("deployments").joinpath("serve.yaml").read_text()
    config: dict[str, Any] = yaml.safe_load(text)
    config["http_options"] |= {"host": host, "port": port}
    (application,) = config["applications"]
    application["args"] |= {"root": str(root.resolve()), "store": store_url, **args}
    options = {d["name"]: d for d in application["deployments"]}
    cores = os.cpu_count() or 1
    options["Ranker"]["autoscaling_config"]["max_replicas"] = cores  # more would only share them
    taken = cores * options["Ranker"]["max_ongoing_requests"]
    options["Ingress"]["autoscaling_config"]["max_replicas"] = max(taken // application["args"]["ranker_calls"], 1)
    return config


@contextlib.contextmanager
def running_graph(
    root: Path, port: int, store_url: str | None = None, host: str = LOOPBACK, **args: Any
) -> Iterator[str]:
    """The graph on the current Ray; yields its URL once it is ready and takes the application down at the end.

    Raises:
        GraphError: a deployment failed, in its own words, or nothing was ready in time.
    """
    with deployed(serve_config(root, port, store_url, host, **args)) as url:
        yield url


@contextlib.contextmanager
def deployed(settings: dict[str, Any]) -> Iterator[str]:
    """`running_graph` for a whole Serve configuration."""
    from ray import serve
    from ray.serve._private.api import serve_start
    from ray.serve.schema import ServeDeploySchema

    options, names = settings["http_options"], [a["name"] for a in settings["applications"]]
    host, port = options["host"], options["port"]
    with held_port(port, host):
        config = ServeDeploySchema.model_validate(settings)
        serve.shutdown()  # of an earlier graph on this Ray, whose proxy keeps its port
        # What `serve run FILE` does, without its own Ray and its endless wait.
        client = serve_start(proxy_location=config.proxy_location, http_options=config.http_options.model_dump())
        try:
            client.deploy_apps(config)
            for name in names:
                _wait_until_running(name)
            reached = LOOPBACK if host == EVERY_INTERFACE else host
            yield f"http://{f'[{reached}]' if ':' in reached else reached}:{port}"
        finally:
            # Drains and stops the replicas. The controller and the proxy go with Ray, which is stopped next: stopping
            # them here too makes Ray print an error about its own shutdown.
            for name in names:
                serve.delete(name)


def metrics_url() -> str:
    """Where Ray's exporter gives Prometheus the metrics of this machine."""
    import ray

    (node,) = (row for row in ray.nodes() if row["Alive"])
    return f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"


def _wait_until_running(name: str) -> None:
    from ray import serve

    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        application = serve.status().applications.get(name)
        if application is not None:
            if application.status == "RUNNING":
                return
            if application.status in ("DEPLOY_FAILED", "UNHEALTHY"):
                words = [application.message, *(d.message for d in application.deployments.values())]
                raise GraphError("the Serve graph did not start: " + "\n".join(w for w in words if w))
        time.sleep(0.5)  # asking costs the processor a tenth of a second
    raise GraphError(f"the Serve graph was not ready after {START_TIMEOUT_S} s; `serve status` tells more")
