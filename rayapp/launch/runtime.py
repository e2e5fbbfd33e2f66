"""Starts Ray on this machine, or joins the cluster that a job was submitted to. Knows nothing of what runs on it."""

import contextlib
import logging
import os
import resource
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal

from rayapp.launch.ports import GraphError, own_block

MANY_FILES: Final = 65_536
FEWEST_FILES: Final = 1_024
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


@contextlib.contextmanager
def local_ray(spare_cpus: int = 2, profile: Profile = "plain") -> Iterator[None]:
    """A Ray of our own, whatever else runs on this machine; stopped at the end, with everything on it.

    With Serve a few logical CPUs more than there are cores: replicas wait more than they compute. A job that only
    computes is quicker and smaller with none to spare. `profile` matters to Serve alone.

    Raises:
        GraphError: Ray does not start; why, and what to do.
    """
    _quieten()
    import ray

    raise_file_limit()
    with contextlib.ExitStack() as stack:
        # Sockets are below it, whose paths may have 97 characters, and Ray alone adds 68; hence not the user's TMPDIR.
        temporary = tempfile.TemporaryDirectory(prefix="rayapp-", dir="/tmp", ignore_cleanup_errors=True)
        directory = stack.enter_context(temporary)
        flags = _flags(directory, stack.enter_context(own_block())) if profile == "throughput" else {}
        # Ray's processes inherit the profile from this one when they start; this one itself goes on without it.
        with _environment(flags), _same_end():
            _start_ray(
                directory,
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


def _start_ray(directory: str, **options: Any) -> None:
    """`ray.init`, tried twice: on a busy machine its processes may need longer than Ray waits for them.

    Ray gives its workers the current directory as a place of modules, before those that are installed. It is an empty
    one here: a `pandas.py`, or a checkout called `rayapp`, where the user happens to stand must not become theirs.
    """
    import ray

    place = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    for attempt in range(2):
        before = _children()
        try:
            with contextlib.chdir(directory):
                ray.init(**options)
            return
        except Exception as error:
            ray.shutdown()
            for child in _children() - before:  # Ray forgets what it started when the start fails
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            if "AF_UNIX path" in str(error):
                raise GraphError(
                    f"the directory for temporary files, {place}, has too long a name for Ray's sockets; set "
                    "RAY_TMPDIR to a shorter one, such as /tmp"
                ) from None
            if attempt:
                raise GraphError(
                    f"Ray does not start, tried twice ({_words(error)}); is the machine very busy, or out of memory or "
                    f"disk? Ray's own words are in {place}/ray/session_latest/logs"
                ) from error


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _children() -> set[int]:
    """Processes that this one started."""
    tasks = Path("/proc/self/task").glob("*/children")
    return {int(pid) for path in tasks for pid in path.read_text().split()}


def raise_file_limit() -> None:
    """A graph opens some hundred files and sockets a process; the usual limit is lower than what may be had.

    Raises:
        GraphError: too few may be had.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MANY_FILES if hard == resource.RLIM_INFINITY else min(MANY_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if wanted < FEWEST_FILES:
        raise GraphError(
            f"a process may open only {wanted} files here and Ray needs {FEWEST_FILES}; raise the limit: "
            f"ulimit -Hn {MANY_FILES}, or LimitNOFILE of a systemd unit"
        )


@contextlib.contextmanager
def _same_end() -> Iterator[None]:
    """Ray answers SIGTERM in its own way, with a stack trace and without our `finally`; what was set before stays."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


def _flags(directory: str, block: range) -> dict[str, str]:
    """The environment of the profile `throughput` on one machine, where another graph may run beside this one: ports of
    its own, and a directory of its own for HAProxy's files."""
    files = {
        "CONFIG_FILE_LOC": "haproxy.cfg",
        "SOCKET_PATH": "admin.sock",
        "SERVER_STATE_BASE": "",
        "SERVER_STATE_FILE": "server-state",
        "METRICS_SOCKET_PATH": "metrics.sock",
    }
    metrics, stats, fallback, *ingresses = block
    return {
        **THROUGHPUT,
        **{f"RAY_SERVE_HAPROXY_{name}": str(Path(directory, file)) for name, file in files.items()},
        "RAY_SERVE_HAPROXY_BINARY_PATH": haproxy_path(),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        # Serve's own proxy. Two graphs' would share Ray's default, 8500, and HAProxy would ask either.
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(ingresses[0]),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(ingresses[-1]),
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

    try:
        with tempfile.TemporaryDirectory(prefix="rayapp-") as directory, contextlib.chdir(directory):
            ray.init(log_to_driver=False, logging_level=logging.WARNING)
    except Exception as error:
        raise GraphError(
            f"no Ray cluster takes this job at RAY_ADDRESS={os.environ['RAY_ADDRESS']} ({_words(error)}); unset it to "
            "run on this machine alone, and set RAY_AUTH_MODE=token where the cluster wants a token"
        ) from error
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
