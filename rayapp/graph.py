"""Starts Ray and the Serve graph on this machine, and stops both. It knows the graph only as a YAML file."""

import contextlib
import importlib.resources
import ipaddress
import logging
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import yaml

APPLICATION: Final = "rayapp"
LOOPBACK: Final = "127.0.0.1"
EVERY_INTERFACE: Final = "0.0.0.0"  # noqa: S104
START_TIMEOUT_S: Final = 180
PORTS: Final = range(20_000, 30_000)
Profile = Literal["throughput", "plain"]
THROUGHPUT: Final = {
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    # An ingress that died or hangs gets no more requests after two seconds; Ray's own setting takes ten.
    "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": "1s",
    # Replicas are asked for as the load rises and not ten seconds later.
    "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "2",
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "2",
}
"""Environment of all Ray processes under the profile `throughput`, the same on every node (see `cluster.yaml`)."""
HAPROXY: Final = "rayapp-haproxy"
"""Installed with rayapp: the HAProxy of Ray, its own pages on loopback."""


class GraphError(RuntimeError):
    """The graph could not be started; the message says why."""


@contextlib.contextmanager
def local_ray(spare_cpus: int = 2, profile: Profile = "plain") -> Iterator[None]:
    """A Ray of our own, whatever else runs on this machine; stopped at the end, with everything on it.

    With Serve a few logical CPUs more than there are cores: replicas wait more than they compute. A job that only
    computes is quicker and smaller with none to spare. `profile` matters to Serve alone.
    """
    _quieten()
    import ray

    # Sockets are below it, whose paths may have 97 characters, and Ray alone adds 68; hence not the user's TMPDIR.
    with tempfile.TemporaryDirectory(prefix="rayapp-", dir="/tmp", ignore_cleanup_errors=True) as haproxy:
        # Ray's processes inherit the profile from this one when they start; this one itself goes on without it.
        with _environment(_flags(haproxy) if profile == "throughput" else {}), _same_end():
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
def _same_end() -> Iterator[None]:
    """Ray answers SIGTERM in its own way, with a stack trace and without our `finally`; what was set before stays."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


def _flags(haproxy: str) -> dict[str, str]:
    """The environment of the profile `throughput` on one machine, where another graph may run beside this one:
    HAProxy gets free ports, and a directory of its own for its files."""
    files = {
        "CONFIG_FILE_LOC": "haproxy.cfg",
        "SOCKET_PATH": "admin.sock",
        "SERVER_STATE_BASE": "",
        "SERVER_STATE_FILE": "server-state",
        "METRICS_SOCKET_PATH": "metrics.sock",
    }
    return {
        **THROUGHPUT,
        **{f"RAY_SERVE_HAPROXY_{name}": str(Path(haproxy, file)) for name, file in files.items()},
        "RAY_SERVE_HAPROXY_BINARY_PATH": haproxy_path(),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        # HAProxy is on the same machine and follows within a second, so a stopped replica need not wait longer.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "10",
    }


def haproxy_path() -> str:
    """Where `rayapp-haproxy` is installed.

    Raises:
        GraphError: it is not.
    """
    beside = Path(sys.executable).with_name(HAPROXY)
    found = str(beside) if beside.exists() else shutil.which(HAPROXY)
    if found is None:
        raise GraphError(f"{HAPROXY} is not installed; install rayapp again, or serve with --profile plain")
    return found


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Sets variables for a while; one that the user has set already stays as it is."""
    fresh = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(fresh)
    try:
        yield
    finally:
        for name in fresh:
            del os.environ[name]


@contextlib.contextmanager
def job_ray() -> Iterator[None]:
    """The cluster that RAY_ADDRESS names, as it does for a job of `ray job submit`; else a Ray of our own."""
    if not os.environ.get("RAY_ADDRESS"):
        with local_ray(spare_cpus=0):
            yield
        return
    _quieten()
    import ray

    ray.init(log_to_driver=False, logging_level=logging.WARNING)
    try:
        yield
    finally:
        ray.shutdown()


def _quieten() -> None:
    """Ray says what matters and no more."""
    settings = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
        "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    import ray.data

    ray.data.DataContext.get_current().print_on_execution_start = False
    for quiet in ("ray.data", "ray.train"):
        logging.getLogger(quiet).setLevel(logging.WARNING)
    for noisy in ("ray.serve", "ray._private.authentication.authentication_token_setup"):
        logging.getLogger(noisy).addFilter(_only_errors)  # a filter, because Ray sets these levels anew


def _only_errors(line: logging.LogRecord) -> bool:
    return line.levelno >= logging.ERROR


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine reaches what listens on `host`. A name other than localhost counts as a no."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_port(port: int, host: str = LOOPBACK) -> None:
    """Finds out early that somebody else has the port, or that the machine has no such address.

    Raises:
        GraphError: names the port and what to do.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise GraphError(
                f"port {port} on {host} can't be used ({error.strerror}); stop what uses it or choose another --port"
            ) from None


def free_port() -> int:
    """A port that nobody uses at this moment, and that no outgoing connection gets meanwhile: those, Ray's workers and
    Serve's replicas take theirs from other ranges."""
    for port in random.sample(PORTS, 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise GraphError(f"no port of {PORTS.start} to {PORTS.stop - 1} is free")


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
    check_port(port, host)
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
