"""Nothing from the future: histories, labels and statistics against slow pandas, on logs with ties and late events."""

import tempfile
from pathlib import Path
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
from rayapp.features.statistics import UNIT, DecayedCounts, Grid
from rayapp.pipeline.histories import LABEL_COLUMNS, as_lists, history_of, in_sequence, latest, merge
from rayapp.pipeline.labels import label_requests
from rayapp.pipeline.log_view import LogView
from rayapp.pipeline.statistics import observed
from rayapp.pipeline.windows import Window, build_bucket
from rayapp.root.facts import make_root
from rayapp.root.places import EVENTS, REQUESTS
from rayapp.statistics.agreement import Agreement
from rayapp.statistics.observations import Observations
from tests.conftest import T0
from tests.log_files import add_file

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
def test_labels_know_only_what_had_arrived(domain: Domain, log: list[Any], lists: list[Any]) -> None:
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


# ---- statistics ------------------------------------------------------------------------------------------------------

STEP_MS = 600_000
FIRST = T0 // STEP_MS
late = st.sampled_from([0, 0, 1, STEP_MS - 1, STEP_MS, 7 * STEP_MS])
moments = st.tuples(st.integers(0, 9), st.sampled_from([-1, 0, 0, 1]))  # a step of the grid, and ms beside its start
acts = st.lists(
    st.tuples(st.sampled_from(USERS), st.sampled_from(ITEMS), st.sampled_from(ACTIONS), moments, late), max_size=30
)
lists_of_items = st.lists(
    st.tuples(
        st.sampled_from(USERS),
        st.lists(st.sampled_from(ITEMS), min_size=1, max_size=3),
        moments,
        st.booleans(),  # whether it came with flags
    ),
    max_size=6,
)
agreements = st.dictionaries(st.integers(1, 14), st.integers(0, 40), max_size=4)


def at_ms(moment: tuple[int, int]) -> int:
    return T0 + (1 + moment[0]) * STEP_MS + moment[1]


