"""Ray on one node of a cluster: `ray start` with the profile that every node needs, kept running by a supervisor.

Ray's own processes end for good when they lose what they need: the GCS its Redis, a raylet its GCS. The supervisor
starts them again, with the same arguments and the same environment, so that a cluster comes back by itself.
"""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import distribution
from pathlib import Path
from typing import Any, Final

from rayapp.launch.ports import GraphError, is_free
from rayapp.launch.runtime import THROUGHPUT, haproxy_path, raise_file_limit
from rayapp.launch.spot import DRAIN, SPOT, drain_on_notice

HTTP_PORT: Final = 8000
METRICS_PORT: Final = 8080
UP: Final = "Ray runtime started."
"""What `ray start` prints once the node is up."""
START_TIMEOUT_S: Final = 240
STOP_TIMEOUT_S: Final = 60
FIRST_PAUSE_S, LONGEST_PAUSE_S, QUIET_S = 1.0, 10.0, 60.0
"""Before the next start; each failed one doubles it, and a node that was up for so long begins anew."""
ENVIRONMENT: Final = {
    **THROUGHPUT,
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    # So long nodes and replicas go on without a head, before they give up. Ray's own setting is one minute.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "600",
    # A node that has just booted is busy.
    "RAY_agent_register_timeout_ms": "180000",
    "RAY_raylet_start_wait_time_s": "180",
}
"""Environment of every `ray start` of a cluster, in `cluster.yaml`, on-premises and on Kubernetes alike."""
KEPT: Final = ("RAY_", "RAYAPP_")
"""Variables that a later start needs again: the address of the GCS's Redis, what the autoscaler calls this node, the
URL of the store."""
STATE: Final = Path("~/.rayapp")
LOG_FILE: Final = "ray.log"
NODE_FILE: Final = "node.json"
PID_FILE: Final = "supervisor.pid"


@dataclass(frozen=True, slots=True)
class Node:
    """How Ray is started on this node."""

    arguments: tuple[str, ...]
    """Of `ray start`."""
    environment: dict[str, str]
    """What `KEPT` names of the environment; it may hold passwords."""
    installed: str
    """Digest of the wheel's file list: another wheel needs another start."""

    @property
    def command(self) -> list[str]:
        """The whole `ray start`; whatever `arguments` say counts, since it comes last."""
        fixed = [f"--metrics-export-port={METRICS_PORT}"]
        if "--head" in self.arguments:
            fixed += ["--port=6379", "--dashboard-host=127.0.0.1"]
        return [program("ray"), "start", *fixed, *self.arguments, "--block"]


def node_of(arguments: Sequence[str], environment: Mapping[str, str]) -> Node:
    """What `ray start` with these arguments is on this node.

    Raises:
        GraphError: something that every node needs is missing here.
    """
    if "--head" not in arguments and not any(argument.startswith("--address") for argument in arguments):
        raise GraphError("say what this node is: `--head`, or `--address=HEAD:6379` for a worker")
    haproxy = environment.get("RAY_SERVE_HAPROXY_BINARY_PATH") or haproxy_path()
    if not os.access(haproxy, os.X_OK):
        raise GraphError(f"{haproxy} can't be run; without it HAProxy's own pages would be open to everybody")
    token = Path(environment.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    if not environment.get("RAY_AUTH_TOKEN") and not token.exists():
        raise GraphError(
            f"{token} is missing; make it once with `ray get-auth-token --generate` and copy it to all nodes"
        )
    kept = {name: value for name, value in environment.items() if name.startswith(KEPT)}
    # `ENVIRONMENT` is last: `ray up` itself exports some of it, with other values, on the head alone.
    kept |= {"RAY_SERVE_HAPROXY_BINARY_PATH": haproxy, **ENVIRONMENT}
    return Node(tuple(arguments), kept, _installed())


def start(node: Node, directory: Path | None = None) -> bool:
    """Starts Ray on this node under a supervisor of its own and waits until it is up; False where exactly this runs
    already.

    Raises:
        GraphError: it does not come up; nothing is left running.
    """
    directory = directory or STATE.expanduser()
    directory.mkdir(parents=True, exist_ok=True)
    if supervisor(directory) is not None:
        if read(directory) == node:
            return False
        stop(directory)
    _write(directory / NODE_FILE, json.dumps(asdict(node), indent=2))
    log = directory / LOG_FILE
    before = log.stat().st_size if log.exists() else 0
    command = [program("rayapp"), "ray", "run"]
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, close_fds=True
        )
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        with log.open("rb") as text:
            text.seek(before)
            if UP.encode() in text.read():
                return True
        time.sleep(0.2)
    words = log.read_bytes()[before:].decode(errors="replace").strip().splitlines()[-20:]
    stop(directory)
    raise GraphError("Ray does not start on this node; its last words:\n" + "\n".join(words))


