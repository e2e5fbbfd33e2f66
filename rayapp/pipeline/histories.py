"""A bucket's events -> each user's history: sorted, without copies, as aligned lists.

Shapes: E event rows and U users of a bucket, R requests.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rayapp.contracts.config import Domain
from rayapp.contracts.hashing import hash64_column, places_of
from rayapp.contracts.schema import EVENT_SCHEMA, columns_of
from rayapp.features.sequence import History, Ints
from rayapp.pipeline.search import group_numbers, group_starts, search_in_groups
from rayapp.root.logs import coded, codes, sort_log

HISTORY_COLUMNS: Final = ("event_hash", "item_id", "action", "timestamp_ms", "received_at_ms", "commit_seq")
HISTORY_SCHEMA: Final = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        *(pa.field(name, pa.large_list(EVENT_SCHEMA.field(name).type), nullable=False) for name in HISTORY_COLUMNS),
    ]
)
"""One row per user; the lists are aligned and ordered by (timestamp_ms, event_hash)."""

TEXT_COLUMNS: Final = ("user_id", "item_id", "action")
EVENT_COLUMNS: Final = coded(columns_of(EVENT_SCHEMA, "user_id", *HISTORY_COLUMNS), TEXT_COLUMNS)
"""What histories need of an event."""
LABEL_COLUMNS: Final = EVENT_COLUMNS.append(EVENT_SCHEMA.field("request_id"))
"""What histories and labels need of an event."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """A bucket's events as one table, sorted by (user, timestamp, event hash)."""

    events: pa.Table
    user_E: NDArray[np.int64]
    """Number of the user, in the order of the rows."""

    @staticmethod
    def of(events: pa.Table) -> "Bucket":
        starts = group_starts(events["user_id"])
        return Bucket(events, group_numbers(starts, events.num_rows))

    def filter(self, keep_E: NDArray[np.bool_]) -> "Bucket":
        return self if keep_E.all() else Bucket.of(self.events.filter(pa.array(keep_E)))


def history_of(events: Any, domain: Domain) -> History:
    """Event columns (a table, or arrays by name) as the point-in-time cut reads them."""
    return History(
        events["timestamp_ms"].to_numpy(),
        events["received_at_ms"].to_numpy(),
        events["commit_seq"].to_numpy(),
        events["event_hash"].to_numpy(),
        hash64_column(events["item_id"]),
        domain.vocabulary.ids_of(events["action"]),
    )


@dataclass(frozen=True, slots=True)
class UserHistories:
    """A bucket's events, and where those of each request's user lie."""

    history: History
    """Sorted by (user, timestamp, event hash)."""
    user_E: Ints
    """Number of the user, in the order of the rows."""
    hash_U: NDArray[np.uint64]
    """Sorted; `number_U` are the users' numbers."""
    number_U: Ints
    start_U: Ints
    """First row of user number u, and one more for the end."""

    @staticmethod
    def of(bucket: Bucket, domain: Domain) -> "UserHistories":
        users = bucket.events["user_id"]
        starts = group_starts(users)
        hash_U = hash64_column(users.take(starts)) if len(starts) else np.zeros(0, np.uint64)
        order = np.argsort(hash_U)
        history = history_of(bucket.events, domain)
        return UserHistories(history, bucket.user_E, hash_U[order], order, np.r_[starts, len(history)])

    def ranges(self, user_hash_R: NDArray[np.uint64], timestamp_ms_R: Ints) -> tuple[Ints, Ints]:
        """Rows `[start, end)` of each request's user that happened before the request."""
        num_users = len(self.hash_U)
        if not num_users:
            return np.zeros(len(user_hash_R), np.int64), np.zeros(len(user_hash_R), np.int64)
        place_R, known_R = places_of(self.hash_U, user_hash_R)
        user_R = np.where(known_R, self.number_U[place_R], num_users)
        end_R = search_in_groups(self.user_E, self.history.timestamp_ms_E, user_R, timestamp_ms_R, "left")
        return self.start_U[user_R], end_R