def logs_of(events: list[Any], lists: list[Any], domain: Domain) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of both logs; the numbers of their bucket ascend with the time that they came."""
    acted = [
        {
            "event_id": f"e{n}",
            "event_hash": hash64(f"e{n}"),
            "user_id": user,
            "item_id": item,
            "action": action,
            "timestamp_ms": at_ms(moment),
            "received_at_ms": at_ms(moment) + lag,
        }
        for n, (user, item, action, moment, lag) in enumerate(events)
    ]
    shown_lists = [
        {
            "request_id": f"r{n}",
            "user_id": user,
            "timestamp_ms": at_ms(moment),
            "item_ids": items,
            "labels": [float((n + place) % 3 == 0) for place in range(len(items) * len(domain.heads))]
            if flags
            else None,
        }
        for n, (user, items, moment, flags) in enumerate(lists)
    ]
    for user in USERS:
        mine = [row for row in [*acted, *shown_lists] if row["user_id"] == user]
        for number, row in enumerate(sorted(mine, key=lambda row: row.get("received_at_ms", row["timestamp_ms"])), 1):
            row["commit_seq"] = number
    return acted, shown_lists


def publish_logs(root: Path, acted: list[dict[str, Any]], lists: list[dict[str, Any]], domain: Domain) -> None:
    """Each as two files that overlap."""
    make_root(root, domain, 2)
    for kind, rows in ((EVENTS, acted), (REQUESTS, lists)):
        for part in (rows[: len(rows) // 2 + 1], rows[len(rows) // 3 :]):
            add_file(root, kind, part, domain)


def observations_of(root: Path, domain: Domain, agreement: Agreement) -> Observations:
    view, grid = LogView.of(root), Grid.of(domain)
    return Observations.concatenate([observed(view, bucket, domain, grid, agreement)[0] for bucket in range(2)])


Seen = tuple[str, str, int, int]
"""User, item, kind, and the step it counts in."""


def slow_observations(
    acted: list[dict[str, Any]], lists: list[dict[str, Any]], domain: Domain, agreed: dict[int, int]
) -> set[Seen]:
    """By the words of the rule: step k sees what was received before it began, and of that, where replicas agreed on k
    or on a later step, no row that they agreed to do without."""

    def counts_in(received_ms: int, commit_seq: int) -> int:
        received = received_ms // STEP_MS

        def seen(k: int) -> bool:
            cursor = next((cursor for step, cursor in sorted(agreed.items()) if step >= k), None)
            return received < k and (cursor is None or commit_seq <= cursor)

        return min(k for k in (received + 1, *(step + 1 for step in agreed)) if seen(k)) - 1

    found, heads = set(), domain.heads
    for row in acted:
        for h, head in enumerate(heads):
            if row["action"] in head.actions:
                step = counts_in(row["received_at_ms"], row["commit_seq"])
                found.add((row["user_id"], row["item_id"], 1 + h, step))
    for row in lists:
        for place, item in enumerate(row["item_ids"]):
            found.add((row["user_id"], item, 0, counts_in(row["timestamp_ms"], row["commit_seq"])))
            for h in range(len(heads)):
                if row["labels"] is not None and row["labels"][place * len(heads) + h]:
                    step = counts_in(row["timestamp_ms"] + domain.flag_delay_ms, row["commit_seq"])
                    found.add((row["user_id"], item, 1 + len(heads) + h, step))
    return found


@pytest.mark.slow
@given(acts, lists_of_items, agreements, st.integers(0, 20))
@settings(deadline=None, max_examples=60)
def test_statistics_of_a_moment_hold_nothing_received_later(
    domain: Domain, events: list[Any], lists: list[Any], agreed: dict[int, int], asked: int
) -> None:
    acted, shown_lists = logs_of(events, lists, domain)
    ascending = np.maximum.accumulate(list(dict(sorted(agreed.items())).values()) or [0]).tolist()
    agreed = {FIRST + step: cursor for step, cursor in zip(sorted(agreed), ascending, strict=False)}
    agreement = Agreement.of({step: [cursor] * 2 for step, cursor in agreed.items()}, 2)
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory) / "root"
        publish_logs(root, acted, shown_lists, domain)
        found = observations_of(root, domain, agreement)
    slow = slow_observations(acted, shown_lists, domain, agreed)
    assert len(found) == len(slow), "each once, whatever was logged twice"
    grid, kinds, step = Grid.of(domain), 1 + 2 * len(domain.heads), FIRST + asked
    for names, increments, place in ((ITEMS, found.of_items(kinds), 1), (USERS, found.of_users(kinds), 0)):
        keys = np.array([hash64(name) for name in names], np.uint64)
        count_QSA = DecayedCounts.of(grid, increments).at(keys, np.full(len(names), step))
        for name, count_SA in zip(names, count_QSA, strict=True):
            for s, half_life_ms in enumerate(grid.half_lives_ms):
                expected_A = np.zeros(kinds)
                for row in slow:
                    age = step - row[3]
                    if row[place] == name and age > 0:
                        expected_A[row[2]] += 0.5 ** (age * STEP_MS / half_life_ms) if half_life_ms else 1
                np.testing.assert_allclose(count_SA[s], expected_A, rtol=1 / UNIT, atol=1e-6)


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
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory) / "root"
        publish_logs(root, events.to_pylist(), request.to_pylist(), domain)
        found, grid = observations_of(root, domain, Agreement.of({}, 2)), Grid.of(domain)
    names = ["past", "now", "future", "late"]
    keys = np.array([hash64(name) for name in names], np.uint64)
    counts = DecayedCounts.of(grid, found.of_items(1 + 2 * len(domain.heads)))
    for step_ms, expected in (
        (t, [[0, 1], [0, 0], [0, 0], [0, 0]]),
        (t + STEP_MS, [[0, 1], [1, 1], [0, 1], [0, late]]),
    ):
        known = counts.at(keys, np.full(4, step_ms // STEP_MS))[:, -1, :2]  # impressions and saves, unfaded
        assert known.tolist() == expected
