"""The histories of one bucket's users, read once, and where each request's share of them lies.

Shapes: E events of a bucket, U users of a bucket, R requests.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rayapp.contracts.config import Domain
from rayapp.contracts.hashing import hash64_column
from rayapp.contracts.schema import Vocabulary
from rayapp.features.sequence import NO_WATERMARK, History
from rayapp.pipeline.histories import EVENT_COLUMNS, history_of
from rayapp.pipeline.log_view import LogView
from rayapp.pipeline.search import group_starts, search_in_groups
from rayapp.store import DEFAULT_CAP

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class BucketHistories:
    """All events of a bucket, sorted by (user, timestamp, event hash)."""

    history: History
    user_E: Ints
    """Number of the user, in the order of the rows."""
    user_hash_U: NDArray[np.uint64]
    """Sorted; `number_U` are the users' numbers."""
    number_U: Ints
    start_U: Ints
    """First row of user number u, and one more for the end."""

    def ranges(self, user_hash_R: NDArray[np.uint64], timestamp_ms_R: Ints) -> tuple[Ints, Ints]:
        """Rows `[start, end)` of each request's user that happened before the request."""
        num_users = len(self.user_hash_U)
        if not num_users:
            return np.zeros(len(user_hash_R), np.int64), np.zeros(len(user_hash_R), np.int64)
        place_R = np.searchsorted(self.user_hash_U, user_hash_R).clip(max=num_users - 1)
        known_R = self.user_hash_U[place_R] == user_hash_R
        user_R = np.where(known_R, self.number_U[place_R], num_users)
        end_R = search_in_groups(self.user_E, self.history.timestamp_ms_E, user_R, timestamp_ms_R, "left")
        return self.start_U[user_R], end_R

    def as_stored(self, start: int, end: int, timestamp_ms: int, watermark: int, vocabulary: Vocabulary) -> History:
        """What the sequence store would have held of rows `[start, end)`: those that had arrived, newest first, at
        most DEFAULT_CAP that take a place of the sequence and as many that do not."""
        rows = np.arange(end - 1, start - 1, -1)
        if watermark == NO_WATERMARK:
            rows = rows[self.history.received_at_ms_E[rows] <= timestamp_ms]
        else:
            rows = rows[self.history.commit_seq_E[rows] <= watermark]
        takes_place = vocabulary.flags(in_sequence=True)[self.history.action_E[rows]]
        kept = np.where(takes_place, np.cumsum(takes_place), np.cumsum(~takes_place)) <= DEFAULT_CAP
        return self.history.take(rows[kept])


def read_histories(view: LogView, bucket: int, domain: Domain) -> BucketHistories:
    """Raises:
    PublishError: a file of the log is damaged or gone.
    """
    read = view.events(bucket, EVENT_COLUMNS)
    events = read.events
    history = history_of(events, domain)
    starts = group_starts(events["user_id"])
    user_hash_U = hash64_column(events["user_id"].combine_chunks().take(starts)) if len(starts) else _none()
    order = np.argsort(user_hash_U)
    return BucketHistories(history, read.user_E, user_hash_U[order], order, np.r_[starts, events.num_rows])


def _none() -> NDArray[np.uint64]:
    return np.zeros(0, np.uint64)