def merge(tables: Sequence[pa.Table], schema: pa.Schema) -> Bucket:
    """Sorted; of the copies of one event of one user the first that arrived stays.

    A single file is so already: the import drops copies before it writes.
    """
    if len(tables) <= 1:
        return Bucket.of(sort_log(tables[0]) if tables else schema.empty_table())
    events = pa.concat_tables(tables)
    event_E = events["event_hash"].to_numpy()
    if len(np.unique(event_E)) < len(event_E):
        frame = pd.DataFrame(
            {
                "user": codes(events["user_id"]),
                "event": event_E,
                "received": events["received_at_ms"].to_numpy(),
            }
        ).sort_values("received", kind="stable")
        kept = frame.index[~frame.duplicated(["user", "event"])]
        events = events.take(pa.array(np.sort(kept.to_numpy())))
    return Bucket.of(sort_log(events))


def in_sequence(bucket: Bucket, domain: Domain) -> Bucket:
    """Only the events that take one of a user's places."""
    flags = domain.vocabulary.flags(in_sequence=True)
    return bucket if flags[1:].all() else bucket.filter(flags[domain.vocabulary.ids_of(bucket.events["action"])])


def latest(bucket: Bucket, length: int) -> Bucket:
    """Each user's newest rows that hold `length` places, ties at the edge included."""
    return newest(bucket, np.ones(len(bucket.user_E), bool), length)


def newest(bucket: Bucket, counted_E: NDArray[np.bool_], length: int) -> Bucket:
    """Rows with fewer than `length` counted places after their millisecond.

    Rows of one millisecond are kept or dropped together, and rows on one item at one millisecond are one place.
    """
    if not bucket.events.num_rows:
        return bucket
    time_E, user_E = bucket.events["timestamp_ms"].to_numpy(), bucket.user_E
    tie_E = same_millisecond(user_E, time_E)
    place_E = counted_E.copy()
    if tie_E.any():
        place_E &= ~repeated_place(bucket, tie_E)
    group_E = np.cumsum(~tie_E) - 1
    up_to_G = np.cumsum(np.bincount(group_E, weights=place_E)).astype(np.int64)
    last_of_user = np.r_[np.flatnonzero(np.diff(user_E)), len(user_E) - 1]
    newer_E = up_to_G[group_E[last_of_user]][user_E] - up_to_G[group_E]
    return bucket.filter(newer_E < length)


def same_millisecond(user_E: NDArray[np.int64], time_E: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether a row has the user and the time of the row before it."""
    return np.asarray(np.r_[False, (np.diff(user_E) == 0) & (np.diff(time_E) == 0)][: len(user_E)])


def repeated_place(bucket: Bucket, tie_E: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Rows on an item that an earlier row of the same millisecond is on already. Only ties are looked at."""
    repeated_E = np.zeros(len(tie_E), bool)
    involved = np.flatnonzero(tie_E | np.r_[tie_E[1:], False])
    some = bucket.events.select(["item_id", "timestamp_ms"]).take(pa.array(involved))
    frame = pd.DataFrame(
        {"u": bucket.user_E[involved], "t": some["timestamp_ms"].to_numpy(), "i": hash64_column(some["item_id"])}
    )
    repeated_E[involved] = frame.duplicated().to_numpy()
    return repeated_E


def as_lists(bucket: Bucket) -> pa.Table:
    """One row per user, HISTORY_SCHEMA but for texts by number; the lists share one set of offsets, so they are
    aligned by construction."""
    events = bucket.events
    starts = group_starts(events["user_id"])
    offsets = pa.array(np.r_[starts, events.num_rows].astype(np.int64))
    lists = [pa.LargeListArray.from_arrays(offsets, events[name].combine_chunks()) for name in HISTORY_COLUMNS]
    users = events["user_id"].combine_chunks().take(pa.array(starts))
    return pa.Table.from_arrays([users, *lists], names=HISTORY_SCHEMA.names)


def write_histories(path: Path, histories: pa.Table) -> None:
    """Writes one bucket's histories; hashes and times gain nothing from a dictionary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    repeated = ["user_id", *(f"{name}.list.element" for name in ("item_id", "action", "commit_seq"))]
    encoding = {f"{name}.list.element": "DELTA_BINARY_PACKED" for name in ("timestamp_ms", "received_at_ms")}
    pq.write_table(
        histories,
        path,
        compression="zstd",
        use_dictionary=repeated,
        column_encoding=encoding,
        write_statistics=False,
        store_schema=False,  # texts by number are how they came, not what the file is
    )
