"""Public and made-up data sets, written as files that a domain file reads: one module each, listed in `data_sets.py`.

A source knows nothing of models or of where its rows will be stored.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayapp.contracts.errors import RayappError

RunParts = Callable[[int, Callable[[int], dict[str, Any]]], Any]
"""Called with a number of parts and what makes the n-th: makes them all, side by side where it can."""


class SourceError(RayappError):
    """The data can't be had; the message says why and what to do instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """What a data set is asked for. A public one takes the first two alone; None is the size that a made-up one has."""

    seed: int = 0
    original_times: bool = False
    """A public one with the times of its record; else they are moved to end yesterday, where a source can."""
    num_users: int | None = None
    num_items: int | None = None
    num_days: int | None = None


@dataclass(frozen=True, slots=True)
class Files:
    """What a source wrote: files or directories, one for each kind of rows."""

    events: Path
    requests: Path
    items: Path
    users: Path | None = None
