"""The numbers that a ranker read of the statistics, as the request log keeps them.

Shapes: P items shown, K columns.
"""

import base64

import numpy as np
from numpy.typing import NDArray

from rayapp.features.statistic_columns import Columns

LOGGED = np.dtype("<f2")
"""Half precision: three digits, which is more than a count is worth."""


def pack(item_PK: NDArray[np.float32], user_K: NDArray[np.float32]) -> str:
    """Base64 of the items' rows, then the user's, in half precision."""
    return base64.b64encode(np.concatenate([item_PK.ravel(), user_K]).astype(LOGGED).tobytes()).decode()


def unpack(text: str, num_items: int, columns: Columns) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """`(items' [P, K], user's [K])`.

    Raises:
        ValueError: these are not numbers of so many items.
    """
    number = np.frombuffer(base64.b64decode(text, validate=True), LOGGED).astype(np.float32)
    split = num_items * columns.num_item
    if len(number) != split + columns.num_user:
        raise ValueError(f"{len(number)} numbers are not those of {num_items} items and a user")
    return number[:split].reshape(num_items, columns.num_item), number[split:]
