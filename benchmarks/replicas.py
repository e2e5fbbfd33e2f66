"""Replica processes of a graph, found by their titles below the process that started it."""

from pathlib import Path

from benchmarks.memory import tree


def replica_pids(host: int, kind: str, application: str = "rayapp") -> list[int]:
    """Processes that run replicas of one deployment, oldest first. Those of other graphs on this machine are left out.

    A title is `ray::ServeReplica:APPLICATION:KIND`, sometimes with the method that runs behind it.
    """
    wanted = f"ray::ServeReplica:{application}:{kind}".encode()
    return sorted(pid for pid in tree(host) if (_title(pid) + b".").startswith(wanted + b"."))


def _title(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]
    except OSError:
        return b""  # it ended meanwhile
