"""The LMDB store: order, cap, idempotency, durability across a kill, outbox."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayapp.config import Domain
from rayapp.hashing import hash64
from rayapp.schema import Action, ActionKind, Event, Vocabulary, bucket_of
from rayapp.store import OutboxFull, Outcome, StoreError
from rayapp.store.lmdb import LmdbStore
from tests.conftest import T0, make_event

MAP = 1 << 26


@pytest.fixture
def store(tmp_path: Path, domain: Domain) -> Iterator[LmdbStore]:
    opened = LmdbStore(tmp_path / "store", domain.vocabulary, 4, cap=5, map_bytes=MAP)
    yield opened
    opened.close()


def ids(store: LmdbStore, user: str = "u1") -> list[str]:
    return list(store.lookup(user).item_ids)


def test_unknown_users_are_empty(store: LmdbStore) -> None:
    found = store.lookup("nobody")
    assert len(found.history) == 0
    assert found.watermark == 0


def test_late_events_are_put_in_order_and_the_cap_drops_the_oldest(store: LmdbStore) -> None:
    store.append([make_event(n, item=f"i{n}", at=T0 + n) for n in (1, 3, 5, 7)])
    store.append([make_event(4, item="i4", at=T0 + 4), make_event(2, item="i2", at=T0 + 2)])
    assert ids(store) == ["i7", "i5", "i4", "i3", "i2"]
    assert store.append([make_event(0, item="i0", at=T0)]) == [Outcome.ACCEPTED]  # logged, but too old to keep
    assert ids(store) == ["i7", "i5", "i4", "i3", "i2"]


def test_impressions_never_push_actions_out(store: LmdbStore) -> None:
    store.append([make_event(0, item="liked", action="save", at=T0)])
    store.append([make_event(n, item="shown", action="impression", at=T0 + n) for n in range(1, 20)])
    assert "liked" in ids(store)


def test_the_same_event_id_counts_once(store: LmdbStore) -> None:
    event = make_event(1)
    assert store.append([event, event]) == [Outcome.ACCEPTED, Outcome.DUPLICATE]
    assert store.append([event]) == [Outcome.DUPLICATE]
    assert len(ids(store)) == 1
    assert len(store.drain(bucket_of("u1", 4), 0, 10)) == 1


def test_lookup_can_be_cut_by_time_and_number(store: LmdbStore) -> None:
    store.append([make_event(n, item=f"i{n}", at=T0 + n) for n in range(4)])
    assert list(store.lookup("u1", before_ms=T0 + 2).item_ids) == ["i1", "i0"]
    assert list(store.lookup("u1", limit=1).item_ids) == ["i3"]


def test_commit_seq_grows_per_bucket_and_drain_acknowledges(store: LmdbStore) -> None:
    users = [f"user{n}" for n in range(20)]
    store.append([make_event(n, user=u) for n, u in enumerate(users)])
    store.append([make_event(100 + n, user=u) for n, u in enumerate(users)])
    drained = 0
    for bucket in range(4):
        rows = store.drain(bucket, 0, 100)
        assert [r.commit_seq for r in rows] == list(range(1, len(rows) + 1))
        assert all(bucket_of(r.event.user_id, 4) == bucket for r in rows)
        drained += len(rows)
        assert [r.commit_seq for r in store.drain(bucket, 2, 100)] == list(range(3, len(rows) + 1))
        assert store.drain(bucket, len(rows), 100) == []
        assert store.drain(bucket, 0, 100) == []  # acknowledged rows are gone
    assert drained == 40
    found = store.lookup(users[0])
    assert found.watermark == max(store.lookup(u).watermark for u in users if bucket_of(u, 4) == bucket_of(users[0], 4))


def test_a_full_outbox_takes_nothing(tmp_path: Path, domain: Domain) -> None:
    store = LmdbStore(tmp_path / "s", domain.vocabulary, 1, max_outbox=3, map_bytes=MAP)
    store.append([make_event(1), make_event(2)])
    with pytest.raises(OutboxFull):
        store.append([make_event(3), make_event(4)])
    assert len(store.lookup("u1").history) == 2
    store.drain(0, 2, 1)
    store.append([make_event(3), make_event(4)])
    assert len(store.lookup("u1").history) == 4
    store.close()


def test_rebuild_writes_no_outbox_and_is_idempotent(store: LmdbStore) -> None:
    events = [make_event(n, at=T0 + n) for n in range(3)]
    assert store.rebuild(iter(events)) == 3
    assert store.rebuild(iter(events)) == 0
    assert store.drain(bucket_of("u1", 4), 0, 10) == []
    assert store.append([events[0]]) == [Outcome.DUPLICATE]


def test_items_are_listed_once_in_their_newest_form(store: LmdbStore) -> None:
    store.put_item({"item_id": "a", "year": 1})
    store.put_item({"item_id": "b", "year": 1})
    last = store.put_item({"item_id": "a", "year": 2})
    assert store.items_since(0) == (last, [{"item_id": "b", "year": 1}, {"item_id": "a", "year": 2}])
    assert store.items_since(last) == (last, [])


def test_another_vocabulary_or_bucket_count_is_refused_in_words(tmp_path: Path, domain: Domain) -> None:
    LmdbStore(tmp_path / "s", domain.vocabulary, 4, map_bytes=MAP).close()
    grown = Vocabulary((*domain.vocabulary.actions, Action(name="share", kind=ActionKind.POSITIVE)))
    LmdbStore(tmp_path / "s", grown, 4, map_bytes=MAP).close()
    with pytest.raises(StoreError, match="only be appended"):
        LmdbStore(tmp_path / "s", Vocabulary(domain.vocabulary.actions[::-1]), 4, map_bytes=MAP)
    with pytest.raises(StoreError, match="num_buckets 4, expected 8"):
        LmdbStore(tmp_path / "s", grown, 8, map_bytes=MAP)


def test_a_path_that_is_no_directory_is_refused_in_words(tmp_path: Path, domain: Domain) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="can't be opened"):
        LmdbStore(tmp_path / "file", domain.vocabulary, 4, map_bytes=MAP)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.integers(0, 8), st.integers(0, 6), st.sampled_from("xy")), max_size=20), st.integers(1, 20)
)
def test_order_does_not_depend_on_how_events_arrive(
    domain: Domain, tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, int, str]], chunk: int
) -> None:
    """In any chunks and any order the store ends with the same newest events."""
    events = list({n: make_event(n, item=i, at=T0 + t) for n, t, i in rows}.values())
    expected = sorted(events, key=lambda e: (e.timestamp_ms, hash64(e.event_id)), reverse=True)
    store = LmdbStore(tmp_path_factory.mktemp("s"), domain.vocabulary, 2, cap=30, map_bytes=MAP)
    for at in range(0, len(events), chunk):
        store.append(events[at : at + chunk])
    found = store.lookup("u1")
    assert list(found.item_ids) == [e.item_id for e in expected]
    assert found.history.event_hash_E.tolist() == [hash64(e.event_id) for e in expected]
    store.close()


WRITER = """
import sys
from pathlib import Path
from rayapp.config import Domain
from rayapp.publish import read_json
from rayapp.store.lmdb import LmdbStore
from tests.conftest import make_event
store = LmdbStore(Path(sys.argv[1]), Domain.from_json(read_json(Path(sys.argv[2]))).vocabulary, 4, map_bytes=1 << 26)
for n in range(100_000):
    store.append([make_event(n, user=f"u{n % 7}", at=1_767_225_600_000 + n)])
    print(n, flush=True)
