"""Findings from the facts of one machine or of all nodes. Nothing here looks at a machine."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from rayapp.launch.node import ENVIRONMENT
from rayapp.launch.runtime import FEWEST_FILES, MANY_FILES
from rayapp.preflight.findings import Finding
from rayapp.preflight.node import SHM, NodeFacts

LEAST_DISK_SHARE: Final = 0.05
"""Ray stops to take objects on a disk that is fuller."""
LEAST_DISK_BYTES: Final = 5 * 10**9
LEAST_SHM_BYTES: Final = 10**9
MOST_CLOCK_S: Final = 0.5
"""An action that comes from the future is not in the user's sequence until then."""


def of_machine(nodes: Sequence[NodeFacts]) -> Iterable[Finding]:
    """`haproxy`, `shared memory`, `file handles`, `disk`, `ports` of each machine."""
    for node in nodes:
        if node.haproxy is None:
            yield Finding(
                "haproxy",
                node.node,
                "`rayapp-haproxy` is missing, so HAProxy's own pages would be open to everybody",
                "Install rayapp's wheel in the environment that starts Ray",
            )
        if node.shm_bytes < LEAST_SHM_BYTES:
            yield Finding(
                "shared memory",
                node.node,
                f"{SHM} holds {node.shm_bytes / 10**6:,.0f} MB, and Ray would spill to disk",
                "Give it a third of the memory: `docker run --shm-size`, or an emptyDir of medium Memory",
            )
        if node.files < MANY_FILES:
            yield Finding(
                "file handles",
                node.node,
                f"a process may open {node.files:,} files, and a busy replica needs more",
                f"Raise the hard limit to {MANY_FILES:,}: /etc/security/limits.conf, or LimitNOFILE of the unit",
                "error" if node.files < FEWEST_FILES else "warning",
            )
        for place, (free, total) in node.disks.items():
            if free < LEAST_DISK_BYTES or free < LEAST_DISK_SHARE * total:
                yield Finding(
                    "disk",
                    node.node,
                    f"{place} has {free / 10**9:,.1f} GB left of {total / 10**9:,.1f}",
                    "Free some, or grow the disk; below 5 % Ray takes no objects",
                )
        for port in node.busy_ports:
            yield Finding(
                "ports",
                node.node,
                f"something listens on port {port} already",
                f"Stop it (`ss -ltnp 'sport = {port}'` says what it is), or choose another port",
            )


def of_root(nodes: Sequence[NodeFacts], root: str) -> Iterable[Finding]:
    """`root`: visible and writable on each node."""
    for node in nodes:
        if not node.sees_probe:
            yield Finding(
                "root",
                node.node,
                f"{root} is not the directory that the head sees under this name",
                "Mount the shared file system there on this node too",
            )
        elif node.root_error is not None:
            yield Finding(
                "root",
                node.node,
                f"{root} can't be written ({node.root_error})",
                "Give the user that Ray runs as the right to write there",
            )


def of_store(nodes: Sequence[NodeFacts]) -> Iterable[Finding]:
    """`store`: it answers each node."""
    for node in nodes:
        if node.store_error is not None:
            yield Finding(
                "store", node.node, node.store_error, "Let this node reach the store, with the URL of RAYAPP_STORE"
            )


def of_cluster(nodes: Sequence[NodeFacts]) -> Iterable[Finding]:
    """`versions`, `profile`, `token`: the same on all nodes, and as a cluster needs them."""
    for name in sorted({name for node in nodes for name in node.versions}):
        usual, _ = Counter(node.versions[name] for node in nodes).most_common(1)[0]
        for node in nodes:
            if node.versions[name] != usual:
                yield Finding(
                    "versions",
                    node.node,
                    f"{name} is {node.versions[name]} here and {usual} on most nodes",
                    "Install the same wheel with the same constraints.txt on every node, then restart Ray there",
                )
    for node in nodes:
        for name, value in ENVIRONMENT.items():
            if name != "RAY_AUTH_MODE" and node.environment.get(name) != value:
                yield Finding(
                    "profile",
                    node.node,
                    f"Ray runs with {name}={node.environment.get(name, '')}, not {value}",
                    "Start it with `rayapp ray start`, which sets it, and without a value of your own",
                )
        if node.environment.get("RAY_AUTH_MODE") != "token":
            yield Finding(
                "token",
                node.node,
                "Ray's ports answer everybody here: RAY_AUTH_MODE is not `token`",
                "Start Ray with `rayapp ray start` on this node",
            )
        yield from of_token(node.token_mode, node.node)


def of_token(mode: int | None, where: str) -> Iterable[Finding]:
    """`token`: there, and readable to its owner alone."""
    if mode is None:
        yield Finding(
            "token", where, "there is no token in ~/.ray/auth_token", "Make one: `ray get-auth-token --generate`"
        )
    elif mode & 0o077:
        yield Finding(
            "token",
            where,
            f"others on this machine may read the token (mode {mode:04o})",
            "`chmod 600 ~/.ray/auth_token`",
        )


def of_clocks(clocks: Iterable[tuple[str, float, float]]) -> Iterable[Finding]:
    """`clocks`: of each node how far its clock is ahead of ours, and how far that may be off, in seconds."""
    for node, ahead_s, error_s in clocks:
        if abs(ahead_s) > MOST_CLOCK_S + error_s:
            word = "ahead of" if ahead_s > 0 else "behind"
            yield Finding(
                "clocks",
                node,
                f"its clock is {abs(ahead_s):,.1f} s {word} the head's",
                "Run chrony or systemd-timesyncd on every node",
            )
