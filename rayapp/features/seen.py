"""Which of a user's actions mean that they have seen an item, for how long, and when it may be shown again.

Shapes: E actions of a history, A action ids, S shown items.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from rayapp.contracts.config import FOREVER, Domain
from rayapp.contracts.schema import FIRST_ACTION_ID, UNKNOWN, ActionKind, Vocabulary
from rayapp.features.sequence import History, Ints

ALWAYS_MS = 1 << 62


@dataclass(frozen=True, slots=True)
class ShownItems:
    """Of one user, the one shown last first."""

    hash_S: NDArray[np.uint64]
    at_ms_S: Ints

    @staticmethod
    def none() -> "ShownItems":
        return ShownItems(np.zeros(0, np.uint64), np.zeros(0, np.int64))


@dataclass(frozen=True, slots=True)
class Seen:
    """A domain's rule."""

    lasts_ms_A: Ints | None
    """By action id: for so long after the action an item is left out of feeds. None: after every action, for good."""
    again_after_ms: int
    """What was seen comes back, where nothing else is left, so long after the last action on it."""
    rest_ms: int = 0
    """What was shown rests so long; 0: not at all."""

    @classmethod
    def of(cls, domain: Domain) -> Self:
        again_after_ms = ALWAYS_MS if domain.seen_again_after_ms is None else domain.seen_again_after_ms
        lasts_ms_A = _lasts(domain.vocabulary, domain.seen_ms) if domain.seen_ms else None
        return cls(lasts_ms_A, again_after_ms, domain.rest_ms)

    def resting(self, shown: ShownItems, now_ms: int) -> NDArray[np.uint64]:
        """Hashes of the items that rest now, the one shown last first."""
        return shown.hash_S[now_ms - shown.at_ms_S < self.rest_ms]

    def counts(self, history: History, now_ms: int) -> NDArray[np.bool_]:
        """`[E]`: the actions whose items must not be shown now."""
        return np.asarray(now_ms < self.until_ms(history.action_E, history.timestamp_ms_E))

    def until_ms(self, action: NDArray[np.uint8], timestamp_ms: Ints) -> Ints:
        """Until when the items of some actions, in any shape, must not be shown."""
        if self.lasts_ms_A is None:
            return np.full(action.shape, ALWAYS_MS)
        return np.asarray(timestamp_ms + self.lasts_ms_A[action])

    def too_lately(self, history: History, now_ms: int) -> NDArray[np.bool_]:
        """`[E]`: the actions whose items must not be shown again yet, even where nothing else is left."""
        return np.asarray(now_ms - history.timestamp_ms_E < self.again_after_ms)


EVERYTHING = Seen(None, 0)
"""Every stored action counts for good, and what was seen comes back where nothing else is left."""


def _lasts(vocabulary: Vocabulary, seen_ms: dict[str, int]) -> Ints:
    """What a domain does not list does not count; but what a user rejected stays out unless it says otherwise."""
    lasts_ms_A = np.zeros(vocabulary.size, np.int64)
    lasts_ms_A[UNKNOWN] = ALWAYS_MS
    lasts_ms_A[vocabulary.flags(kind=ActionKind.NEGATIVE)] = ALWAYS_MS
    for name, lasts_ms in seen_ms.items():
        lasts_ms_A[vocabulary.names.index(name) + FIRST_ACTION_ID] = ALWAYS_MS if lasts_ms == FOREVER else lasts_ms
    return lasts_ms_A
