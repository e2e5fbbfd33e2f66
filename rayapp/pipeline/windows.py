"""Windows: the immutable pair (histories, requests) that training reads, built bucket by bucket with Ray Data.

A request keeps its list of items, its labels, and the range of its user's history rows to look at; the sequence
itself is cut when a batch is collated, by `features.sequence`, the same function that the server calls.

Shapes: E history rows, R requests, C items of a request, H heads.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray.data
from numpy.typing import NDArray

from rayapp.config import Domain
from rayapp.pipeline.logs import read_bucket
from rayapp.publish import Manifest, PublishError, log_manifest, publish_directory
from rayapp.root import read_root
from rayapp.schema import EVENT_SCHEMA, fingerprint

HISTORY_COLUMNS = ("event_hash", "item_id", "action", "timestamp_ms", "received_at_ms", "commit_seq")
HISTORY_SCHEMA = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        *(pa.field(name, pa.large_list(EVENT_SCHEMA.field(name).type), nullable=False) for name in HISTORY_COLUMNS),
    ]
)
"""One row per user; the lists are aligned and ordered by (timestamp_ms, event_hash)."""

WINDOW_REQUEST_SCHEMA = pa.schema(
    [
        pa.field("request_id", pa.string(), nullable=False),
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("timestamp_ms", pa.int64(), nullable=False),
        pa.field("watermark", pa.int64()),
        pa.field("item_ids", pa.large_list(pa.string()), nullable=False),
        pa.field("labels", pa.large_list(pa.float32()), nullable=False),  # items x heads, row by row
        pa.field("start", pa.int64(), nullable=False),  # rows [start, end) of the bucket's histories, laid end to end
        pa.field("end", pa.int64(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class Window:
    """Requests of `[since_ms, until_ms)` and how much history to keep for them."""

    since_ms: int
    until_ms: int
    history_length: int = 100
    """The longest sequence a model may ask for."""


def build(root: Path, name: str, window: Window, domain: Domain) -> Manifest:
    """Publishes `windows/<name>` from the logs.

    Raises:
        PublishError: it exists already, or the log has no request in that time.
    """
    _, num_buckets = read_root(root)
    _, events = log_manifest(root / "events")
    _, requests = log_manifest(root / "requests")

    def write(directory: Path) -> Manifest:
        def one_bucket(batch: dict[str, NDArray[Any]]) -> pa.Table:
            rows = [_write_bucket(root, directory, int(b), window, domain, events, requests) for b in batch["item"]]
            return pa.Table.from_pylist(rows)

        stats = (
            ray.data.from_items(list(range(num_buckets)), override_num_blocks=num_buckets)
            .map_batches(one_bucket, batch_size=None)
            .take_all()
        )
        stats.sort(key=lambda row: row["bucket"])
        if not sum(row["requests"] for row in stats):
            raise PublishError(
                f"window {name}: the request log holds no request in [{window.since_ms}, {window.until_ms})"
            )
        return {
            "since_ms": window.since_ms,
            "until_ms": window.until_ms,
            "history_length": window.history_length,
            "vocabulary": domain.vocabulary.to_json(),
            "heads": list(domain.head_names),
            "schema": fingerprint((HISTORY_SCHEMA, WINDOW_REQUEST_SCHEMA)),
            "buckets": stats,
        }

    return publish_directory(root / "windows" / name, write)


def _write_bucket(
    root: Path, directory: Path, bucket: int, window: Window, domain: Domain, events: Manifest, requests: Manifest
) -> dict[str, int]:
    """Builds and writes one bucket's pair; the retry of a failed task writes the same files again."""
    histories, cut = build_bucket(
        read_bucket(root, "events", bucket, events), read_bucket(root, "requests", bucket, requests), window, domain
    )
    for kind, table in (("histories", histories), ("requests", cut)):
        path = directory / kind / f"bucket={bucket:04d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path, compression="zstd")
    num_events = int(pc.sum(pc.list_value_length(histories["action"])).as_py() or 0)
    return {"bucket": bucket, "users": histories.num_rows, "events": num_events, "requests": cut.num_rows}


def build_bucket(events: pa.Table, requests: pa.Table, window: Window, domain: Domain) -> tuple[pa.Table, pa.Table]:
    """The pair of one bucket. Pure: tables in, tables out."""
    requests = _in_window(requests, window)
    events = events.filter(pc.field("timestamp_ms") < window.until_ms + domain.attribution_ms)
    events = _sort_and_deduplicate(events)
    in_sequence = domain.vocabulary.flags(in_sequence=True)[domain.vocabulary.ids_of(events["action"])]
    history = events.filter(pa.array(in_sequence)).filter(pc.field("timestamp_ms") < window.until_ms)
    history = history.filter(pc.is_in(history["user_id"], value_set=requests["user_id"].combine_chunks()))
    history = _keep_recent(history, requests, window, domain.time_mask_ms)
    start_R, end_R = _ranges(history, requests, window.history_length, domain.time_mask_ms)
    cut = pa.table(
        {
            **{name: requests[name] for name in ("request_id", "user_id", "timestamp_ms", "watermark", "item_ids")},
            "labels": _labels(requests, events, domain),
            "start": start_R,
            "end": end_R,
        },
        schema=WINDOW_REQUEST_SCHEMA,
    )
    return _as_lists(history), cut


