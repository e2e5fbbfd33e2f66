"""Ports of this machine: whether one is free, and which ones a graph has for itself.

Several graphs may run on one machine. Everything that a graph listens on, beside the port that its user chose, lies in
a block of ports that no other graph has: two graphs that shared a port would answer for each other, with another root's
model, and take each other's events.
"""

import contextlib
import ipaddress
import random
import socket
from collections.abc import Iterator
from typing import Final

from rayapp.contracts.errors import RayappError

LOOPBACK: Final = "127.0.0.1"
EVERY_INTERFACE: Final = "0.0.0.0"  # noqa: S104
FREE: Final = range(20_000, 30_000)
"""For whoever needs any port: Ray's workers, Linux's outgoing connections and our blocks have others."""
BLOCKS: Final = range(30_000, 32_000, 100)
"""First ports of the blocks, one a graph."""


class GraphError(RayappError):
    """The graph could not be started; the message says why."""


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
    try:
        _bind(port, host)
    except OSError as error:
        raise GraphError(
            f"port {port} on {host} can't be used ({error.strerror}); stop what uses it or choose another --port"
        ) from None


@contextlib.contextmanager
def held_port(port: int, host: str = LOOPBACK) -> Iterator[None]:
    """Keeps other graphs from the port while this one starts and runs: HAProxy and Serve share theirs
    (SO_REUSEPORT), so two that start at once would both have it.

    Raises:
        GraphError: somebody has the port.
    """
    check_port(port, host)
    with _mark(f"port-{host}-{port}") as ours:
        if not ours:
            raise GraphError(f"another graph is starting on port {port} of {host}; choose another --port")
        yield


@contextlib.contextmanager
def own_block() -> Iterator[range]:
    """A block of ports on which nothing listens, for this process alone until the end.

    Raises:
        GraphError: all are taken.
    """
    for first in random.sample(BLOCKS, len(BLOCKS)):  # the block of a graph that was killed is not the next one's
        block = range(first, first + BLOCKS.step)
        with _mark(f"block-{first}") as ours:
            if ours and all(is_free(port) for port in block):
                yield block
                return
    raise GraphError(f"{len(BLOCKS)} graphs run on this machine, or something else has ports of {BLOCKS}; stop one")


def is_free(port: int) -> bool:
    """Whether nothing listens on the port, on any address."""
    with contextlib.suppress(OSError):
        _bind(port, "")
        return True
    return False


def free_port() -> int:
    """A port that nobody uses at this moment, and that no outgoing connection gets meanwhile."""
    for port in random.sample(FREE, 100):
        if is_free(port):
            return port
    raise GraphError(f"no port of {FREE.start} to {FREE.stop - 1} is free")


def _bind(port: int, host: str) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))


@contextlib.contextmanager
def _mark(name: str) -> Iterator[bool]:
    """Whether this process has the name on this machine; no other gets it meanwhile. It goes with the process, however
    that ends: it is a socket without a file."""
    with socket.socket(socket.AF_UNIX) as mark:
        try:
            mark.bind(f"\0rayapp-{name}")
        except OSError:
            yield False
        else:
            yield True
