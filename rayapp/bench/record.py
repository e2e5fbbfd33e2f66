"""Writes a result as the documentation keeps it: the command, the commit, the hardware, the date, the table."""

import os
import platform
import subprocess
import time
from pathlib import Path

from rayapp.publish import PublishError


def commit() -> str:
    """The commit of the working tree this runs from, marked when it holds changes; "unknown" outside of git."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            check=False,
            cwd=Path(__file__).parent,
        )
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def record(path: Path, title: str, command: str, body: str) -> None:
    """Replaces `path` with the result.

    Raises:
        PublishError: it can't be written.
    """
    text = (
        f"# {title}\n\nCommand: `{command}`\\\nDate: {time.strftime('%Y-%m-%d')}, commit {commit()}\\\n"
        f"Hardware: {os.cpu_count()} {platform.machine()} cores, no GPU; Python {platform.python_version()}\n\n{body}\n"
    )
    try:
        path.write_text(text)
    except OSError as error:
        raise PublishError(f"{path} can't be written ({error.strerror})") from None
