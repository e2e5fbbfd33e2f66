"""Second half of an import: what was staged for one bucket becomes one sorted file of the log, without duplicates.

Shapes: N staged rows of a bucket, G requests.
"""

import base64
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rayapp.contracts.config import DAY_MS, Domain
from rayapp.contracts.hashing import hash64_column, places_of
from rayapp.contracts.schema import EVENT_SCHEMA, columns_of, request_schema
from rayapp.importing.files import RejectedRow
from rayapp.importing.rows import MAX_LIST_ITEMS
from rayapp.root.erasure import Tombstones, hide
from rayapp.root.logs import codes, log_order, read_bucket, sort_log, take, write_file
from rayapp.root.places import EVENTS, REQUESTS
from rayapp.root.publish import Manifest

CONTENT: Final = ("user_id", "item_id", "action", "timestamp_ms")
SOURCE: Final = ("source_file", "source_row")
CONFLICT: Final = "was seen before with another content"


def settle_events(
    root: Path,
    manifest: Manifest,
    tables: Sequence[pa.Table],
    bucket: int,
    place: tuple[str, str],
    files: Sequence[str],
    erased: Tombstones,
) -> tuple[pa.Table, dict[str, Any], list[RejectedRow]]:
    """`(new events, counts and manifest entry, conflicts)`. `place` is (partition, file name).

    Of the copies of one event the one that arrived first stays; one id with two contents is no copy but a mistake of
    the source, and the later one is told. Rows of erased users are passed over.
    """
    rows = pa.concat_tables([hide(t, erased) for t in tables])
    num_erased = sum(t.num_rows for t in tables) - rows.num_rows
    known = _known_events(root, manifest, bucket, rows)
    keep, duplicates, conflicts = first_of_each(rows, known, files)
    kept = np.flatnonzero(keep)
    keys = rows.select(["user_id", "timestamp_ms", "event_hash"])
    order = log_order(keys if keep.all() else take(keys, kept))
    events = take(rows.select(EVENT_SCHEMA.names), kept if order is None else kept[order]).cast(EVENT_SCHEMA)
    stats = _written(root / EVENTS, place, bucket, events) | {"duplicates": duplicates, "erased": num_erased}
    return events, stats, conflicts


def _known_events(root: Path, manifest: Manifest, bucket: int, rows: pa.Table) -> pa.Table:
    """The log's own rows that share an id with the new ones. Hashes first: mostly there are none."""
    columns = ["event_hash", *CONTENT]
    schema = columns_of(EVENT_SCHEMA, *columns)
    hashes = read_bucket(root, EVENTS, bucket, manifest, columns_of(EVENT_SCHEMA, "event_hash"))
    new = rows["event_hash"].to_numpy()
    if not any(np.isin(t["event_hash"].to_numpy(), new).any() for t in hashes):
        return schema.empty_table()
    tables = read_bucket(root, EVENTS, bucket, manifest, schema)
    return pa.concat_tables([t.filter(pa.array(np.isin(t["event_hash"].to_numpy(), new))) for t in tables])


