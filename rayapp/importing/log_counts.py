"""What an import did, in numbers and examples; the command prints it."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rayapp.contracts.json_values import from_json
from rayapp.importing.log_shape import IdSketch, LogShape
from rayapp.importing.pieces import NO_ROW, RejectedRow
from rayapp.importing.staging import Notes


@dataclass(slots=True)
class LogCounts:
    """What an import did to one log."""

    read: int = 0
    accepted: int = 0
    duplicates: int = 0
    erased: int = 0
    """Rows of users who were erased, passed over."""
    users: int = 0
    days: Counter[str] = field(default_factory=Counter)
    items: int = 0
    """Accepted rows; of requests, shown items."""
    unknown_items: int = 0
    """Those of `items` whose item the catalogue lacks."""
    unknown_item: str = ""
    """One of them."""
    shape: LogShape = field(default_factory=LogShape)
    is_first: bool = False
    """Whether the log was empty before."""


@dataclass(slots=True)
class Summary:
    """What an import found; the command prints it."""

    events: LogCounts = field(default_factory=LogCounts)
    requests: LogCounts = field(default_factory=LogCounts)
    entities: dict[str, dict[str, int]] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, RejectedRow] = field(default_factory=dict)
    """Reason -> one row that was not taken for it."""
    notes: Notes = field(default_factory=Notes)
    items_seen: int = 0
    actions: Counter[str] = field(default_factory=Counter)
    quarantine: Path | None = None
    catalogue_ids: IdSketch = field(default_factory=IdSketch)
    lists_made_of: list[str] = field(default_factory=list)
    """Where the log has no shown lists: the actions that a training makes lists of."""
    warnings: list[str] = field(default_factory=list)
    """What makes the whole of it doubtful."""

    @property
    def quarantined(self) -> int:
        return sum(self.reasons.values())

    def add(self, result: dict[str, Any]) -> None:
        """What a task refused and noted."""
        self.reasons += Counter(result["reasons"])
        for said, row in result["examples"].items():
            self.examples.setdefault(said, from_json(RejectedRow, row))
        if "notes" in result:
            self.notes += from_json(Notes, result["notes"])

    @property
    def most(self) -> str:
        """The reasons for people, most frequent first, each with one value."""
        told = (f"{n:,} × {reason}{self.example(reason)}" for reason, n in self.reasons.most_common(5))
        return "; ".join(told) or "they are empty"

    def example(self, reason: str) -> str:
        """A row of a reason or of a note, as it stands behind it."""
        return _example(self.examples.get(reason) or self.notes.examples.get(reason))


def _example(row: RejectedRow | None) -> str:
    if row is None:
        return ""
    path = Path(row.file)
    # Files in folders like `action=view` are often called alike.
    name = "/".join((*(part for part in path.parts[:-1] if "=" in part), path.name))
    if row.row == NO_ROW:
        return f", as {name}"
    value = f"{row.value!r} in " if row.value else ""
    return f", as {value}row {row.row:,} of {name}"