def _in_window(requests: pa.Table, window: Window) -> pa.Table:
    time = pc.field("timestamp_ms")
    requests = requests.filter((time >= window.since_ms) & (time < window.until_ms))
    first = pd.Series(requests["request_id"].to_numpy(zero_copy_only=False)).drop_duplicates().index
    return requests.take(pa.array(np.asarray(first))).sort_by([("user_id", "ascending"), ("timestamp_ms", "ascending")])


def _sort_and_deduplicate(events: pa.Table) -> pa.Table:
    """By user, time and event hash; of the copies of one event the first that arrived stays."""
    events = events.sort_by([("user_id", "ascending"), ("event_hash", "ascending"), ("received_at_ms", "ascending")])
    if events.num_rows:
        user, event = _codes(events["user_id"]), events["event_hash"].to_numpy()
        fresh = np.ones(len(event), bool)
        fresh[1:] = (np.diff(user) != 0) | (event[1:] != event[:-1])
        events = events.filter(pa.array(fresh))
    return events.sort_by([("user_id", "ascending"), ("timestamp_ms", "ascending"), ("event_hash", "ascending")])


def _labels(requests: pa.Table, events: pa.Table, domain: Domain) -> pa.Array:
    """The request row's own labels where the source carries them; else 1 where an action of the head followed, on that
    item of that request, within the attribution time."""
    num_heads = len(domain.heads)
    offsets = requests["item_ids"].combine_chunks().offsets.to_numpy()
    offsets = offsets - offsets[0] if len(offsets) else np.zeros(1, np.int64)
    request_N = np.repeat(np.arange(requests.num_rows), np.diff(offsets))
    shown = pd.DataFrame(
        {
            "request_id": requests["request_id"].to_numpy(zero_copy_only=False)[request_N],
            "item_id": pc.list_flatten(requests["item_ids"]).to_numpy(zero_copy_only=False),
        }
    )
    shown_ms = requests["timestamp_ms"].to_numpy()[request_N]
    label_NH = np.zeros((len(shown), num_heads), np.float32)
    acted = (
        events.filter(pc.is_valid(events["request_id"]))
        .select(["request_id", "item_id", "action", "timestamp_ms"])
        .to_pandas(types_mapper=None)
    )
    shown["row"] = np.arange(len(shown))
    joined = shown.merge(acted, on=["request_id", "item_id"], how="inner")
    row = joined["row"].to_numpy()
    lag = joined["timestamp_ms"].to_numpy(np.int64) - shown_ms[row]
    in_time = (lag >= 0) & (lag <= domain.attribution_ms)
    for h, head in enumerate(domain.heads):
        label_NH[row[in_time & joined["action"].isin(head.actions).to_numpy()], h] = 1.0
    given = pc.is_valid(requests["labels"]).to_numpy()
    if given.any():
        label_NH[given[request_N]] = pc.list_flatten(requests["labels"]).to_numpy().reshape(-1, num_heads)
    return pa.LargeListArray.from_arrays(pa.array(offsets * num_heads, pa.int64()), pa.array(label_NH.ravel()))


def _keep_recent(history: pa.Table, requests: pa.Table, window: Window, mask_ms: int) -> pa.Table:
    """Drops rows that no request of the window can reach: of those before it, each user keeps the newest ones that
    hold `history_length` places which every request of that user is certain to see."""
    if not history.num_rows:
        return history
    no_watermark = np.iinfo(np.int64).max
    asked = pd.DataFrame(
        {
            "user": requests["user_id"].to_numpy(zero_copy_only=False),
            "watermark": pc.fill_null(requests["watermark"], no_watermark).to_numpy(),
        }
    )
    asked["by_arrival"] = asked["watermark"] == no_watermark
    rule = asked.groupby("user").agg({"watermark": "min", "by_arrival": "any"})
    rule = rule.reindex(history["user_id"].to_numpy(zero_copy_only=False))
    time_E = history["timestamp_ms"].to_numpy()
    certain_E = (
        (time_E < window.since_ms - mask_ms)
        & (history["commit_seq"].to_numpy() <= rule["watermark"].to_numpy())
        & (~rule["by_arrival"].to_numpy(bool) | (history["received_at_ms"].to_numpy() <= window.since_ms))
    )
    # G groups of rows of one user at one millisecond; a group is kept or dropped whole, so no place is cut in two.
    user_E = _codes(history["user_id"])
    group_E = np.cumsum(np.r_[False, (np.diff(user_E) != 0) | (np.diff(time_E) != 0)])
    place_E = certain_E.copy()
    seen = pd.DataFrame({"group": group_E[certain_E], "item": _codes(history["item_id"])[certain_E]}).duplicated()
    place_E[certain_E] = ~seen.to_numpy()
    up_to_G = np.cumsum(np.bincount(group_E, weights=place_E))
    up_to_user = np.zeros(user_E[-1] + 1)
    np.maximum.at(up_to_user, user_E, up_to_G[group_E])
    newer_E = up_to_user[user_E] - up_to_G[group_E]
    return history.filter(pa.array((time_E >= window.since_ms) | (newer_E < window.history_length)))