def first_of_each(
    rows: pa.Table, known: pa.Table, files: Sequence[str]
) -> tuple[NDArray[np.bool_], int, list[RejectedRow]]:
    """`(which rows have a new id, number of copies, rows whose id has another content)`.

    Two users may not share an event id either; that is seen where both fall into one bucket.
    """
    num_known = known.num_rows
    # The log's rows stand first of all: they arrived before anything.
    hash_N = np.r_[known["event_hash"].to_numpy(), rows["event_hash"].to_numpy()]
    ordered = np.sort(hash_N)
    shared = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    involved = np.flatnonzero(np.isin(hash_N, shared)) if len(shared) else np.zeros(0, np.int64)
    new = involved[involved >= num_known] - num_known
    arrival = np.r_[np.full(len(involved) - len(new), np.iinfo(np.int64).min), rows["received_at_ms"].to_numpy()[new]]
    source = [np.r_[np.zeros(len(involved) - len(new), np.int64), rows[name].to_numpy()[new]] for name in SOURCE]
    order = involved[np.lexsort((source[1], source[0], arrival, hash_N[involved]))]
    fresh = np.r_[True, hash_N[order[1:]] != hash_N[order[:-1]]][: len(order)]
    leader = order[np.maximum.accumulate(np.where(fresh, np.arange(len(order)), 0))][~fresh]
    copy = order[~fresh]
    content = pa.concat_tables([known.select(CONTENT), rows.select(CONTENT)])
    a, b = content.take(pa.array(leader)), content.take(pa.array(copy))
    same = np.ones(len(copy), bool)
    for name in CONTENT:
        same &= pc.equal(a[name], b[name]).to_numpy()
    keep = np.ones(rows.num_rows, bool)
    # Of the log's own rows, copies of each other are the compaction's business.
    new_copy = copy >= num_known
    keep[copy[new_copy] - num_known] = False
    odd = rows.select(["event_id", *SOURCE]).take(pa.array(copy[~same & new_copy] - num_known)).to_pylist()
    conflicts = [
        RejectedRow(files[r["source_file"]], r["source_row"], "event_id", CONFLICT, r["event_id"]) for r in odd
    ]
    return keep, int((same & new_copy).sum()), conflicts


def settle_requests(
    root: Path,
    manifest: Manifest,
    impressions: Sequence[pa.Table],
    lists: Sequence[pa.Table],
    bucket: int,
    place: tuple[str, str],
    files: Sequence[str],
    domain: Domain,
    erased: Tombstones,
) -> tuple[pa.Table, dict[str, Any], list[RejectedRow]]:
    """`(new requests, counts and manifest entry, rejections)`; impressions become lists here."""
    given = sum(t.num_rows for t in (*impressions, *lists))
    impressions, lists = ([hide(t, erased) for t in tables] for tables in (impressions, lists))
    schema = request_schema(domain.context_attributes)
    grouped, copies, rejected = (
        group_impressions(pa.concat_tables(impressions), domain, files)
        if impressions
        else (
            schema.empty_table(),
            0,
            [],
        )
    )
    rows = pa.concat_tables([grouped, *(t.select(schema.names).cast(schema) for t in lists)])
    hash_G = hash64_column(rows["request_id"])
    known = read_bucket(root, REQUESTS, bucket, manifest, pa.schema([schema.field("request_id")]))
    seen = np.isin(hash_G, np.concatenate([np.zeros(0, np.uint64), *(hash64_column(t["request_id"]) for t in known)]))
    fresh = ~pd.Series(hash_G).duplicated().to_numpy() & ~seen
    requests = sort_log(rows.filter(pa.array(fresh)))
    stats = _written(root / REQUESTS, place, bucket, requests)
    num_erased = given - sum(t.num_rows for t in (*impressions, *lists))
    return requests, stats | {"duplicates": int((~fresh).sum()) + copies, "erased": num_erased}, rejected


