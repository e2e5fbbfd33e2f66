"""Aliases: the names under which models are live. Moving one is a single atomic file replacement."""

import re
from pathlib import Path
from typing import Final

from rayapp.publish import PublishError, read_json, write_json

CHAMPION: Final = "champion"
BASELINE: Final = "no-sequence"
"""The same ranker without the user's actions, kept beside the champion for comparison."""
NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,31}")


def read_aliases(root: Path) -> dict[str, str]:
    """Alias -> model version, for every alias."""
    return {p.stem: str(read_json(p)["version"]) for p in sorted((root / "aliases").glob("*.json"))}


def promote(root: Path, alias: str, version: str) -> str | None:
    """Points `alias` at `version` and returns what it pointed at before. A running graph follows within seconds.

    Raises:
        PublishError: no such model, or the alias has an impossible name.
    """
    if not NAME.fullmatch(alias):
        raise PublishError(f"{alias!r} can't be an alias: use a-z, 0-9, _ and -, 32 characters at most")
    if not (root / "models" / version / "manifest.json").exists():
        raise PublishError(f"there is no model {version!r} in {root / 'models'}; `rayapp models list` shows what is")
    previous = read_aliases(root).get(alias)
    (root / "aliases").mkdir(exist_ok=True)
    write_json(root / "aliases" / f"{alias}.json", {"version": version, "previous": previous})
    return previous