"""


def test_what_was_acknowledged_survives_a_kill(tmp_path: Path, domain: Domain) -> None:
    """A real process is killed while it writes; every event it had acknowledged is there exactly once."""
    from rayapp.publish import write_json

    write_json(tmp_path / "domain.json", domain.to_json())
    command = [sys.executable, "-c", WRITER, str(tmp_path / "s"), str(tmp_path / "domain.json")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
    assert process.stdout is not None
    acknowledged = [int(process.stdout.readline()) for _ in range(60)]
    os.kill(process.pid, signal.SIGKILL)
    acknowledged += [int(line) for line in process.stdout.read().splitlines()]
    process.wait()
    process.stdout.close()
    store = LmdbStore(tmp_path / "s", domain.vocabulary, 4, map_bytes=MAP)
    outbox = [row.event.event_id for bucket in range(4) for row in store.drain(bucket, 0, 100_000)]
    assert len(outbox) == len(set(outbox))
    assert {f"e{n}" for n in acknowledged} <= set(outbox)
    stored = sum(len(store.lookup(f"u{n}").history) for n in range(7))
    assert stored == len(outbox)
    store.close()


def test_two_processes_may_hold_the_store(tmp_path: Path, domain: Domain) -> None:
    """A second process reads what the first wrote after both had opened it."""
    store = LmdbStore(tmp_path / "s", domain.vocabulary, 4, map_bytes=MAP)
    program = (
        "import sys; from pathlib import Path; from rayapp.store.lmdb import LmdbStore\n"
        "from rayapp.schema import Vocabulary; import json\n"
        "v = Vocabulary.from_json(json.loads(sys.argv[2]))\n"
        f"s = LmdbStore(Path(sys.argv[1]), v, 4, map_bytes={MAP}); print('open', flush=True); sys.stdin.readline()\n"
        "print(len(s.lookup('u1').history), flush=True)\n"
    )
    import json

    vocabulary = json.dumps(domain.vocabulary.to_json())
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "s"), vocabulary],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "open\n"
        store.append([make_event(1), make_event(2)])
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "2\n"
    store.close()


def test_events_keep_every_field_in_the_outbox(store: LmdbStore) -> None:
    event = Event(
        event_id="ü",
        user_id="u✓",
        item_id="i",
        action="save",
        timestamp_ms=T0,
        received_at_ms=T0 + 1,
        request_id="r",
        position=3,
        value=1.5,
        surface="home",
    )
    store.append([event])
    assert [row.event for row in store.drain(bucket_of("u✓", 4), 0, 10)] == [event]
    assert list(store.lookup("u✓").history.received_at_ms_E) == [T0 + 1]
