"""Real servers as processes of their own, which a benchmark may kill: the graph, and a Redis that syncs every write."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Final

from benchmarks.processes import is_ready, replica_pids, tree, wait_for_start, wait_until
from rayapp.contracts.presets import nano
from rayapp.importing.domains import load_domain
from rayapp.launch.ports import GraphError, free_port
from rayapp.launch.runtime import local_ray
from rayapp.loop.artifacts import build_windows, item_table, train_model, training_run
from rayapp.loop.first_import import import_once
from rayapp.loop.first_training import split_of
from rayapp.pipeline.tasks import run_tasks
from rayapp.registry.aliases import CHAMPION, promote, read_aliases
from rayapp.registry.item_tables import load_table
from rayapp.root.places import MODELS
from rayapp.root.publish import read_manifest
from rayapp.sources.synthetic import World, write_world
from rayapp.store import StoreError

WORLD: Final = World(num_users=120, num_items=200, sessions_per_day=0.2)
RAYAPP: Final = (sys.executable, "-c", "from rayapp.cli.main import main; main()")


def make_root(root: Path) -> Path:
    """A small made-up world with a champion: what is measured behind it is the store and the graph, not the model."""
    domain_file = load_domain("synthetic")
    with local_ray():
        import_once(root, domain_file, lambda: write_world(WORLD, root / "raw", run_tasks))
        prepared, _ = build_windows(root, domain_file.domain, split_of(root))
        table, _ = item_table(root, prepared, nano())
        run = training_run(root, prepared, nano(), table)
        train_model(run, domain_file.domain)
    promote(root, CHAMPION, run.version)
    return root


def items_of(root: Path) -> list[str]:
    """The items that the champion knows."""
    manifest = read_manifest(root / MODELS / read_aliases(root)[CHAMPION])
    return [str(item["item_id"]) for item in load_table(root, manifest["item_table"]).items]


class GraphProcess:
    """`rayapp serve` and every process of its Ray."""

    def __init__(self, root: Path, store_url: str | None = None) -> None:
        self.port, self._root, self._store_url = free_port(), root, store_url
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Returns when it is ready.

        Raises:
            GraphError: it ended, or was not ready in time; its last words.
        """
        command = [*RAYAPP, "serve", "--root", str(self._root), "--port", str(self.port)]
        log = self._root / "serve.log"
        environment = os.environ | ({"RAYAPP_STORE": self._store_url} if self._store_url else {})
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command, stdout=output, stderr=output, env=environment, start_new_session=True
            )
        try:
            wait_for_start(self._process, log, lambda: is_ready(f"{self.url}/health/ready"))
        except GraphError:
            self.kill()
            raise

    def kill(self) -> None:
        """SIGKILL for the command, Ray, the proxies and all replicas at once."""
        if self._process is None:
            return
        for pid in tree(self._process.pid):
            _kill(pid)
        self._process.wait()
        self._process = None

    def kill_replica(self, deployment: str) -> int:
        """SIGKILL for the processes of one deployment's replicas; how many there were."""
        assert self._process is not None
        replicas = replica_pids(self._process.pid, deployment)
        for pid in replicas:
            _kill(pid)
        return len(replicas)


class RedisProcess:
    """A redis-server on loopback that syncs its append-only file before each answer."""

    def __init__(self, directory: Path) -> None:
        """Raises:
        StoreError: redis-server is not installed.
        """
        if shutil.which("redis-server") is None:
            raise StoreError("redis-server is not installed (apt-get install redis-server)")
        self.port, self._directory = free_port(), directory
        directory.mkdir(parents=True, exist_ok=True)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._directory)]
        command += ["--save", "", "--appendonly", "yes", "--appendfsync", "always"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wait_until(self._listens, "redis-server's start")

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
