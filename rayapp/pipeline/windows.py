"""Windows: the immutable pair (histories, requests) that training reads, built bucket by bucket with Ray Data.

A request keeps its list of items, its labels, and the range of its user's history rows to look at; the sequence
itself is cut when a batch is collated, by `features.sequence`, the same function that the server calls.

Shapes: E history rows, R requests, C items of a request, H heads.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rayapp.contracts.config import Domain, day_name
from rayapp.contracts.hashing import hash64_column
from rayapp.contracts.json_values import to_json
from rayapp.contracts.schema import REQUEST_SCHEMA, attribute_fields, columns_of, fingerprint, request_schema
from rayapp.features.sequence import Ints
from rayapp.pipeline.histories import (
    HISTORY_SCHEMA,
    Bucket,
    as_lists,
    in_sequence,
    newest,
    repeated_place,
    same_millisecond,
    write_histories,
)
from rayapp.pipeline.labels import between, label_requests, near
from rayapp.pipeline.log_view import LogView
from rayapp.pipeline.made_lists import (
    ENOUGH_LISTS,
    REAL,
    SEED,
    Popular,
    described,
    lacks_lists,
    make_lists,
    without_request_ids,
)
from rayapp.pipeline.search import group_starts, running_max, search_in_groups
from rayapp.pipeline.tasks import Told, quiet, run_tasks
from rayapp.root.facts import read_root
from rayapp.root.logs import sort_log
from rayapp.root.places import REQUESTS, WINDOWS
from rayapp.root.publish import Manifest, PublishError, publish_directory, read_manifest
from rayapp.statistics.known import load_newest


def window_request_schema(domain: Domain) -> pa.Schema:
    """The requests of a window: what training needs of a request, and where its history lies."""
    fixed = [
        pa.field("request_id", pa.string(), nullable=False),
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("timestamp_ms", pa.int64(), nullable=False),
        pa.field("watermark", pa.int64()),
        pa.field("surface", pa.string()),
        pa.field("item_ids", pa.large_list(pa.string()), nullable=False),
        pa.field("labels", pa.large_list(pa.float32()), nullable=False),  # items x heads, row by row
        pa.field("start", pa.int64(), nullable=False),  # rows [start, end) of the bucket's histories, end to end
        pa.field("end", pa.int64(), nullable=False),
    ]
    return pa.schema(fixed + attribute_fields(domain.context_attributes))


@dataclass(frozen=True, slots=True)
class Window:
    """Requests of `[since_ms, until_ms)` and how much history to keep for them."""

    since_ms: int
    until_ms: int
    history_length: int = 100
    """The longest sequence a model may ask for."""


def window_name(since_ms: int, until_ms: int) -> str:
    """The directory of the window of these times."""
    return f"{day_name(since_ms)}_{day_name(until_ms)}"


def check_closed(window: Window, domain: Domain, *, now_ms: int) -> None:
    """Raises:
    PublishError: actions that belong to the window's last requests may still come.
    """
    if window.until_ms + domain.attribution_ms > now_ms:
        raise PublishError(
            f"the window closes at {day_name(window.until_ms + domain.attribution_ms)} UTC: until then actions may "
            "come that belong to its requests. Choose an earlier --until"
        )


def _meaning(domain: Domain) -> dict[str, Any]:
    """What the columns of a window are, as its manifest keeps it."""
    return {
        "heads": list(domain.head_names),
        "schema": fingerprint((HISTORY_SCHEMA, window_request_schema(domain))),
    }


def is_current(root: Path, name: str, domain: Domain) -> bool:
    """Whether the window is there, with the domain's heads and context; one that lacks some is removed, to be built
    anew: the logs have all that it had. Whoever calls it holds the root's lock."""
    directory = root / WINDOWS / name
    if not directory.exists():
        return False
    manifest, wanted = read_manifest(directory), _meaning(domain)
    if {key: manifest.get(key) for key in wanted} == wanted:
        return True
    gone = directory.with_name(f".{name}.tmp-stale")  # `build` removes what a kill leaves of it
    directory.rename(gone)
    shutil.rmtree(gone)
    return False


