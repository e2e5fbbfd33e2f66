"""Nothing from the future: histories, labels and rates against slow pandas, on logs with ties and late events."""

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayapp.contracts.config import DAY_MS, Domain
from rayapp.contracts.hashing import hash64
from rayapp.contracts.schema import EVENT_SCHEMA, REQUEST_SCHEMA
from rayapp.features.sequence import point_in_time
from rayapp.pipeline.histories import LABEL_COLUMNS, as_lists, history_of, in_sequence, latest, merge
from rayapp.pipeline.labels import label_requests
from rayapp.pipeline.rate_snapshots import count_bucket
from rayapp.pipeline.windows import Window, build_bucket
from tests.conftest import T0

USERS, ITEMS, ACTIONS = ("u1", "u2"), ("a", "b", "c"), ("click", "save", "hide", "impression")

logs = st.lists(
    st.tuples(
        st.sampled_from(USERS),
        st.sampled_from(ITEMS),
        st.sampled_from(ACTIONS),
        st.integers(0, 12),  # when it happened, in thirds of a day
        st.sampled_from([0, 0, 1, DAY_MS // 3, DAY_MS]),  # how late it arrived
        st.sampled_from([None, "r0", "r1", "r2"]),
    ),
    max_size=40,
)
shown = st.lists(
    st.tuples(st.sampled_from(USERS), st.integers(0, 12), st.lists(st.sampled_from(ITEMS), min_size=1, unique=True)),
    min_size=1,
    max_size=5,
)


def event_table(log: list[Any]) -> pa.Table:
    rows = [
        {
            "event_id": f"e{n}",
            "event_hash": hash64(f"e{n}"),
            "user_id": user,
            "item_id": item,
            "action": action,
            "timestamp_ms": T0 + at * DAY_MS // 3,
            "received_at_ms": T0 + at * DAY_MS // 3 + lag,
            "commit_seq": 0,
            "request_id": request,
        }
        for n, (user, item, action, at, lag, request) in enumerate(log)
    ]
    return pa.Table.from_pylist(rows, schema=EVENT_SCHEMA)


def request_table(lists: list[Any]) -> pa.Table:
    rows = [
        {"request_id": f"r{n}", "user_id": user, "timestamp_ms": T0 + at * DAY_MS // 3, "item_ids": items}
        for n, (user, at, items) in enumerate(lists)
    ]
    return pa.Table.from_pylist(rows, schema=REQUEST_SCHEMA)


def parts_of(events: pa.Table) -> list[pa.Table]:
    """The log as two files that overlap, as after an import that was repeated by another way in."""
    columns = events.select(LABEL_COLUMNS.names)
    return [columns.slice(0, columns.num_rows // 2 + 1), columns.slice(columns.num_rows // 3)]


@pytest.mark.slow
@given(logs, st.integers(1, 5))
def test_histories_equal_slow_pandas(domain: Domain, log: list[Any], length: int) -> None:
    events = event_table(log)
    made = as_lists(latest(in_sequence(merge(parts_of(events), LABEL_COLUMNS), domain), length))
    frame = events.to_pandas()
    frame = frame[frame["action"] != "impression"].sort_values(["user_id", "timestamp_ms", "event_hash"])
    expected = {}
    for user, rows in frame.groupby("user_id"):
        places = rows.groupby("timestamp_ms")["item_id"].nunique().sort_index(ascending=False).cumsum()
        kept = places[places.shift(fill_value=0) < length].index
        newest = rows[rows["timestamp_ms"].isin(kept)]
        expected[user] = list(zip(newest["event_hash"], newest["item_id"], newest["timestamp_ms"], strict=True))
    found = {
        row["user_id"]: list(zip(row["event_hash"], row["item_id"], row["timestamp_ms"], strict=True))
        for row in made.to_pylist()
    }
    assert found == expected


def slow_label(domain: Domain, events: pd.DataFrame, lists: pd.DataFrame, row: Any, item: str, head: int) -> int | None:
    """When the server knew of this label, by the words of the rule; None: never."""
    known = []
    for event in events.itertuples():
        if event.action not in domain.heads[head].actions or event.item_id != item:
            continue
        if not 0 <= event.timestamp_ms - row.timestamp_ms <= domain.attribution_ms:
            continue
        if event.user_id != row.user_id:
            continue
        if not pd.isna(event.request_id):
            if event.request_id == row.request_id:
                known.append(event.received_at_ms)
        else:
            of_user = [r for r in lists.itertuples() if r.user_id == row.user_id and item in r.item_ids]
            before = [r for r in of_user if r.timestamp_ms <= event.timestamp_ms]
            newest = max(r.timestamp_ms for r in before)
            candidates = [r.request_id for r in before if r.timestamp_ms == newest]
            if len(candidates) == 1 and candidates[0] == row.request_id:
                known.append(event.received_at_ms)
            elif len(candidates) > 1:
                return -1  # two lists at one millisecond: either may have it
    return min(known, default=None)


@pytest.mark.slow
@given(logs, shown)
@settings(deadline=None)
def test_labels_and_rates_know_only_what_had_arrived(domain: Domain, log: list[Any], lists: list[Any]) -> None:
    events, requests = event_table(log), request_table(lists)
    labels = label_requests(requests, events.select(LABEL_COLUMNS.names), domain)
    frame, rows = events.to_pandas(), requests.to_pandas()
    frame["request_id"] = [r["request_id"] for r in events.to_pylist()]
    never = np.iinfo(np.int64).max
    slow = [
        [slow_label(domain, frame, rows, row, item, h) for h in range(len(domain.heads))]
        for row in rows.itertuples()
        for item in row.item_ids
    ]
    for found, expected in zip(labels.known_ms_MH.ravel(), np.array(slow, object).ravel(), strict=True):
        assert expected == -1 or found == (never if expected is None else expected)

    days = [T0 + d * DAY_MS for d in range(7)]
    users, items = count_bucket(labels, days, domain)
    flat = [(row, item) for row in rows.itertuples() for item in row.item_ids]
    known = labels.known_ms_MH
    for day in days:
        for table, key, name_of in ((users, "user_id", lambda r, _: r.user_id), (items, "item_id", lambda _, i: i)):
            counted = table.to_pandas()
            counted = counted[counted["known_day_ms"] <= day].groupby(key)[["impressions", "save", "hide"]].sum()
            expected_counts: dict[str, list[int]] = {}
            for m, (row, item) in enumerate(flat):
                if row.timestamp_ms + domain.attribution_ms > day:
                    continue  # its actions may still come
                count = expected_counts.setdefault(name_of(row, item), [0, 0, 0])
                count[0] += 1
                for h in range(2):
                    count[1 + h] += int(known[m, h] <= day)
            assert {k: list(v) for k, v in counted.iterrows()} == expected_counts


@given(st.integers(0, 3), st.booleans())
def test_a_planted_future_is_never_seen(domain: Domain, length_more: int, late: bool) -> None:
    """Events at t-1, t and t+1, and one before t that arrived after it: only the first may be seen at t."""
    t = T0 + DAY_MS
    planted = [("past", t - 1, t - 1), ("now", t, t), ("future", t + 1, t + 1)]
    if late:
        planted.append(("late", t - 5, t + 1))
    events = pa.Table.from_pylist(
        [
            {
                "event_id": name,
                "event_hash": hash64(name),
                "user_id": "u1",
                "item_id": name,
                "action": "save",
                "timestamp_ms": at,
                "received_at_ms": arrived,
                "commit_seq": 0,
            }
            for name, at, arrived in planted
        ],
        schema=EVENT_SCHEMA,
    )
    request = request_table([("u1", 3, ["now"])])
    assert request["timestamp_ms"].to_pylist() == [t]
    length = 1 + length_more
    bucket = merge([events.select(LABEL_COLUMNS.names)], LABEL_COLUMNS)
    histories, cut = build_bucket(bucket, request, Window(t - DAY_MS, t + DAY_MS, length), domain)
    flat = {name: histories[name].combine_chunks().flatten() for name in histories.column_names[1:]}
    history = history_of(flat, domain)
    seen = point_in_time(
        history,
        cut["start"].to_numpy(),
        cut["end"].to_numpy(),
        timestamp_ms_R=cut["timestamp_ms"].to_numpy(),
        watermark_R=np.array([-1]),
        mask_ms_R=np.zeros(1, np.int64),
        length=length,
        vocabulary=domain.vocabulary,
    )
    assert seen.item_hash_RL[0, : seen.length_R[0]].tolist() == [hash64("past")]
    labelled = label_requests(request, events.select(LABEL_COLUMNS.names), domain)
    users, _ = count_bucket(labelled, [t, t + DAY_MS - 1, t + DAY_MS], domain)
    assert users["known_day_ms"].to_pylist() == [t + DAY_MS]  # no earlier snapshot knows of the list
    assert users["impressions"].to_pylist() == [1]
