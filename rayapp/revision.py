"""Which code this is."""

import subprocess
from pathlib import Path


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
