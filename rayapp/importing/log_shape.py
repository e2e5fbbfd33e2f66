"""What a whole log looks like: its span, its most frequent users and items, ids that are nearly the same, and how many
of its lists have a label. Measured bucket by bucket and added up; the warnings of an import are drawn from it.

Shapes: D distinct ids, P pairs of a list and an item that it showed.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rayapp.contracts.config import Domain
from rayapp.contracts.hashing import hash64_column

SKETCH_IDS: Final = 200_000
"""Distinct ids of a log that are kept at least, if there are so many: those of the smallest hash in every bucket."""
MOST_FREQUENT: Final = 50
SAMPLE_LISTS: Final = 2000
"""Lists of a bucket whose labels are looked for."""
NO_LIMIT: Final = np.iinfo(np.uint64).max


@dataclass(slots=True)
class IdSketch:
    """Some of the distinct ids, each with the hash of what is left of it without case, blanks and leading zeros.

    Of ids that are the same but for these either all are kept or none.
    """

    form_by_id: dict[str, int] = field(default_factory=dict)
    limit: int = int(NO_LIMIT)
    """Ids with a greater hash may be left out."""

    @classmethod
    def of(cls, ids: pa.ChunkedArray | pa.Array, most: int = SKETCH_IDS) -> "IdSketch":
        """At most so many of the ids."""
        unique = pc.drop_null(pc.unique(ids)).cast(pa.string())
        bare = pc.replace_substring_regex(pc.utf8_lower(unique), r"\s+", "")
        form_D = hash64_column(pc.replace_substring_regex(bare, "^0+([0-9]+)$", r"\1"))
        order = np.argsort(form_D, kind="stable")
        limit = int(form_D[order[most]]) - 1 if len(order) > most else int(NO_LIMIT)
        kept = np.flatnonzero(form_D <= limit)
        return cls(dict(zip(unique.take(pa.array(kept)).to_pylist(), form_D[kept].tolist(), strict=True)), limit)

    def __iadd__(self, other: "IdSketch") -> "IdSketch":
        self.limit = min(self.limit, other.limit)
        both = self.form_by_id | other.form_by_id
        self.form_by_id = {name: form for name, form in both.items() if form <= self.limit}
        return self

    @property
    def alike(self) -> list[tuple[str, ...]]:
        """Ids that differ only by case, blanks or leading zeros."""
        groups: dict[int, list[str]] = {}
        for name, form in self.form_by_id.items():
            groups.setdefault(form, []).append(name)
        return [tuple(sorted(names)) for names in groups.values() if len(names) > 1]


@dataclass(slots=True)
class LogShape:
    """Of the accepted rows of a log; a shown item counts as a row."""

    rows: int = 0
    first_ms: int | None = None
    last_ms: int | None = None
    users: IdSketch = field(default_factory=IdSketch)
    items: IdSketch = field(default_factory=IdSketch)
    rows_by_user: Counter[str] = field(default_factory=Counter)
    """Of the most frequent."""
    rows_by_item: Counter[str] = field(default_factory=Counter)
    lists_looked_at: int = 0
    lists_with_label: int = 0

    @classmethod
    def of(
        cls, user_id: pa.ChunkedArray, item_id: pa.ChunkedArray, timestamp_ms: NDArray[np.int64], num_buckets: int
    ) -> "LogShape":
        """Of one bucket. `item_id` may be longer than the others: of lists it holds all their items."""
        most = max(SKETCH_IDS // num_buckets, 1)
        users, rows_by_user = _counted(user_id)
        items, rows_by_item = _counted(item_id)
        return cls(
            rows=len(item_id),
            first_ms=int(timestamp_ms.min()) if len(timestamp_ms) else None,
            last_ms=int(timestamp_ms.max()) if len(timestamp_ms) else None,
            users=IdSketch.of(users, most),
            items=IdSketch.of(items, most),
            rows_by_user=rows_by_user,
            rows_by_item=rows_by_item,
        )

    def __iadd__(self, other: "LogShape") -> "LogShape":
        self.rows += other.rows
        self.first_ms = min((ms for ms in (self.first_ms, other.first_ms) if ms is not None), default=None)
        self.last_ms = max((ms for ms in (self.last_ms, other.last_ms) if ms is not None), default=None)
        self.users += other.users
        self.items += other.items
        self.rows_by_user += other.rows_by_user
        self.rows_by_item += other.rows_by_item
        self.lists_looked_at += other.lists_looked_at
        self.lists_with_label += other.lists_with_label
        return self


def _counted(ids: pa.ChunkedArray) -> tuple[pa.Array, Counter[str]]:
    """`(distinct ids, how often the most frequent of them occur)`."""
    counted = pc.value_counts(ids)
    counts_D = counted.field("counts").to_numpy(zero_copy_only=False)
    top = np.argsort(-counts_D, kind="stable")[:MOST_FREQUENT]
    return counted.field("values"), Counter({counted[int(n)]["values"].as_py(): int(counts_D[n]) for n in top})


def count_labelled(requests: pa.Table, events: Sequence[pa.Table], domain: Domain) -> tuple[int, int]:
    """`(lists looked at, those with a label)`: with a flag that is set, or with an action of a head on a shown item,
    of the same user and within the attribution time. `events` are all of the same bucket."""
    sample = requests.slice(0, SAMPLE_LISTS)
    given = [labels is not None for labels in sample["labels"].to_pylist()]
    flagged_N = np.array([bool(labels) and any(labels) for labels in sample["labels"].to_pylist()], bool)
    if all(given) or not sample.num_rows:
        return sample.num_rows, int(flagged_N.sum())
    size_N = pc.list_value_length(sample["item_ids"]).to_numpy(zero_copy_only=False)
    row_P = np.repeat(np.arange(sample.num_rows), size_N)
    pairs = pd.DataFrame(
        {
            "user": hash64_column(sample["user_id"])[row_P],
            "item": hash64_column(pc.list_flatten(sample["item_ids"])),
            "shown_ms": sample["timestamp_ms"].to_numpy()[row_P],
            "list": row_P,
        }
    )
    positive = pa.array(sorted({action for head in domain.heads for action in head.actions}), pa.string())
    found = np.zeros(sample.num_rows, bool)
    for part in events:
        acted = part.filter(pc.is_in(part["action"], value_set=positive))
        frame = _acted(acted)
        joined = pairs.merge(frame[frame["user"].isin(pairs["user"])], on=["user", "item"])
        wait_ms = joined["acted_ms"] - joined["shown_ms"]
        found[joined["list"][(wait_ms >= 0) & (wait_ms <= domain.attribution_ms)]] = True
    return sample.num_rows, int((found | flagged_N).sum())


def _acted(events: pa.Table) -> pd.DataFrame:
    columns: dict[str, Any] = {
        "user": hash64_column(events["user_id"]),
        "item": hash64_column(events["item_id"]),
        "acted_ms": events["timestamp_ms"].to_numpy(),
    }
    return pd.DataFrame(columns)