def build(root: Path, name: str, window: Window, domain: Domain, told: Told = quiet) -> Manifest:
    """Publishes `windows/<name>` from the logs. Where a log came without shown lists they are made
    (`pipeline.made_lists`), until the graph's own are enough; the manifest says which these are.

    Raises:
        PublishError: it exists already, the log has no request in that time, or lists are to be made and the
            statistics, by which they are drawn, were never counted.
    """
    _, num_buckets = read_root(root)
    view, span_ms = LogView.of(root), (window.since_ms, window.until_ms)
    num_real = ENOUGH_LISTS if not lacks_lists(root) else _num_real(view, num_buckets, span_ms)

    def write(directory: Path) -> Manifest:
        if num_real < ENOUGH_LISTS:
            return {**settings, **_make_up(directory, view, num_buckets, window, domain, told, num_real)}

        def task(bucket: int) -> dict[str, Any]:
            shown = view.requests(bucket, request_schema(domain.context_attributes))
            if not between(shown, window.since_ms, window.until_ms).any():
                return {"bucket": bucket, "users": 0, "events": 0, "requests": 0}
            pair = build_bucket(view.events(bucket), shown, window, domain)
            return _write_pair(directory, bucket, *pair)

        stats = run_tasks(num_buckets, task, told)
        if not sum(row["requests"] for row in stats):
            raise PublishError(
                f"window {name}: the request log holds no request in [{window.since_ms}, {window.until_ms})"
            )
        return {**settings, "lists": {"kind": REAL}, "buckets": stats}

    settings = {
        "since_ms": window.since_ms,
        "until_ms": window.until_ms,
        "history_length": window.history_length,
        "vocabulary": to_json(domain.vocabulary),
        **_meaning(domain),
        "attribution_ms": domain.attribution_ms,
        "logs": dict(view.numbers),
    }
    return publish_directory(root / WINDOWS / name, write)


def _num_real(view: LogView, num_buckets: int, span_ms: tuple[int, int]) -> int:
    schema = columns_of(REQUEST_SCHEMA, "user_id", "timestamp_ms")
    if not any(f["max_ms"] >= span_ms[0] and f["min_ms"] < span_ms[1] for f in view.manifests[REQUESTS]["files"]):
        return 0

    def task(bucket: int) -> dict[str, Any]:
        return {"lists": sum(int(between(rows, *span_ms).sum()) for rows in view.stored(REQUESTS, bucket, schema))}

    return sum(row["lists"] for row in run_tasks(num_buckets, task))


def _make_up(
    directory: Path, view: LogView, num_buckets: int, window: Window, domain: Domain, told: Told, num_real: int
) -> Manifest:
    span_ms = window.since_ms, window.until_ms
    load_newest(view.root, domain)  # so that what is missing is said once, and not by every task

    def task(bucket: int) -> dict[str, Any]:
        events = view.events(bucket)
        popular = Popular.of(view.root, domain, span_ms)
        lists, left_out = make_lists(events, span_ms, domain, popular, [SEED, bucket, window.since_ms])
        if not lists.num_rows:
            return {"bucket": bucket, "users": 0, "events": 0, "requests": 0, "left_out": left_out}
        pair = build_bucket(without_request_ids(events), lists, window, domain)
        return {**_write_pair(directory, bucket, *pair), "left_out": left_out}

    buckets = run_tasks(num_buckets, task, told)
    left_out = sum(row.pop("left_out") for row in buckets)
    return {"lists": {**described(num_real), "items_not_known_then": left_out}, "buckets": buckets}


def _write_pair(directory: Path, bucket: int, histories: pa.Table, cut: pa.Table) -> dict[str, int]:
    """Writes one bucket's pair; the retry of a failed task writes the same files again."""
    name = f"bucket={bucket:04d}.parquet"
    write_histories(directory / "histories" / name, histories)
    (directory / "requests").mkdir(exist_ok=True)
    pq.write_table(cut, directory / "requests" / name, compression="zstd")
    num_events = int(pc.sum(pc.list_value_length(histories["action"])).as_py() or 0)
    return {"bucket": bucket, "users": histories.num_rows, "events": num_events, "requests": cut.num_rows}


def build_bucket(bucket: Bucket, requests: pa.Table, window: Window, domain: Domain) -> tuple[pa.Table, pa.Table]:
    """The pair of one bucket. Pure: tables in, tables out. `requests` may reach beyond the window."""
    span_ms = window.since_ms, window.until_ms
    labelled = label_requests(sort_log(near(requests, span_ms, domain)), bucket.events, domain, span_ms)
    requests, time_E = labelled.requests, bucket.events["timestamp_ms"].to_numpy()
    asked = np.isin(hash64_column(bucket.events["user_id"]), hash64_column(pc.unique(requests["user_id"])))
    history = in_sequence(bucket.filter((time_E < window.until_ms) & asked), domain)
    history = _keep_recent(history, requests, window, domain.time_mask_ms)
    start_R, end_R = _ranges(history, requests, window.history_length, domain.time_mask_ms)
    schema = window_request_schema(domain)
    made = {
        "labels": pa.LargeListArray.from_arrays(
            pa.array(labelled.offset_R * len(domain.heads)), pa.array(labelled.matrix().ravel())
        ),
        "start": pa.array(start_R),
        "end": pa.array(end_R),
    }
    columns = [made[f.name] if f.name in made else requests[f.name] for f in schema]
    return as_lists(history), pa.Table.from_arrays(columns, schema=schema)


