"""Retention: old models go, what is live or may be live again stays."""

import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayapp.registry.aliases import read_aliases, read_previous
from rayapp.registry.models import list_models
from rayapp.root.places import VERDICTS


@dataclass(frozen=True, slots=True)
class Pruned:
    """What a pruning removes, or would."""

    models: tuple[str, ...]
    item_tables: tuple[str, ...]


def plan_prune(root: Path, keep: int) -> Pruned:
    """All models but the `keep` newest, those behind an alias, the one each alias would roll back to, the parents of
    these two, and those that can't be read (they may be a newer program's). Item tables go with their last model."""
    rows = list_models(root)
    parent = {row["version"]: row["manifest"].get("parent") for row in rows}
    live = {*read_aliases(root).values(), *read_previous(root).values()}
    kept = live | {parent.get(version) for version in live} | {row["version"] for row in rows[:keep]}
    kept |= {row["version"] for row in rows if row["error"]}
    going = [row for row in rows if row["version"] not in kept]
    tables = _tables(going) - _tables([row for row in rows if row["version"] in kept])
    return Pruned(tuple(row["version"] for row in going), tuple(sorted(tables)))


def _tables(rows: list[dict[str, Any]]) -> set[str]:
    return {row["manifest"]["item_table"] for row in rows if "item_table" in row["manifest"]}


def prune(root: Path, plan: Pruned) -> None:
    """Removes them; each disappears at once and is then deleted. Whoever calls it holds the root's lock."""
    for kind, names in (("models", plan.models), ("item_tables", plan.item_tables)):
        for name in names:
            hidden = root / kind / f".{name}.removed-{uuid.uuid4().hex[:8]}"
            (root / kind / name).rename(hidden)
            shutil.rmtree(hidden)
    for version in plan.models:
        (root / VERDICTS / f"{version}.json").unlink(missing_ok=True)
