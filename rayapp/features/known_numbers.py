"""Numbers that any server knows at a request without counting: ages, gaps, the hour, the day of the week, and what the
user did with an item before.

They reach the ranker and never the encoder: what is encoded of a user must not change while the user does nothing.

Shapes: R requests, N candidates of all of them, L history rows (newest first), T item table rows, W category places,
K = 3 kinds of action, F numbers.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rayapp.contracts.config import DAY_MS, HOUR_MS, MINUTE_MS, Domain
from rayapp.contracts.hashing import places_of
from rayapp.contracts.schema import PAD, ActionKind
from rayapp.contracts.zones import local_ms
from rayapp.features.attributes import ABSENT
from rayapp.features.statistic_columns import LOG_SCALE

Ints = NDArray[np.int64]
Numbers = NDArray[np.float32]
KINDS: Final = (ActionKind.POSITIVE, ActionKind.NEGATIVE, ActionKind.NEUTRAL)
NUM_ITEM: Final = 2 + 3 * len(KINDS)
NUM_USER: Final = 8 + len(KINDS)


@dataclass(frozen=True, slots=True)
class ItemFacts:
    """What is read of an item table; row ABSENT is all zeros."""

    created_ms_T: Ints
    category_TW: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Acts:
    """What the users of some requests did last, on rows of an item table."""

    action_RL: NDArray[np.uint8]
    row_RL: Ints
    timestamp_ms_RL: Ints
    now_ms_R: Ints

    def item_numbers(self, facts: ItemFacts, domain: Domain, request_N: Ints, row_N: Ints) -> Numbers:
        """`[N, F]`: the item's age and whether it is known; for each kind, the user's actions on the item's categories
        (mean over them), their share of the actions of that kind, and the actions on the item itself."""
        age_ms_N = (self.now_ms_R[request_N] - facts.created_ms_T[row_N]).clip(0)
        known_N = row_N != ABSENT
        columns = [np.log1p(age_ms_N / HOUR_MS) / LOG_SCALE * known_N, known_N]
        category_NW = facts.category_TW[row_N]
        has_NW = category_NW != ABSENT
        num_values_N = np.maximum(has_NW.sum(axis=1), 1)
        num_codes, num_rows = int(facts.category_TW.max(initial=0)) + 1, len(facts.created_ms_T)
        code_NW = request_N[:, None] * num_codes + category_NW
        for kind in KINDS:
            request_A, row_A = self._of_kind(kind, domain)
            category_AW = facts.category_TW[row_A]
            code_A = (request_A[:, None] * num_codes + category_AW)[category_AW != ABSENT]
            on_N = (_times(code_A, code_NW) * has_NW).sum(axis=1) / num_values_N
            same_N = _times(request_A * num_rows + row_A, request_N * num_rows + row_N) * known_N
            total_N = np.bincount(request_A, minlength=len(self.now_ms_R))[request_N]
            columns += [np.log1p(on_N) / LOG_SCALE, on_N / np.maximum(total_N, 1), np.log1p(same_N)]
        return np.stack(columns, axis=1).astype(np.float32)

    def user_numbers(self, domain: Domain, *, reads_weekday: bool) -> Numbers:
        """`[R, F]`: the time since the last action and since the last positive one, and whether there was any; the hour
        and the day of the week in the domain's time zone, each as a point on a circle; the number of actions of each
        kind.

        A gap below the domain's training mask reads as the mask: training hides what is newer. Without `reads_weekday`
        the day of the week is zeros.
        """
        positive_RL = domain.vocabulary.flags(kind=ActionKind.POSITIVE)[self.action_RL]
        columns = []
        for which_RL in (self.action_RL != PAD, positive_RL):
            any_R = which_RL.any(axis=1)
            last_R = np.where(which_RL, self.timestamp_ms_RL, 0).max(axis=1, initial=0)
            gap_ms_R = np.maximum(self.now_ms_R - last_R, domain.time_mask_ms)
            columns += [np.log1p(gap_ms_R / MINUTE_MS) / LOG_SCALE * any_R, any_R]
        local_ms_R = local_ms(self.now_ms_R, domain.time_zone)
        columns += _on_circle(local_ms_R % DAY_MS / DAY_MS)
        columns += [column_R * reads_weekday for column_R in _on_circle(local_ms_R // DAY_MS % 7 / 7)]
        for kind in KINDS:
            of_kind_RL = domain.vocabulary.flags(kind=kind)[self.action_RL]
            columns.append(np.log1p(of_kind_RL.sum(axis=1)) / LOG_SCALE)
        return np.stack(columns, axis=1).astype(np.float32)

    def _of_kind(self, kind: ActionKind, domain: Domain) -> tuple[Ints, Ints]:
        """Request and row of each action of the kind on an item that the table holds."""
        of_kind_RL = domain.vocabulary.flags(kind=kind)[self.action_RL] & (self.row_RL != ABSENT)
        request_A, place_A = np.nonzero(of_kind_RL)
        return request_A, self.row_RL[request_A, place_A]


def _on_circle(turn_R: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """The two coordinates of the point after so much of a turn."""
    angle_R = 2 * np.pi * turn_R
    return [np.sin(angle_R), np.cos(angle_R)]


def _times(key_A: Ints, key_Q: Ints) -> Ints:
    """How often each wanted key, in any shape, is among `key_A`."""
    if not len(key_A):
        return np.zeros(key_Q.shape, np.int64)
    key_P, count_P = np.unique(key_A, return_counts=True)
    place_Q, known_Q = places_of(key_P, key_Q)
    return np.where(known_Q, count_P[place_Q], 0)
