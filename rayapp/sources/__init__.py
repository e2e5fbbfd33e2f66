"""Public and made-up data sets, written as files that a domain file reads. One module each.

A source knows nothing of models or of where its rows will be stored.
"""

from dataclasses import dataclass
from pathlib import Path

from rayapp.contracts.errors import RayappError


class SourceError(RayappError):
    """The data can't be had; the message says why and what to do instead."""


@dataclass(frozen=True, slots=True)
class Files:
    """What a source wrote: files or directories, one for each kind of rows."""

    events: Path
    requests: Path
    items: Path
    users: Path | None = None
