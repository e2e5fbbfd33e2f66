"""Candidate sources over one item table: nearest to recent likes, popular, newest; seen items left out.

Shapes: N items (row 0 is "absent"), E vector width, S seed items.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from rayapp.features.attributes import ABSENT
from rayapp.features.sequence import History
from rayapp.model.item_table import ItemTable
from rayapp.schema import ActionKind, Vocabulary

NUM_SEEDS = 10
"""Recent positive actions that each look for their neighbours."""
NEAREST_SHARE, NEWEST_SHARE = 0.6, 0.1


@dataclass(frozen=True, slots=True)
class Candidates:
    """Items to rank, without repeats, and the sources that proposed each."""

    item_ids: list[str]
    sources: list[str]


class CandidateIndex:
    """Answers for one item table. Cheap to make: two sorts."""

    def __init__(self, table: ItemTable) -> None:
        self.table = table
        created = np.array([np.iinfo(np.int64).min, *(item["created_at_ms"] for item in table.items)])
        self._popular = np.argsort(-table.likes_N, kind="stable")
        # Likes break ties, so that a catalogue dated by year does not call its oldest rows new.
        self._newest = np.lexsort((-table.likes_N, -created))

    def fetch(self, history: History, vocabulary: Vocabulary, num_candidates: int) -> Candidates:
        """Up to `num_candidates` items. `history` is the user's, newest first; without likes the feed is popular."""
        rows = self.table.rows_of(history.item_hash_E)
        taken = {ABSENT, *rows.tolist()}
        liked = rows[vocabulary.flags(kind=ActionKind.POSITIVE)[history.action_E] & (rows != ABSENT)]
        seeds = list(dict.fromkeys(liked.tolist()))[:NUM_SEEDS]
        plan: list[tuple[str, Iterator[int], int]] = []
        if seeds:
            plan.append(("nearest", self._nearest(np.array(seeds)), int(NEAREST_SHARE * num_candidates)))
        plan.append(("newest", iter(self._newest.tolist()), int(NEWEST_SHARE * num_candidates)))
        plan.append(("popular", iter(self._popular.tolist()), num_candidates))
        chosen: dict[int, str] = {}
        for source, found, quota in plan:
            fresh = (row for row in found if row not in taken)
            for row in islice(fresh, min(quota, num_candidates - len(chosen))):
                chosen[row] = source
                taken.add(row)
        return Candidates([self.table.item(row)["item_id"] for row in chosen], list(chosen.values()))

    def _nearest(self, seed_S: NDArray[np.int64]) -> Iterator[int]:
        """Rows by turns: the best neighbour of the newest seed, of the next, and so on round."""
        similarity_SN = self.table.vectors_NE[seed_S] @ self.table.vectors_NE.T
        order_SN = np.argsort(-similarity_SN, axis=1, kind="stable")
        return _unique(order_SN.T.ravel().tolist())


def _unique(rows: Iterable[int]) -> Iterator[int]:
    seen: set[int] = set()
    for row in rows:
        if row not in seen:
            seen.add(row)
            yield row
