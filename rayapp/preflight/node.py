"""What one machine says of itself, as plain values. Runs on the machine that is asked about, a node or this one."""

import os
import platform
import resource
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from rayapp.launch.node import ENVIRONMENT
from rayapp.launch.ports import is_free
from rayapp.launch.runtime import haproxy_path
from rayapp.store import StoreError

PACKAGES: Final = ("ray", "rayapp", "torch")
HAPROXY: Final = "RAY_SERVE_HAPROXY_BINARY_PATH"
SHM: Final = Path("/dev/shm")  # noqa: S108
RAY_FILES: Final = Path("/tmp")  # noqa: S108
"""Where Ray keeps logs and what it spills."""
PROBE: Final = ".preflight"


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """One machine as its own process sees it."""

    node: str
    versions: dict[str, str]
    environment: dict[str, str]
    """What it has of `ENVIRONMENT`, and the path of HAProxy."""
    haproxy: str | None
    """A program that is `rayapp-haproxy` and can be run."""
    token_mode: int | None
    """Permission bits of the token's file; None without one."""
    sees_probe: bool
    """Whether a file that the asking machine wrote into the root is there, with the same content."""
    root_error: str | None
    """Why nothing can be written there."""
    store_error: str | None
    busy_ports: tuple[int, ...]
    shm_bytes: int
    files: int
    """The most files that a process may be allowed to open."""
    disks: dict[str, tuple[int, int]]
    """Free and all bytes by place."""


def look(node: str, root: str | None, probe: str | None, store_url: str | None, ports: Iterable[int]) -> NodeFacts:
    """This machine's facts; `probe` is what the asking machine wrote into the root."""
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    places = [str(RAY_FILES), *([root] if root and Path(root).is_dir() else [])]
    disks = {place: shutil.disk_usage(place) for place in places}
    shm = os.statvfs(SHM) if SHM.exists() else None
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return NodeFacts(
        node=node,
        versions={"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        environment={name: os.environ[name] for name in (*ENVIRONMENT, HAPROXY) if name in os.environ},
        haproxy=_haproxy(),
        token_mode=token.stat().st_mode & 0o777 if token.exists() else None,
        sees_probe=root is None or probe is None or _read(Path(root, PROBE)) == probe,
        root_error=None if root is None else _why_not_writable(Path(root), node),
        store_error=None if store_url is None else _why_no_store(store_url),
        busy_ports=tuple(port for port in ports if not is_free(port)),
        shm_bytes=shm.f_frsize * shm.f_blocks if shm else 0,
        files=1 << 30 if hard == resource.RLIM_INFINITY else hard,
        disks={place: (usage.free, usage.total) for place, usage in disks.items()},
    )


def clock_s() -> float:
    """This machine's time."""
    return time.time()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def _haproxy() -> str | None:
    named = os.environ.get(HAPROXY)
    if named is None:
        try:
            named = haproxy_path()
        except Exception:  # whatever it is, there is none
            return None
    return named if Path(named).name == "rayapp-haproxy" and os.access(named, os.X_OK) else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None


def _why_not_writable(root: Path, node: str) -> str | None:
    mine = root / f"{PROBE}-{node}-{os.getpid()}"
    try:
        mine.touch()
        mine.unlink()
    except OSError as error:
        return error.strerror or str(error)
    return None


def _why_no_store(url: str) -> str | None:
    from rayapp.store.redis_client import durability_problems

    try:
        durability_problems(url)
    except StoreError as error:
        return str(error)
    return None