def _ranges(
    history: pa.Table, requests: pa.Table, length: int, mask_ms: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`[start, end)` per request: all its user's rows before it, back to where `length` places are certain, even
    when training hides the newest `mask_ms`.

    A row is certain for a request when it and all older rows had arrived. Only then can a count of places taken
    from the order of time be trusted; where late rows make that impossible the range simply reaches further back.
    """
    num_requests = requests.num_rows
    start_R, end_R = np.zeros(num_requests, np.int64), np.zeros(num_requests, np.int64)
    if not history.num_rows or not num_requests:
        return start_R, end_R
    names = history["user_id"].to_numpy(zero_copy_only=False)
    bounds = np.r_[0, np.flatnonzero(names[1:] != names[:-1]) + 1, len(names)]
    rows_of = {names[a]: (int(a), int(b)) for a, b in pairwise(bounds)}
    time_E, received_E = history["timestamp_ms"].to_numpy(), history["received_at_ms"].to_numpy()
    seq_E, item_E = history["commit_seq"].to_numpy(), _codes(history["item_id"])
    time_R = requests["timestamp_ms"].to_numpy()
    watermark_R = pc.fill_null(requests["watermark"], -1).to_numpy()
    users = requests["user_id"].to_numpy(zero_copy_only=False)
    user_bounds = np.r_[0, np.flatnonzero(users[1:] != users[:-1]) + 1, num_requests]
    for ra, rb in pairwise(user_bounds):
        if users[ra] not in rows_of:
            continue
        a, b = rows_of[users[ra]]
        end = np.searchsorted(time_E[a:b], time_R[ra:rb], side="left")
        arrived = np.searchsorted(np.maximum.accumulate(received_E[a:b]), time_R[ra:rb], side="right")
        committed = np.searchsorted(np.maximum.accumulate(seq_E[a:b]), watermark_R[ra:rb], side="right")
        unmasked = np.searchsorted(time_E[a:b], time_R[ra:rb] - mask_ms, side="left")
        certain = np.minimum(unmasked, np.where(watermark_R[ra:rb] < 0, arrived, committed))
        places = np.r_[0, np.cumsum(_new_places(time_E[a:b], item_E[a:b]))]
        start = np.searchsorted(places, places[certain] - length, side="right") - 1
        start = np.searchsorted(time_E[a:b], time_E[a + np.clip(start, 0, b - a - 1)], side="left")  # whole ties
        start_R[ra:rb], end_R[ra:rb] = a + np.minimum(start, end), a + end
    return start_R, end_R


def _new_places(time_E: NDArray[np.int64], item_E: NDArray[np.int64]) -> NDArray[np.int64]:
    """1 for the first row of each (millisecond, item): how many places a prefix of the rows takes at the least."""
    return np.asarray(~pd.DataFrame({"t": time_E, "i": item_E}).duplicated().to_numpy(), np.int64)


def _codes(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Consecutive integers for the values of a column, in order of first appearance."""
    coded = column.combine_chunks().dictionary_encode()
    codes: NDArray[np.int64] = coded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return codes


def _as_lists(history: pa.Table) -> pa.Table:
    """One row per user; the lists share one set of offsets, so they are aligned by construction."""
    names = history["user_id"].to_numpy(zero_copy_only=False)
    starts = np.flatnonzero(np.r_[True, names[1:] != names[:-1]]) if len(names) else np.zeros(0, np.int64)
    offsets = pa.array(np.r_[starts, len(names)].astype(np.int64))
    lists = [pa.LargeListArray.from_arrays(offsets, history[name].combine_chunks()) for name in HISTORY_COLUMNS]
    return pa.Table.from_arrays([pa.array(names[starts].tolist(), pa.string()), *lists], schema=HISTORY_SCHEMA)
