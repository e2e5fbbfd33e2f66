"""The point-in-time window against a slow, obvious one; and pipeline bytes against server bytes."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayapp.contracts.config import Domain
from rayapp.contracts.hashing import hash64
from rayapp.contracts.schema import EVENT_SCHEMA, PAD, REQUEST_SCHEMA, UNKNOWN, Event, Vocabulary
from rayapp.features.sequence import NO_WATERMARK, History, Sequences, at_request, known_to, point_in_time
from rayapp.pipeline.histories import LABEL_COLUMNS, merge
from rayapp.pipeline.window_loader import WindowReader
from rayapp.pipeline.windows import Window, build_bucket
from rayapp.root.publish import write_json
from rayapp.store.lmdb import LmdbStore
from tests.conftest import T0, make_event

LENGTH = 4

# Few users, items and times, so that ties and late arrivals are the rule and not the exception.
events_strategy = st.lists(
    st.builds(
        lambda user, item, action, at, lag: (user, item, action, at, lag),
        user=st.sampled_from(["a", "b"]),
        item=st.sampled_from(["x", "y", "z"]),
        action=st.sampled_from(["click", "save", "hide", "impression", "no such action"]),
        at=st.integers(0, 12),
        lag=st.sampled_from([0, 0, 1, 3, 50]),
    ),
    max_size=25,
).map(
    lambda rows: [
        make_event(n, user=u, item=i, action=a, at=T0 + t, lag=lag) for n, (u, i, a, t, lag) in enumerate(rows)
    ]
)


def history_of(events: list[Event], vocabulary: Vocabulary) -> History:
    return History(
        np.array([e.timestamp_ms for e in events], np.int64),
        np.array([e.received_at_ms for e in events], np.int64),
        np.array(range(1, len(events) + 1), np.int64),
        np.array([hash64(e.event_id) for e in events], np.uint64),
        np.array([hash64(e.item_id) for e in events], np.uint64),
        np.array([vocabulary.id_of(e.action) for e in events], np.uint8),
    )


def obvious(
    events: list[Event], vocabulary: Vocabulary, at_ms: int, mask_ms: int, watermark: int
) -> list[tuple[int, int, int]]:
    """The rule in words, one event at a time."""
    in_sequence = {a.name: a.in_sequence for a in vocabulary.actions}
    priority = {a.name: a.priority for a in vocabulary.actions}
    places: dict[tuple[int, str], Event] = {}
    for commit_seq, event in enumerate(events, 1):
        arrived = event.received_at_ms <= at_ms if watermark == NO_WATERMARK else commit_seq <= watermark
        if event.timestamp_ms < at_ms - mask_ms and arrived and in_sequence.get(event.action, True):
            place = (event.timestamp_ms, event.item_id)
            rank = lambda e: (priority.get(e.action, -1), hash64(e.event_id))  # noqa: E731
            if place not in places or rank(event) > rank(places[place]):
                places[place] = event
    newest = sorted(places.values(), key=lambda e: (e.timestamp_ms, hash64(e.event_id)), reverse=True)[:LENGTH]
    return [(vocabulary.id_of(e.action), hash64(e.item_id), e.timestamp_ms) for e in newest]


def rows_of(sequences: Sequences, r: int) -> list[tuple[int, int, int]]:
    n = int(sequences.length_R[r])
    assert (sequences.action_RL[r, n:] == PAD).all()
    return list(
        zip(
            sequences.action_RL[r, :n].tolist(),
            sequences.item_hash_RL[r, :n].tolist(),
            sequences.timestamp_ms_RL[r, :n].tolist(),
            strict=True,
        )
    )


@given(events=events_strategy, at=st.integers(-1, 70), mask=st.integers(0, 6), watermark=st.integers(NO_WATERMARK, 25))
def test_the_window_is_the_rule(domain: Domain, events: list[Event], at: int, mask: int, watermark: int) -> None:
    mine = [e for e in events if e.user_id == "a"]
    history = history_of(mine, domain.vocabulary)
    cut = point_in_time(
        history,
        np.array([0]),
        np.array([len(mine)]),
        timestamp_ms_R=np.array([T0 + at]),
        watermark_R=np.array([watermark]),
        mask_ms_R=np.array([mask]),
        length=LENGTH,
        vocabulary=domain.vocabulary,
    )
    assert rows_of(cut, 0) == obvious(mine, domain.vocabulary, T0 + at, mask, watermark)


def test_nothing_of_the_request_s_own_millisecond_or_later_is_seen(domain: Domain) -> None:
    events = [make_event(n, item=f"i{n}", at=T0 + n) for n in range(3)]
    cut = at_request(
        history_of(events, domain.vocabulary),
        timestamp_ms=T0 + 1,
        watermark=NO_WATERMARK,
        length=9,
        vocabulary=domain.vocabulary,
    )
    assert [t for _, _, t in rows_of(cut, 0)] == [T0]


def test_the_time_mask_removes_rows_and_not_just_attention_to_them(domain: Domain) -> None:
    """Defect of the reference code: a masked action still reached the newest-K rows and the pool."""
    events = [make_event(n, item=f"i{n}", at=T0 + 10 * n) for n in range(6)]
    cut = point_in_time(
        history_of(events, domain.vocabulary),
        np.array([0, 0]),
        np.array([6, 6]),
        timestamp_ms_R=np.array([T0 + 100] * 2),
        watermark_R=np.array([NO_WATERMARK] * 2),
        mask_ms_R=np.array([65, 0]),
        length=LENGTH,
        vocabulary=domain.vocabulary,
    )
    assert [t - T0 for _, _, t in rows_of(cut, 0)] == [30, 20, 10, 0]
    assert [t - T0 for _, _, t in rows_of(cut, 1)] == [50, 40, 30, 20]


def test_later_actions_than_the_model_knows_become_unknown() -> None:
    assert known_to(4, np.array([PAD, 2, 3, 4, 200], np.uint8)).tolist() == [PAD, 2, 3, UNKNOWN, UNKNOWN]


@pytest.mark.parametrize("use_watermark", [False, True])
@settings(deadline=None, max_examples=60)
@given(events=events_strategy, times=st.lists(st.integers(0, 70), min_size=1, max_size=4), split=st.integers(0, 12))
def test_pipeline_bytes_equal_server_bytes(
    domain: Domain, events: list[Event], times: list[int], split: int, use_watermark: bool
) -> None:
    """Parity: what training reads of a request is what the server read, to the byte.

    The server's side is the real store, fed in order of arrival and asked when the request came; the pipeline's is
    the real bucket build and reader over the finished log, with later and duplicated events in it.
    """
    arrivals = sorted(events, key=lambda e: (e.received_at_ms, e.event_id))
    with TemporaryDirectory() as directory:
        served, commit_seqs, requests = _serve(Path(directory), domain, arrivals, times)
        requests = [{**r, "watermark": r["watermark"] if use_watermark else None} for r in requests]
        if not use_watermark:  # without it, the log knows only when an event arrived
            commit_seqs = {}
        table = _log(arrivals, commit_seqs)
        window = Window(T0 + split, T0 + 100, history_length=LENGTH)
        inside = [r for r in requests if int(r["timestamp_ms"]) >= window.since_ms]
        twice = merge([table.select(LABEL_COLUMNS.names)] * 2, LABEL_COLUMNS)
        histories, cut = build_bucket(
            twice,
            pa.Table.from_pylist(requests, schema=REQUEST_SCHEMA),
            window,
            domain,
        )
        read = _read(Path(directory), domain, histories, cut)
    assert set(read) == {r["request_id"] for r in inside}
    for request_id, sequence in read.items():
        assert sequence == served[request_id]


def _serve(
    directory: Path, domain: Domain, arrivals: list[Event], times: list[int]
) -> tuple[dict[str, bytes], dict[str, int], list[dict[str, object]]]:
    """Plays arrivals and requests in order of time against a real store; bytes by request id."""
    store = LmdbStore(directory / "store", domain.vocabulary, num_buckets=1, map_bytes=1 << 24)
    served: dict[str, bytes] = {}
    commit_seqs: dict[str, int] = {}
    requests: list[dict[str, object]] = []
    left = list(arrivals)
    for n, at in enumerate(sorted(times)):
        at_ms = T0 + at
        # What arrived in the request's own millisecond may or may not have been committed before it; the
        # `received_at_ms` rule of the log counts it, so here it comes first.
        due = [e for e in left if e.received_at_ms <= at_ms]
        left = left[len(due) :]
        store.append(due)
        for user in ("a", "b"):
            found = store.lookup(user)
            cut = at_request(
                found.history,
                timestamp_ms=at_ms,
                watermark=found.watermark,
                length=LENGTH,
                vocabulary=domain.vocabulary,
            )
            request_id = f"{user}{n}"
            served[request_id] = _bytes(cut, 0)
            requests.append(
                {
                    "request_id": request_id,
                    "user_id": user,
                    "timestamp_ms": at_ms,
                    "item_ids": ["x"],
                    "watermark": found.watermark,
                }
            )
    store.append(left)
    for row in store.drain(0, 0, 1_000):
        commit_seqs[row.value["event_id"]] = row.commit_seq
    store.close()
    return served, commit_seqs, requests


def _log(events: list[Event], commit_seqs: dict[str, int]) -> pa.Table:
    rows = [
        {
            "event_id": e.event_id,
            "event_hash": hash64(e.event_id),
            "user_id": e.user_id,
            "item_id": e.item_id,
            "action": e.action,
            "timestamp_ms": e.timestamp_ms,
            "received_at_ms": e.received_at_ms,
            "commit_seq": commit_seqs.get(e.event_id, 0),
        }
        for e in events
    ]
    return pa.Table.from_pylist(rows, schema=EVENT_SCHEMA)


def _read(directory: Path, domain: Domain, histories: pa.Table, cut: pa.Table) -> dict[str, bytes]:
    """The published pair through the real reader; bytes by request id."""
    if not cut.num_rows:
        return {}
    window = directory / "windows" / "w"
    for kind, table in (("histories", histories), ("requests", cut)):
        (window / kind).mkdir(parents=True)
        pq.write_table(table, window / kind / "bucket=0000.parquet")
    write_json(
        window / "manifest.json",
        {
            "history_length": LENGTH,
            "heads": list(domain.head_names),
            "buckets": [{"bucket": 0, "requests": cut.num_rows}],
        },
    )
    reader = WindowReader(directory, ["w"], domain, LENGTH)
    (batch,) = reader.in_order(1_000)
    return {name: _bytes(batch.requests.sequences, r) for r, name in enumerate(cut["request_id"].to_pylist())}


def _bytes(sequences: Sequences, r: int) -> bytes:
    return b"".join(
        column[r].tobytes() for column in (sequences.action_RL, sequences.item_hash_RL, sequences.timestamp_ms_RL)
    )
