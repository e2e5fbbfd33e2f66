"""What a report needs of an arm's users: sums and sums of products over users, and no row of any user.

Sums of buckets add up, since a user is in one bucket. Sums of days add up to those of any span of days.

Shapes: U users, P periods, Q groups of periods, H heads.
"""

from dataclasses import dataclass, fields
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import PlainSerializer, PlainValidator

Sums = Annotated[
    NDArray[np.float64],
    PlainValidator(lambda values: np.array(values, np.float64)),
    PlainSerializer(lambda sums: sums.astype(np.int64).tolist()),  # whole numbers, so that they are short
]


@dataclass(frozen=True, slots=True)
class Moments:
    """Of one arm. n is what a user was shown in a period, x how many of these had a head's label."""

    n_P: Sums
    x_PH: Sums
    nn_PP: Sums
    """Sum over users of n in one period times n in another."""
    xn_PPH: Sums
    """x in the first period times n in the second."""
    xx_PPH: Sums

    @staticmethod
    def zero(num_periods: int, num_heads: int) -> "Moments":
        P, H = num_periods, num_heads
        return Moments(np.zeros(P), np.zeros((P, H)), np.zeros((P, P)), np.zeros((P, P, H)), np.zeros((P, P, H)))

    @staticmethod
    def of_users(n_UP: NDArray[Any], x_UPH: NDArray[Any]) -> "Moments":
        n_UP, x_UPH = n_UP.astype(np.float64), x_UPH.astype(np.float64)
        x_HUP = np.moveaxis(x_UPH, 2, 0)
        return Moments(
            n_UP.sum(0),
            x_UPH.sum(0),
            n_UP.T @ n_UP,
            np.moveaxis(x_HUP.transpose(0, 2, 1) @ n_UP, 0, 2),
            np.moveaxis(x_HUP.transpose(0, 2, 1) @ x_HUP, 0, 2),
        )

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Moments)))

    def grouped(self, member_QP: NDArray[np.bool_]) -> "Moments":
        """The same for spans: `member_QP[q, p]` says whether span q holds period p. Spans may overlap."""
        member = member_QP.astype(np.float64)

        def both(sums_PP: Sums) -> Sums:
            last_PP = np.moveaxis(sums_PP, (0, 1), (-2, -1))
            return np.moveaxis(member @ last_PP @ member.T, (-2, -1), (0, 1))

        pairs = [both(sums) for sums in (self.nn_PP, self.xn_PPH, self.xx_PPH)]
        return Moments(member @ self.n_P, member @ self.x_PH, *pairs)


def cumulative(num_periods: int) -> NDArray[np.bool_]:
    """Spans that each end with a period and begin with the first one."""
    return np.tri(num_periods, dtype=bool)
