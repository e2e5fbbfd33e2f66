"""Aliases: the names under which models are live. Moving one is a single atomic file replacement."""

import re
from pathlib import Path
from typing import Any, Final

from rayapp.root.places import ALIASES, MODELS
from rayapp.root.publish import PublishError, exclusive, read_json, write_json

CHAMPION: Final = "champion"
BASELINE: Final = "no-sequence"
"""The same ranker without the sequence, kept beside the champion for comparison: of what the user did it reads counts
by kind, item and category."""
SHADOW: Final = "shadow"
"""A model that scores live requests and is logged, never shown."""
NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,31}")


def read_aliases(root: Path) -> dict[str, str]:
    """Alias -> model version, for every alias."""
    return {alias: str(record["version"]) for alias, record in _records(root).items()}


def read_champion(root: Path) -> str:
    """The version of the champion.

    Raises:
        PublishError: there is none yet.
    """
    aliases = read_aliases(root)
    if CHAMPION not in aliases:
        raise PublishError(f"{root} has no champion; train one: `rayapp train --root {root}`")
    return aliases[CHAMPION]


def read_previous(root: Path) -> dict[str, str]:
    """Alias -> the version it pointed at before, where there was one: what a rollback goes to."""
    return {alias: str(r["previous"]) for alias, r in _records(root).items() if r.get("previous")}


def _records(root: Path) -> dict[str, dict[str, Any]]:
    return {p.stem: read_json(p) for p in sorted((root / ALIASES).glob("*.json"))}


def resolve(root: Path, name: str) -> str:
    """The version that an alias or a version names.

    Raises:
        PublishError: it is neither.
    """
    version = read_aliases(root).get(name, name)
    _check_exists(root, version)
    return version


def promote(root: Path, alias: str, version: str) -> str | None:
    """Points `alias` at `version` and returns what it pointed at before. A running graph follows within seconds.

    Pointing it where it points already changes nothing, so a rollback still goes to the model before.

    Raises:
        PublishError: no such model, the alias has an impossible name, or another process moves one right now.
    """
    if not NAME.fullmatch(alias):
        raise PublishError(f"{alias!r} can't be an alias: use a-z, 0-9, _ and -, 32 characters at most")
    _check_exists(root, version)
    with exclusive(root / ALIASES, "moving an alias"):
        previous = read_aliases(root).get(alias)
        if previous != version:
            write_json(root / ALIASES / f"{alias}.json", {"version": version, "previous": previous})
    return previous


def rollback(root: Path, alias: str = CHAMPION) -> tuple[str, str]:
    """Points `alias` at what it pointed at before and returns `(from, to)`. A second rollback goes forward again.

    Raises:
        PublishError: there is nothing before, it was removed, or another process moves an alias right now.
    """
    if alias not in read_aliases(root):
        raise PublishError(f"there is no alias {alias!r}; `rayapp models list` shows what is")
    with exclusive(root / ALIASES, "moving an alias"):
        version, previous = read_aliases(root)[alias], read_previous(root).get(alias)
        if previous is None:
            raise PublishError(f"{alias} was never moved, so there is nothing to go back to; `rayapp models promote`")
        _check_exists(root, previous)
        write_json(root / ALIASES / f"{alias}.json", {"version": previous, "previous": version})
    return version, previous


def _check_exists(root: Path, version: str) -> None:
    if not (root / MODELS / version / "manifest.json").exists():
        raise PublishError(f"there is no model {version!r} in {root / MODELS}; `rayapp models list` shows what is")
