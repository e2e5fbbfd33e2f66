"""What a user's history says about taste: the newest likes, older interests apart from them, and what was rejected.

Shapes: E events of the history, N item table rows, L likes.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from rayapp.contracts.schema import ActionKind, Vocabulary
from rayapp.features.attributes import ABSENT
from rayapp.features.sequence import History
from rayapp.model.item_table import ItemTable
from rayapp.retrieval.orders import Rows
from rayapp.retrieval.sources import Tastes

NUM_NEWEST: Final = 10
"""Newest likes that each look for their neighbours."""
NUM_INTERESTS: Final = 5
NUM_HIDDEN: Final = 20
NUM_JUDGED: Final = 20
JUST: Final = 20
"""An item was just hidden while fewer actions of any kind have followed."""
SAME_INTEREST: Final = 0.6
"""Likes whose vectors have at least this cosine are one interest."""


def tastes_of(table: ItemTable, history: History, vocabulary: Vocabulary) -> Tastes:
    """`history` is the user's, newest first."""
    row_E = table.rows_of(history.item_hash_E)
    has_vector_E = (row_E != ABSENT) & table.vectors_NE[row_E].any(axis=1)
    rejected_E = has_vector_E & vocabulary.flags(kind=ActionKind.NEGATIVE)[history.action_E]
    hidden = _unique(row_E[rejected_E])
    positive_E = has_vector_E & vocabulary.flags(kind=ActionKind.POSITIVE)[history.action_E]
    judged = _unique(row_E[rejected_E | positive_E])[:NUM_JUDGED]
    liked = _unique(row_E[positive_E])
    liked = liked[~np.isin(liked, hidden)]
    older = liked[NUM_NEWEST:]
    interests, just_hidden = older[_medoids(table.vectors_NE[older])], _unique(row_E[:JUST][rejected_E[:JUST]])
    last = row_E[(row_E != ABSENT) & ~vocabulary.flags(kind=ActionKind.NEGATIVE)[history.action_E]]
    return Tastes(liked[:NUM_NEWEST], interests, hidden[:NUM_HIDDEN], just_hidden, judged, last)


def _medoids(vectors_LE: NDArray[np.float32]) -> list[int]:
    """Greedily: the like with the most others near it stands for them all; then the same among those that are left.

    The medoids of a user's groups of items, as in PinnerSage (Pal et al., KDD 2020), with a simpler clustering.
    """
    same_LL = vectors_LE @ vectors_LE.T >= SAME_INTEREST
    medoids: list[int] = []
    while len(medoids) < NUM_INTERESTS and same_LL.any():
        medoid = int(same_LL.sum(axis=1).argmax())
        medoids.append(medoid)
        group_L = same_LL[medoid].copy()
        same_LL[group_L] = False
        same_LL[:, group_L] = False
    return medoids


def _unique(rows: Rows) -> Rows:
    """Each row once, where it stands first."""
    return rows[np.sort(np.unique(rows, return_index=True)[1])]
