"""`retrainings.jsonl`: when which alias got which newly trained model. Experiments are compared before and after each.

One JSON line each: `{"at_ms": …, "aliases": {"champion": {"from": "…", "to": "…"}}, "window": "…"}`.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rayapp.contracts.json_values import from_json, to_json
from rayapp.root.places import RETRAINING_LOG
from rayapp.root.publish import PublishError


@dataclass(frozen=True, slots=True)
class Retraining:
    """One run that trained the model of every line anew."""

    at_ms: int
    """When the aliases were moved."""
    aliases: dict[str, dict[str, str | None]]
    """alias -> `{"from": version or None, "to": version}`"""
    window: str
    """The newest window that was trained on, the same one for all."""


def record_retraining(root: Path, at_ms: int, aliases: Mapping[str, tuple[str | None, str]], window: str) -> None:
    """Appends one retraining; durable when this returns. `aliases`: alias -> (version before, version now)."""
    moved = {alias: {"from": before, "to": now} for alias, (before, now) in aliases.items()}
    line = json.dumps(to_json(Retraining(at_ms, moved, window))) + "\n"
    descriptor = os.open(root / RETRAINING_LOG, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"  # by a power cut
        os.write(descriptor, ("\n" * torn + line).encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if not size:  # a new file is durable once its directory is
        directory = os.open(root, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)


def read_retrainings(root: Path) -> list[Retraining]:
    """All of them, by time. The end of an append that a power cut tore was never acknowledged and is passed over.

    Raises:
        PublishError: a line of JSON that is no retraining; its number.
    """
    path = root / RETRAINING_LOG
    found = []
    for number, line in enumerate(path.read_text().splitlines() if path.exists() else [], 1):
        try:
            values = json.loads(line)
        except ValueError:
            continue
        try:
            found.append(from_json(Retraining, values))
        except ValueError as error:
            raise PublishError(f"{path} line {number} is no retraining ({error}); mend it or take it out") from None
    return sorted(found, key=lambda retraining: retraining.at_ms)
