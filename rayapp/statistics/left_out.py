"""A user's own counts of some actions, to be taken out of the counts of all: what they would be without those actions.

The counts of items, of categories and of everything stay: there one user's action is one among many.

Shapes: E events of one user, R histories, O observations, G of them that are gone, S half-lives, A counted kinds.
"""

import numpy as np
from numpy.typing import NDArray

from rayapp.contracts.config import Domain
from rayapp.contracts.schema import FIRST_ACTION_ID
from rayapp.features.sequence import History
from rayapp.features.statistic_columns import Floats
from rayapp.features.statistics import DecayedCounts, Grid, Increments, Ints


def gone_counts(history: History, keep_RE: NDArray[np.bool_], domain: Domain, step: int) -> Floats:
    """`[R, S, A]`: what the user's counts at the beginning of `step` hold of the actions that each history leaves out.

    As when they are counted, an action counts once for an item, a head and a step: it is gone when all of its kind are.
    What was committed late counts in a later step than this assumes, with a little more weight.
    """
    grid, num_kinds = Grid.of(domain), 1 + len(domain.heads)
    step_E = grid.step(history.received_at_ms_E)
    names = np.array([*[""] * FIRST_ACTION_ID, *domain.vocabulary.names])
    parts = [Increments.none(num_kinds)]
    for kind, head in enumerate(domain.heads, 1):
        counted = np.flatnonzero(np.isin(names, head.actions)[history.action_E] & (step_E < step))
        number_E, step_O = _observations(history.item_hash_E[counted], step_E[counted])
        left_RO = np.zeros((len(keep_RE), len(step_O)), bool)
        for r, keep_E in enumerate(keep_RE[:, counted]):
            left_RO[r, number_E[keep_E]] = True
        r_G, o_G = np.nonzero(~left_RO)
        count_GA = np.zeros((len(r_G), num_kinds), np.int64)
        count_GA[:, kind] = 1
        parts.append(Increments(r_G.astype(np.uint64), step_O[o_G], count_GA))
    gone = DecayedCounts.of(grid, Increments.added_up(parts))  # rounded as the user's counts are
    return gone.at(np.arange(len(keep_RE), dtype=np.uint64), np.full(len(keep_RE), step))


def _observations(item_hash_E: NDArray[np.uint64], step_E: Ints) -> tuple[Ints, Ints]:
    """The observation that each action belongs to, and the step of each observation."""
    key_2E = np.stack([item_hash_E, step_E.astype(np.uint64)])
    key_2O, number_E = np.unique(key_2E, axis=1, return_inverse=True)
    return number_E.reshape(-1), key_2O[1].astype(np.int64)
