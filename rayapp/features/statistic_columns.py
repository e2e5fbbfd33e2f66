"""From decayed counts to the numbers that a ranker reads: which ones, and how they are made.

Rates are log-odds above those of everybody at the time, drawn towards a prior: an item's towards its categories', a
category's and a user's towards everybody's. So an item that nobody knows reads as its categories do.

Shapes: N items or users, V values of categories of all items, S half-lives, A = H + 1 counted kinds (impressions, then
each head's actions), G heads that are read, K columns.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rayapp.contracts.config import Domain
from rayapp.features.item_values import mean_by_item
from rayapp.features.statistics import Ints

Floats = NDArray[np.float64]
MAX_HEADS: Final = 3
"""With four half-lives, 48 columns in all: the positive head first, then the domain's order."""
PRIOR_STRENGTH: Final = 20.0
"""A rate counts as many impressions of its prior besides its own."""
LOWEST_RATE: Final = 1e-6
LOG_SCALE: Final = 5.0
"""Logarithms of counts are divided by it, so that columns are of one size."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Which numbers a domain's statistics have."""

    num_half_lives: int
    kinds_G: tuple[int, ...]
    """Places in A of the heads that are read; the positive one first."""

    @staticmethod
    def of(domain: Domain) -> "Columns":
        positive = domain.head_names.index(domain.positive_head)
        heads = [positive, *(h for h in range(len(domain.heads)) if h != positive)]
        return Columns(len(domain.half_lives_ms), tuple(h + 1 for h in heads[:MAX_HEADS]))

    @property
    def num_item(self) -> int:
        """Log-odds of the item and of its categories, and logarithms of its impressions and positive actions."""
        return self.num_half_lives * (2 * len(self.kinds_G) + 2)

    @property
    def num_user(self) -> int:
        """Log-odds of the user, and the logarithm of the impressions."""
        return self.num_half_lives * (len(self.kinds_G) + 1)

    def positives(self, s: int) -> int:
        """The item's column of positive actions that fade with the s-th half-life."""
        return self.num_half_lives * (2 * len(self.kinds_G) + 1) + s

    def without_lists(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """`[K]` of an item and of a user: the numbers that mean something where no list was ever shown."""
        return np.arange(self.num_item) >= self.positives(0), np.zeros(self.num_user, bool)

    @property
    def widths(self) -> tuple[int, int]:
        """Numbers of an item and of a user."""
        return self.num_item, self.num_user

    def item(self, own_NSA: Floats, value_VSA: Floats, number_V: Ints, all_NSA: Floats) -> NDArray[np.float32]:
        """`[N, K]`. `value_VSA`: counts of each value of item `number_V`; `all_NSA`: of everything at each item's
        moment."""
        average_NG, shown_anything_N = self._average(all_NSA)
        prior_NSG = np.broadcast_to(average_NG[:, None], (len(own_NSA), self.num_half_lives, len(self.kinds_G)))
        value_VSG = _log_odds(self._rates(value_VSA, prior_NSG[number_V]))
        flat = (len(own_NSA), self.num_half_lives * len(self.kinds_G))
        of_values = mean_by_item(value_VSG.reshape(len(value_VSG), flat[1]), number_V, flat[0])
        of_values_NSG = of_values.reshape(prior_NSG.shape)
        without_N = np.bincount(number_V, minlength=flat[0]) == 0
        base_NSG = _log_odds(prior_NSG)
        of_values_NSG = np.where(without_N[:, None, None], base_NSG, of_values_NSG)
        own_NSG = _log_odds(self._rates(own_NSA, _rate(of_values_NSG)))
        told_N11 = shown_anything_N[:, None, None]
        parts = [
            ((own_NSG - base_NSG) * told_N11).reshape(flat),
            ((of_values_NSG - base_NSG) * told_N11).reshape(flat),
            np.log1p(own_NSA[:, :, 0]) / LOG_SCALE,
            np.log1p(own_NSA[:, :, self.kinds_G[0]]) / LOG_SCALE,
        ]
        return np.concatenate(parts, axis=1, dtype=np.float32)

    def user(self, own_NSA: Floats, all_NSA: Floats) -> NDArray[np.float32]:
        """`[N, K]`."""
        average_NG, shown_anything_N = self._average(all_NSA)
        prior_NSG = np.broadcast_to(average_NG[:, None], (len(own_NSA), self.num_half_lives, len(self.kinds_G)))
        above_NSG = _log_odds(self._rates(own_NSA, prior_NSG)) - _log_odds(prior_NSG)
        above_NSG = above_NSG * shown_anything_N[:, None, None]
        flat = above_NSG.reshape(len(own_NSA), self.num_half_lives * len(self.kinds_G))
        return np.concatenate([flat, np.log1p(own_NSA[:, :, 0]) / LOG_SCALE], axis=1, dtype=np.float32)

    def _average(self, all_NSA: Floats) -> tuple[Floats, NDArray[np.bool_]]:
        """Rates of everybody over the longest half-life, and whether anything was shown at all: a log without lists has
        counts and no rates."""
        shown_N, acted_NG = all_NSA[:, -1, 0], all_NSA[:, -1, list(self.kinds_G)]
        return (acted_NG + 0.5) / (np.maximum(shown_N[:, None], acted_NG) + 1.0), shown_N > 0

    def _rates(self, count_NSA: Floats, prior_NSG: Floats) -> Floats:
        shown_NS1, acted_NSG = count_NSA[:, :, :1], count_NSA[:, :, list(self.kinds_G)]
        # What was done without a list of ours, as in a search, must not make a rate above 1.
        return np.asarray(
            (acted_NSG + PRIOR_STRENGTH * prior_NSG) / (np.maximum(shown_NS1, acted_NSG) + PRIOR_STRENGTH)
        )


def _log_odds(rate: Floats) -> Floats:
    """Of rates in any shape; those of 0 and 1 are kept finite."""
    rate = rate.clip(LOWEST_RATE, 1 - LOWEST_RATE)
    return np.asarray(np.log(rate / (1 - rate)))


def _rate(log_odds: Floats) -> Floats:
    """The inverse of `_log_odds`."""
    return np.asarray(1 / (1 + np.exp(-log_odds)))
