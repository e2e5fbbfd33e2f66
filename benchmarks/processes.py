"""Processes of the benches: started so that they find this package, waited for, and found below their parent."""

import contextlib
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import httpx

from rayapp.launch.ports import GraphError

CHECKOUT: Final = Path(__file__).parents[1]
START_S: Final = 240.0
PAUSE_S: Final = 0.1
"""Between two looks at a server that starts: one that never rests would keep it from starting."""


def environment(**more: str) -> dict[str, str]:
    """For a process that imports this package, and its Ray's workers: it is not installed, and they start anywhere."""
    path = os.pathsep.join(filter(None, (str(CHECKOUT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, **more}


def tree(root: int) -> set[int]:
    """Process `root` and all below it, now."""
    parent_of: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # The name may hold spaces and brackets; the parent is the second field behind the last one.
                parent_of[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError):
                continue  # it ended meanwhile
    found, grew = {root}, True
    while grew:
        below = {pid for pid, parent in parent_of.items() if parent in found} - found
        found |= below
        grew = bool(below)
    return found


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


def wait_until(condition: Callable[[], bool], what: str, seconds: float = START_S, pause_s: float = 0.01) -> float:
    """Waits for something that must become true; the seconds it took.

    Raises:
        GraphError: it did not.
    """
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > seconds:
            raise GraphError(f"{what} did not happen within {seconds:g} s")
        time.sleep(pause_s)
    return time.monotonic() - started


def wait_until_ready(url: str) -> None:
    """Asks until the answer is 200."""
    wait_until(lambda: is_ready(url), f"a good answer of {url}", pause_s=PAUSE_S)


def is_ready(url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(url, timeout=5).status_code == 200
    return False


def wait_for_start(process: subprocess.Popen[Any], log: Path, started: Callable[[], bool]) -> None:
    """Waits for a server whose output goes to `log`.

    Raises:
        GraphError: it ended, or took too long; its last words.
    """
    deadline = time.monotonic() + START_S
    while not started():
        if process.poll() is not None or time.monotonic() > deadline:
            raise GraphError(f"the graph did not start: {log.read_text(errors='replace')[-2_000:]}")
        time.sleep(PAUSE_S)