def _keep_recent(history: Bucket, requests: pa.Table, window: Window, mask_ms: int) -> Bucket:
    """Drops rows that no request of the window can reach: of those before it, each user keeps the newest ones that
    hold `history_length` places which every request of that user is certain to see."""
    if not history.events.num_rows:
        return history
    no_watermark = np.iinfo(np.int64).max
    asked = pd.DataFrame(
        {
            "user": _users_of(history, requests),
            "watermark": pc.fill_null(requests["watermark"], no_watermark).to_numpy(),
        }
    )
    asked["by_arrival"] = asked["watermark"] == no_watermark
    rule = asked.groupby("user").agg({"watermark": "min", "by_arrival": "any"})
    rule = rule.reindex(np.arange(history.user_E[-1] + 1))
    time_E = history.events["timestamp_ms"].to_numpy()
    certain_E = (
        (time_E < window.since_ms - mask_ms)
        & (history.events["commit_seq"].to_numpy() <= rule["watermark"].to_numpy()[history.user_E])
        & (
            ~rule["by_arrival"].to_numpy(bool)[history.user_E]
            | (history.events["received_at_ms"].to_numpy() <= window.since_ms)
        )
    )
    return newest(history, certain_E, window.history_length)


def _users_of(history: Bucket, requests: pa.Table) -> Ints:
    """Each request's user as the history numbers them; len(users) for one without history."""
    names = history.events["user_id"].combine_chunks().take(pa.array(group_starts(history.events["user_id"])))
    if pa.types.is_dictionary(names.type):
        names = names.dictionary_decode()
    number: Ints = (
        pc.fill_null(pc.index_in(requests["user_id"], value_set=names), len(names)).to_numpy().astype(np.int64)
    )
    return number


def _ranges(history: Bucket, requests: pa.Table, length: int, mask_ms: int) -> tuple[Ints, Ints]:
    """`[start, end)` per request: all its user's rows before it, back to where `length` places are certain, even
    when training hides the newest `mask_ms`.

    A row is certain for a request when it and all older rows had arrived. Only then can a count of places taken
    from the order of time be trusted; where late rows make that impossible the range simply reaches further back.
    """
    if not history.events.num_rows or not requests.num_rows:
        return np.zeros(requests.num_rows, np.int64), np.zeros(requests.num_rows, np.int64)
    events, user_E, user_R = history.events, history.user_E, _users_of(history, requests)
    time_E, time_R = events["timestamp_ms"].to_numpy(), requests["timestamp_ms"].to_numpy()
    watermark_R = pc.fill_null(requests["watermark"], -1).to_numpy()
    all_received_E = running_max(user_E, events["received_at_ms"].to_numpy())
    all_committed_E = running_max(user_E, events["commit_seq"].to_numpy())
    end_R = search_in_groups(user_E, time_E, user_R, time_R, "left")
    unmasked_R = search_in_groups(user_E, time_E, user_R, time_R - mask_ms, "left") if mask_ms else end_R
    arrived_R = search_in_groups(user_E, all_received_E, user_R, time_R, "right")
    committed_R = search_in_groups(user_E, all_committed_E, user_R, watermark_R, "right")
    certain_R = np.minimum(unmasked_R, np.where(watermark_R < 0, arrived_R, committed_R))
    tie_E = same_millisecond(user_E, time_E)
    places = np.r_[0, np.cumsum(~repeated_place(history, tie_E))]
    first_R = np.searchsorted(user_E, user_R)
    start_R = np.searchsorted(places, places[certain_R] - length, side="right") - 1
    start_R = np.clip(start_R, first_R, len(user_E) - 1)
    first_of_tie_E = np.maximum.accumulate(np.where(tie_E, 0, np.arange(len(tie_E))))
    start_R = np.maximum(first_of_tie_E[start_R], first_R)
    return np.minimum(start_R, end_R), end_R