def group_impressions(rows: pa.Table, domain: Domain, files: Sequence[str]) -> tuple[pa.Table, int, list[RejectedRow]]:
    """Impressions of one user and request, in order of position, as one list: `(requests, copies dropped, rejections)`.

    An item twice in a list counts once. The list's time is its first impression's.
    """
    frame = pd.DataFrame(
        {
            "user": codes(rows["user_id"]),
            "request": hash64_column(rows["request_id"]),
            "position": pc.fill_null(rows["position"], np.iinfo(np.int32).max).to_numpy(),
            "timestamp": rows["timestamp_ms"].to_numpy(),
            "file": rows["source_file"].to_numpy(),
            "row": rows["source_row"].to_numpy(),
            "item": codes(rows["item_id"]),
        }
    ).sort_values(["user", "request", "position", "timestamp", "file", "row"])
    copy = frame.duplicated(["user", "request", "item"]).to_numpy()
    frame = frame[~copy]
    size = frame.groupby(["user", "request"], sort=False)["row"].transform("size").to_numpy()
    huge = size > MAX_LIST_ITEMS
    said = f"is shared by more than {MAX_LIST_ITEMS} impressions"
    rejected = [
        RejectedRow(files[f], int(r), "request_id", said)
        for f, r in zip(frame["file"][huge], frame["row"][huge], strict=True)
    ]
    frame = frame[~huge]
    user, request = frame["user"].to_numpy(), frame["request"].to_numpy()
    start_G = np.flatnonzero(np.r_[True, (np.diff(user) != 0) | (request[1:] != request[:-1])]) if len(frame) else user
    rows = rows.take(pa.array(frame.index.to_numpy()))
    offsets = np.r_[start_G, len(frame)].astype(np.int64)
    first = rows.take(pa.array(start_G))
    schema = request_schema(domain.context_attributes)
    columns: dict[str, Any] = {f.name: pa.nulls(len(start_G), f.type) for f in schema}
    columns |= {name: first[name].combine_chunks() for name in schema.names if name in first.column_names}
    columns["timestamp_ms"] = (
        np.minimum.reduceat(frame["timestamp"].to_numpy(), start_G) if len(start_G) else np.zeros(0, np.int64)
    )
    columns["item_ids"] = pa.LargeListArray.from_arrays(pa.array(offsets), rows["item_id"].combine_chunks())
    columns["labels"] = _grouped_labels(rows["labels"], start_G, offsets, len(domain.heads))
    return pa.table(columns, schema=schema), int(copy.sum()), rejected


def _grouped_labels(labels: pa.ChunkedArray, start_G: Any, offsets: NDArray[np.int64], num_heads: int) -> pa.Array:
    """Labels of each list laid end to end; null where an impression of the list has none."""
    given_N = pc.is_valid(labels).to_numpy()
    if not given_N.any():
        return pa.nulls(len(start_G), pa.large_list(pa.float32()))
    filled = pc.fill_null(labels, pa.scalar([0.0] * num_heads, labels.type))
    flat = pc.list_flatten(filled.combine_chunks())
    missing_G = ~np.logical_and.reduceat(given_N, start_G) if len(start_G) else np.zeros(0, bool)
    lists = pa.LargeListArray.from_arrays(pa.array(offsets * num_heads), flat)
    return pc.if_else(pa.array(missing_G), pa.scalar(None, lists.type), lists)


def _written(log: Path, place: tuple[str, str], bucket: int, rows: pa.Table) -> dict[str, Any]:
    entry = write_file(log, place[0], bucket, place[1], rows) if rows.num_rows else None
    days, rows_of_day = np.unique(rows["timestamp_ms"].to_numpy() // DAY_MS, return_counts=True)
    return {
        "accepted": rows.num_rows,
        "users": len(pc.unique(rows["user_id"])),
        "days": {
            time.strftime("%Y-%m-%d", time.gmtime(day * 86_400)): n
            for day, n in zip(days.tolist(), rows_of_day.tolist(), strict=True)
        },
        "entry": entry,
    }


def items_seen(item_ids: pa.ChunkedArray, catalogue_hash: NDArray[np.uint64]) -> dict[str, Any]:
    """Which rows of the (sorted) catalogue occur, as packed bits, how many ids are none of its, and one of those."""
    hashes, first, rows = np.unique(hash64_column(item_ids), return_index=True, return_counts=True)
    place, known = places_of(catalogue_hash, hashes)
    seen = np.zeros(len(catalogue_hash), bool)
    seen[place[known]] = True
    unknown = first[~known]
    return {
        "items": len(item_ids),
        "unknown_items": int(rows[~known].sum()),
        "unknown_item": item_ids[int(unknown[0])].as_py() if len(unknown) else "",
        "seen": pack_bits(seen),
    }


def pack_bits(flags: NDArray[np.bool_]) -> str:
    return base64.b64encode(zlib.compress(np.packbits(flags).tobytes(), 1)).decode()


def unpack_bits(text: str, size: int) -> NDArray[np.bool_]:
    packed = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)
    return np.unpackbits(packed, count=size).astype(bool)
