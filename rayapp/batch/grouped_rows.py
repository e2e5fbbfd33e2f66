"""Rows of a file, or of the request log, grouped into the requests that are scored: one user, one moment, some items.

Shapes: N rows, R requests.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rayapp.contracts.config import Domain
from rayapp.contracts.hashing import hash64_column
from rayapp.contracts.schema import attribute_fields
from rayapp.features.requests import offsets
from rayapp.features.sequence import NO_WATERMARK, Ints
from rayapp.root.logs import codes


@dataclass(frozen=True, slots=True)
class GroupedRows:
    """Requests of one part. `rows` are in their order: row n is of request r for offset_R[r] <= n < offset_R[r + 1].

    Where candidates are still to be fetched there is one row a request, without an item.
    """

    rows: pa.Table
    offset_R: Ints
    """R + 1."""
    user_hash_R: NDArray[np.uint64]
    timestamp_ms_R: Ints
    watermark_R: Ints
    context: pa.Table
    statistics_at_ms_R: Ints
    """As of when statistics are read: what was logged or given, else the request's time."""
    logged: pa.Table | None = None
    """Of the request log: `probabilities` and `sequence_hash` of each request."""
    duplicates: int = 0

    def __len__(self) -> int:
        return len(self.user_hash_R)

    @property
    def has_items(self) -> bool:
        return "item_id" in self.rows.column_names

    def request_of_row(self) -> Ints:
        """`[N]`."""
        return np.repeat(np.arange(len(self)), np.diff(self.offset_R))

    def cut(self, piece: slice) -> "GroupedRows":
        """Some neighbouring requests."""
        offset_R = self.offset_R[piece.start : piece.stop + 1]
        size = piece.stop - piece.start
        return GroupedRows(
            self.rows.slice(offset_R[0], offset_R[-1] - offset_R[0]),
            offset_R - offset_R[0],
            self.user_hash_R[piece],
            self.timestamp_ms_R[piece],
            self.watermark_R[piece],
            self.context.slice(piece.start, size),
            self.statistics_at_ms_R[piece],
            None if self.logged is None else self.logged.slice(piece.start, size),
        )

    def with_items(self, item_ids: list[str], sources: list[str], offset_R: Ints) -> "GroupedRows":
        """The same requests, each with the items that were fetched for it."""
        rows = self.rows.take(pa.array(np.repeat(np.arange(len(self)), np.diff(offset_R))))
        rows = rows.append_column("item_id", pa.array(item_ids, pa.string()))
        rows = rows.append_column("source", pa.array(sources, pa.string()))
        return dataclasses.replace(self, rows=rows, offset_R=offset_R)


def group_rows(rows: pa.Table, domain: Domain, as_of_ms: int | None) -> GroupedRows:
    """Rows of one user, moment, watermark, request and context are one request; an item asked twice in one counts
    once, the first row stays. Ordered by user and time."""
    names = set(rows.column_names)
    time_N = _filled(rows, "timestamp_ms", -1 if as_of_ms is None else as_of_ms)
    key = {"user": codes(rows["user_id"]), "time": time_N, "watermark": _filled(rows, "watermark", NO_WATERMARK)}
    if "request_id" in names:
        key["request_id"] = hash64_column(rows["request_id"]).view(np.int64)
    key["statistics"] = _statistics_at(rows, time_N)
    for attribute in domain.context_attributes:
        if attribute.name in names:
            key[attribute.name] = pd.factorize(pd.Series(map(str, rows[attribute.name].to_pylist())))[0]
    frame = pd.DataFrame(key)
    group_N = frame.groupby(list(frame), sort=True).ngroup().to_numpy(np.int64)
    file_N, row_N = (rows[name].to_numpy() for name in ("source_file", "source_row"))
    order = np.lexsort((row_N, file_N, group_N))
    repeated = {"request": group_N[order]}
    if "item_id" in names:
        repeated["item"] = hash64_column(rows["item_id"])[order].view(np.int64)
    kept = order[~pd.DataFrame(repeated).duplicated().to_numpy()]
    group_K = group_N[kept]
    starts = np.flatnonzero(np.r_[True, np.diff(group_K) != 0])
    first_R = kept[starts]
    return GroupedRows(
        rows.take(pa.array(kept)).drop_columns(["source_file", "source_row"]),
        np.r_[starts, len(kept)],
        hash64_column(rows["user_id"].take(pa.array(first_R))),
        time_N[first_R],
        key["watermark"][first_R],
        _context(rows.take(pa.array(first_R)), time_N[first_R], domain),
        key["statistics"][first_R],
        duplicates=len(order) - len(kept),
    )


def group_logged(requests: pa.Table, domain: Domain) -> GroupedRows:
    """The requests of the log as they were served, an item a row with what was logged of it."""
    lists = requests["item_ids"].combine_chunks()
    size_R = pc.list_value_length(lists).to_numpy(zero_copy_only=False).astype(np.int64)
    request_N = np.repeat(np.arange(requests.num_rows), size_R)
    offset_R = offsets(size_R)
    rows = requests.select(["request_id", "user_id", "timestamp_ms"]).take(pa.array(request_N))
    rows = rows.append_column("item_id", pc.list_flatten(lists))
    rows = rows.append_column("position", pa.array((np.arange(len(request_N)) - offset_R[request_N]).astype(np.int32)))
    time_R = requests["timestamp_ms"].to_numpy()
    return GroupedRows(
        rows,
        offset_R,
        hash64_column(requests["user_id"]),
        time_R,
        _filled(requests, "watermark", NO_WATERMARK),
        _context(requests, time_R, domain),
        _statistics_at(requests, time_R),
        requests.select(["probabilities", "sequence_hash"]),
    )


def _filled(rows: pa.Table, name: str, default: int) -> Ints:
    if name not in rows.column_names:
        return np.full(rows.num_rows, default, np.int64)
    return np.asarray(pc.fill_null(rows[name], default).to_numpy(), np.int64)


def _context(rows: pa.Table, time_R: Ints, domain: Domain) -> pa.Table:
    columns = {"timestamp_ms": pa.array(time_R)}
    for field in attribute_fields(domain.context_attributes):
        given = field.name in rows.column_names
        columns[field.name] = rows[field.name].combine_chunks() if given else pa.nulls(rows.num_rows, field.type)
    return pa.table(columns)


def _statistics_at(rows: pa.Table, time_N: Ints) -> Ints:
    at_N = _filled(rows, "statistics_at_ms", -1)
    return np.where(at_N < 0, time_N, at_N)
