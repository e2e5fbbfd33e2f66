"""Real Redis servers on loopback for the tests: one alone, and three as a cluster."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

MISSING = "redis-server is not installed (apt-get install redis-server): NOTHING about the Redis store is tested"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(directory: Path, port: int, *more: str) -> "subprocess.Popen[bytes]":
    """A server that syncs every write; returns when it answers."""
    if shutil.which("redis-server") is None:
        pytest.skip(MISSING)
    directory.mkdir(parents=True, exist_ok=True)
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(directory), "--save", ""]
    command += ["--appendonly", "yes", "--appendfsync", "always", *more]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    wait_until_answers(port)
    return process


def wait_until_answers(port: int) -> None:
    client = redis.Redis(port=port)
    deadline = time.monotonic() + 20
    while True:
        try:
            client.ping()
            break
        except redis.exceptions.AuthenticationError:  # an answer, where it wants a password
            break
        except redis.exceptions.ConnectionError:
            assert time.monotonic() < deadline, "redis-server does not answer"
            time.sleep(0.02)
        except redis.exceptions.BusyLoadingError:
            time.sleep(0.02)
    client.close()


def stop(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()


@contextmanager
def redis_cluster(directory: Path) -> Iterator[str]:
    """Three primaries; the URL of one of them."""
    ports = [free_port() for _ in range(3)]
    # A node's bus listens on its port + 10,000 unless told otherwise, which may lie behind 65,535.
    nodes = [
        start(directory / str(p), p, "--cluster-enabled", "yes", "--cluster-port", str(free_port())) for p in ports
    ]
    try:
        create = ["redis-cli", "--cluster", "create", *(f"127.0.0.1:{p}" for p in ports), "--cluster-yes"]
        subprocess.run(create, check=True, stdout=subprocess.DEVNULL)
        client = redis.Redis(port=ports[0])
        deadline = time.monotonic() + 20
        while client.cluster("info")["cluster_state"] != "ok":
            assert time.monotonic() < deadline, "the cluster does not form"
            time.sleep(0.05)
        client.close()
        yield f"redis://127.0.0.1:{ports[0]}/0"
    finally:
        for node in nodes:
            stop(node)