def run(node: Node, directory: Path | None = None) -> None:
    """Supervises Ray on this node until SIGTERM: for `start`, and for systemd after a boot.

    Raises:
        GraphError: a supervisor runs here already.
    """
    directory = directory or STATE.expanduser()
    if (other := supervisor(directory)) is not None:
        raise GraphError(f"Ray is supervised here already (process {other}); `rayapp ray stop` stops it")
    raise_file_limit()
    _write(directory / PID_FILE, f"{os.getpid()} {_began(os.getpid())}")
    # Jobs name their programs without a path, and a unit of systemd knows none of ours.
    path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"
    environment, ended = {**os.environ, "PATH": path, **node.environment}, threading.Event()
    if node.environment.get(SPOT) == "1":
        watch = [program("ray"), *DRAIN], environment, ended
        threading.Thread(target=drain_on_notice, args=watch, daemon=True).start()
    try:
        supervise(node.command, [program("ray"), "stop"], environment)
    finally:
        ended.set()
        (directory / PID_FILE).unlink(missing_ok=True)


def supervise(command: Sequence[str], clean: Sequence[str], environment: Mapping[str, str]) -> None:
    """Runs `command` again and again until this process gets SIGTERM or SIGINT. After each end `clean` takes away what
    it left."""
    stopping = threading.Event()
    process: subprocess.Popen[bytes] | None = None

    def end(*_: Any) -> None:
        stopping.set()
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    pause_s = FIRST_PAUSE_S
    try:
        while not stopping.is_set():
            subprocess.run(clean, env=environment, stdin=subprocess.DEVNULL, check=False)
            began = time.monotonic()
            process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)
            if stopping.is_set():  # the signal came while it was made
                process.terminate()
            code = process.wait()
            lasted_s = time.monotonic() - began
            pause_s = FIRST_PAUSE_S if lasted_s > QUIET_S else min(2 * pause_s, LONGEST_PAUSE_S)
            if not stopping.is_set():
                sys.stdout.write(f"Ray ended after {lasted_s:.0f} s with exit code {code}; again in {pause_s:.0f} s\n")
                sys.stdout.flush()
                stopping.wait(pause_s)
        subprocess.run(clean, env=environment, stdin=subprocess.DEVNULL, check=False)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop(directory: Path | None = None) -> None:
    """Stops the supervisor, Ray and every replica of this node.

    Raises:
        GraphError: something still listens on the API's port.
    """
    directory = directory or STATE.expanduser()
    if (pid := supervisor(directory)) is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        if not _wait(STOP_TIMEOUT_S, lambda: supervisor(directory) is None):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    (directory / PID_FILE).unlink(missing_ok=True)
    subprocess.run([program("ray"), "stop", "--force"], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if not _wait(STOP_TIMEOUT_S, lambda: is_free(HTTP_PORT)):
        raise GraphError(f"something still listens on port {HTTP_PORT} of this node; `ss -ltnp` says what")


def supervisor(directory: Path) -> int | None:
    """The process that supervises Ray here; None where none does."""
    try:
        pid, began = (directory / PID_FILE).read_text().split()
        return int(pid) if _began(int(pid)) == began else None  # after a boot another process has the number
    except (OSError, ValueError):
        return None


def read(directory: Path | None = None) -> Node:
    """How Ray was started here last.

    Raises:
        GraphError: it never was.
    """
    path = (directory or STATE.expanduser()) / NODE_FILE
    try:
        values = json.loads(path.read_text())
        return Node(tuple(values["arguments"]), values["environment"], values["installed"])
    except (OSError, ValueError, KeyError, TypeError):
        raise GraphError(f"{path} does not say how Ray is started here; `rayapp ray start` does") from None


def forget(environment: Mapping[str, str]) -> None:
    """Removes what the GCS kept of the cluster in its Redis, so that the next head starts an empty one.

    Raises:
        GraphError: no Redis is named, or it does not answer.
    """
    from ray._private.gcs_utils import cleanup_redis_storage

    address = environment.get("RAY_REDIS_ADDRESS", "")
    if not address:
        raise GraphError("RAY_REDIS_ADDRESS names no Redis; without one a cluster ends with its head")
    use_ssl = address.startswith("rediss://")
    host, _, port = address.rpartition("//")[2].rpartition(":")
    namespace = environment.get("RAY_external_storage_namespace", "default")
    try:
        done = cleanup_redis_storage(host, int(port), environment.get("RAY_REDIS_PASSWORD", ""), use_ssl, namespace)
    except (ValueError, TypeError) as error:
        raise GraphError(f"RAY_REDIS_ADDRESS={address} is not HOST:PORT ({error})") from None
    if not done:
        raise GraphError(f"the Redis at {address} does not answer; the cluster's state is still in it")


def program(name: str) -> str:
    """A program of this environment, whatever the PATH says.

    Raises:
        GraphError: it is not installed.
    """
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise GraphError(f"{name} is not installed")
    return found


def _began(pid: int) -> str:
    """When a process began, in the kernel's own count; raises OSError where there is none."""
    return Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[19]


def _installed() -> str:
    names = distribution("rayapp").read_text("RECORD") or ""
    return hashlib.sha256(names.encode()).hexdigest()


def _write(path: Path, text: str) -> None:
    """Whole or not at all, and for this user alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    temporary.touch(mode=0o600)
    temporary.write_text(text)
    temporary.replace(path)


def _wait(timeout_s: float, done: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
