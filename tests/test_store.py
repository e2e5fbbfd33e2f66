"""What every back end of the sequence store promises: order, cap, idempotency, outbox, numbers, agreements."""

import json
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rayapp.contracts.config import Domain
from rayapp.contracts.hashing import hash64
from rayapp.contracts.schema import UNKNOWN, Action, ActionKind, Event, Vocabulary, bucket_of
from rayapp.store import AppendStatus, OutboxFull, OutboxKind, StepTooOld, Store, StoreError
from rayapp.store.lmdb import LmdbStore
from rayapp.store.packed import EMPTY, head, insert
from rayapp.store.redis import RedisStore
from tests.conftest import T0, make_event
from tests.redis_server import free_port, redis_cluster, start, stop

MAP = 1 << 26
MakeStore = Callable[..., Store]


def flush_all(url: str, *, cluster: bool) -> None:
    client: Any = redis.RedisCluster.from_url(url) if cluster else redis.Redis.from_url(url)
    if cluster:
        client.flushall(target_nodes=redis.RedisCluster.PRIMARIES)
    else:
        client.flushall()
    client.close()


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port = free_port()
    server = start(tmp_path_factory.mktemp("redis"), port)
    yield f"redis://127.0.0.1:{port}/0"
    stop(server)


@pytest.fixture(scope="session")
def cluster_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_cluster(tmp_path_factory.mktemp("redis-cluster")) as url:
        yield url


@pytest.fixture(params=["lmdb", "redis", "redis cluster"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where the one store of the test is, which nobody has made yet."""
    if request.param == "lmdb":
        return f"lmdb://{tmp_path / 'store'}"
    cluster = request.param == "redis cluster"
    url = str(request.getfixturevalue("cluster_url" if cluster else "redis_url"))
    flush_all(url, cluster=cluster)
    return url + "?cluster=true" * cluster


@pytest.fixture
def make_store(store_url: str, domain: Domain) -> Iterator[MakeStore]:
    """Opens the one store of the test, as often as it is called."""
    opened: list[Store] = []
    address, _, cluster = store_url.partition("?")

    def make(vocabulary: Vocabulary = domain.vocabulary, num_buckets: int = 4, **settings: Any) -> Store:
        if address.startswith("lmdb"):
            path = Path(address.removeprefix("lmdb://"))
            opened.append(LmdbStore(path, vocabulary, num_buckets, map_bytes=MAP, **settings))
        else:
            opened.append(RedisStore(address, vocabulary, num_buckets, cluster=bool(cluster), **settings))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


@pytest.fixture
def store(make_store: MakeStore) -> Store:
    return make_store(cap=5)


def ids(store: Store, user: str = "u1") -> list[str]:
    return list(store.lookup(user).item_ids)


def test_unknown_users_are_empty(store: Store) -> None:
    found = store.lookup("nobody")
    assert len(found.history) == 0
    assert found.watermark == 0


def test_late_events_are_put_in_order_and_the_cap_drops_the_oldest(store: Store) -> None:
    store.append([make_event(n, item=f"i{n}", at=T0 + n) for n in (1, 3, 5, 7)])
    store.append([make_event(4, item="i4", at=T0 + 4), make_event(2, item="i2", at=T0 + 2)])
    assert ids(store) == ["i7", "i5", "i4", "i3", "i2"]
    assert store.append([make_event(0, item="i0", at=T0)]) == [AppendStatus.ACCEPTED]  # logged, but too old to keep
    assert ids(store) == ["i7", "i5", "i4", "i3", "i2"]


def test_impressions_never_push_actions_out(store: Store) -> None:
    store.append([make_event(0, item="liked", action="save", at=T0)])
    store.append([make_event(n, item="shown", action="impression", at=T0 + n) for n in range(1, 20)])
    assert "liked" in ids(store)


def test_the_same_event_id_counts_once(store: Store) -> None:
    event = make_event(1)
    assert store.append([event, event]) == [AppendStatus.ACCEPTED, AppendStatus.DUPLICATE]
    assert store.append([event]) == [AppendStatus.DUPLICATE]
    assert len(ids(store)) == 1
    assert len(store.drain(bucket_of("u1", 4), 0, 10)) == 1


def test_lookup_can_be_cut_by_time_and_number(store: Store) -> None:
    store.append([make_event(n, item=f"i{n}", at=T0 + n) for n in range(4)])
    assert list(store.lookup("u1", before_ms=T0 + 2).item_ids) == ["i1", "i0"]
    assert list(store.lookup("u1", limit=1).item_ids) == ["i3"]


def test_commit_seq_grows_per_bucket_and_drain_acknowledges(store: Store) -> None:
    users = [f"user{n}" for n in range(20)]
    store.append([make_event(n, user=u) for n, u in enumerate(users)])
    store.append([make_event(100 + n, user=u) for n, u in enumerate(users)])
    drained = 0
    for bucket in range(4):
        rows = store.drain(bucket, 0, 100)
        assert [r.commit_seq for r in rows] == list(range(1, len(rows) + 1))
        assert all(bucket_of(r.value["user_id"], 4) == bucket for r in rows)
        drained += len(rows)
        assert [r.commit_seq for r in store.drain(bucket, 2, 100)] == list(range(3, len(rows) + 1))
        assert store.drain(bucket, len(rows), 100) == []
        assert store.drain(bucket, 0, 100) == []  # acknowledged rows are gone
    assert drained == 40
    found = store.lookup(users[0])
    assert found.watermark == max(store.lookup(u).watermark for u in users if bucket_of(u, 4) == bucket_of(users[0], 4))


def test_a_read_removes_nothing_and_tells_what_was_removed(store: Store) -> None:
    users = [f"user{n}" for n in range(20)]
    store.append([make_event(n, user=u) for n, u in enumerate(users)])
    store.log_requests([{"user_id": u, "request_id": f"r-{u}"} for u in users])
    tails = store.read([0] * 4, 1_000)
    assert tails == store.read([0] * 4, 1_000)
    assert [tail.rows for tail in tails] == [store.drain(bucket, 0, 1_000) for bucket in range(4)]
    assert [(tail.after, tail.last) for tail in tails] == [(0, tail.rows[-1].commit_seq) for tail in tails]
    assert all(tail.last >= 2 and tail.missing_until is None for tail in tails)
    later = store.read([1] * 4, 1)
    assert [[row.commit_seq for row in tail.rows] for tail in later] == [[2]] * 4
    store.drain(0, 1, 1)
    store.drain(1, tails[1].last, 1)
    assert [tail.missing_until for tail in store.read([0] * 4, 1)] == [1, tails[1].last, None, None]
    assert [tail.missing_until for tail in store.read([1] * 4, 1)] == [None, tails[1].last, None, None]
    (end, *_) = store.read([tail.last for tail in tails], 1)
    assert (end.rows, end.last, end.missing_until) == ([], tails[0].last, None)


def test_a_reader_is_ahead_of_a_store_that_took_a_lost_one_s_place(store: Store) -> None:
    assert [(t.rows, t.last, t.missing_until) for t in store.read([7] * 4, 5)] == [([], 0, None)] * 4
    store.append([make_event(1)])
    bucket = bucket_of("u1", 4)
    store.advance(bucket, 7)
    tail = store.read([7] * 4, 5)[bucket]
    assert ([row.commit_seq for row in tail.rows], tail.last, tail.missing_until) == ([8], 8, None)


@pytest.mark.parametrize("after", [[0] * 3, [0] * 5, [0, 0, 0, -1]])
def test_a_read_wants_a_cursor_for_each_bucket(store: Store, after: list[int]) -> None:
    with pytest.raises(ValueError, match="cursor"):
        store.read(after, 10)
    with pytest.raises(ValueError, match="limit"):
        store.read([0] * 4, 0)


def test_who_names_the_cursors_of_a_step_first_decides(make_store: MakeStore) -> None:
    one, other = make_store(), make_store()
    assert one.agreed() == {}
    assert one.agree(7, [1, 2, 3, 4]) == (1, 2, 3, 4)
    assert other.agree(7, [2, 2, 3, 5]) == (1, 2, 3, 4)
    assert other.agree(9, [2, 2, 3, 5]) == (2, 2, 3, 5)
    assert one.agree(0, [0, 0, 0, 0]) == (0, 0, 0, 0)
    one.close()
    other.close()
    again = make_store()
    assert again.agree(7, [9, 9, 9, 9]) == (1, 2, 3, 4)
    assert list(again.agreed().items()) == [(0, (0, 0, 0, 0)), (7, (1, 2, 3, 4)), (9, (2, 2, 3, 5))]
    assert again.agreed(0) == {7: (1, 2, 3, 4), 9: (2, 2, 3, 5)}
    assert again.agreed(9) == {}


@pytest.mark.parametrize(
    ("step", "cursors", "said"),
    [(1, [0] * 3, "3 cursors"), (1, [0, 0, 0, -1], "not -1"), (-1, [0] * 4, "not -1"), (1 << 53, [0] * 4, "step")],
)
def test_an_agreement_names_a_cursor_for_each_bucket(store: Store, step: int, cursors: list[int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        store.agree(step, cursors)
    assert store.agreed() == {}


def test_the_oldest_agreements_go_and_are_never_made_anew(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("lmdb_agreements", "redis"):
        monkeypatch.setattr(f"rayapp.store.{name}.KEPT_STEPS", 3)
    last, store = (1 << 53) - 1, make_store()
    for step in (4, 2, 6, 8, last):
        store.agree(step, [step] * 4)
    assert store.agreed() == {step: (step,) * 4 for step in (6, 8, last)}
    for step in (2, 4, 5):
        with pytest.raises(StepTooOld, match=f"later than step {step}"):
            store.agree(step, [0] * 4)
    store.agree(7, [7] * 4)  # between those that are kept, so never dropped
    assert list(store.agreed()) == [7, 8, last]


AGREEING = """
import json, sys
from pathlib import Path
from rayapp.store.opening import open_url
store = open_url(Path(sys.argv[1]), sys.argv[2])
print("open", flush=True)
sys.stdin.readline()
print(json.dumps([store.agree(step, [1] * 4) for step in range(30)]), flush=True)
"""


def test_processes_that_race_on_a_step_agree(make_store: MakeStore, store_url: str, root: Path) -> None:
    store = make_store()
    with subprocess.Popen(
        [sys.executable, "-c", AGREEING, str(root), store_url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "open\n"
        process.stdin.write("\n")
        process.stdin.flush()
        with ThreadPoolExecutor(2) as pool:  # two replicas here, one there
            stores = {n: make_store() for n in (2, 3)}
            here = list(pool.map(lambda n: [stores[n].agree(step, [n] * 4) for step in range(30)], stores))
        there = [tuple(cursors) for cursors in json.loads(process.stdout.readline())]
    assert here == [there, there]
    assert store.agreed() == dict(enumerate(there))


def test_a_full_outbox_takes_nothing(make_store: MakeStore) -> None:
    store = make_store(num_buckets=1, max_outbox=3)
    store.append([make_event(1), make_event(2)])
    with pytest.raises(OutboxFull):
        store.append([make_event(3), make_event(4)])
    assert len(store.lookup("u1").history) == 2
    store.drain(0, 2, 1)
    store.append([make_event(3), make_event(4)])
    assert len(store.lookup("u1").history) == 4
    with pytest.raises(OutboxFull, match="rayapp export"):
        store.log_requests([{"user_id": "u1", "request_id": str(n)} for n in range(3)])
    assert store.stats().outbox_rows == 2


def test_rebuild_writes_no_outbox_and_is_idempotent(store: Store) -> None:
    events = [make_event(n, at=T0 + n) for n in range(3)]
    assert store.rebuild(iter(events)) == 3
    assert store.rebuild(iter(events)) == 0
    assert store.drain(bucket_of("u1", 4), 0, 10) == []
    assert store.append([events[0]]) == [AppendStatus.DUPLICATE]


def test_items_are_listed_once_in_their_newest_form(store: Store) -> None:
    store.put_item({"item_id": "a", "year": 1})
    store.put_item({"item_id": "b", "year": 1})
    last = store.put_item({"item_id": "a", "year": 2})
    assert store.items_since(0) == (last, [{"item_id": "b", "year": 1}, {"item_id": "a", "year": 2}])
    assert store.items_since(last) == (last, [])


def test_many_items_are_put_at_once_and_of_two_with_one_id_the_later_counts(store: Store) -> None:
    many = [{"item_id": f"i{n % 300}", "year": n} for n in range(500)]
    last = store.put_items(many)
    assert last == 500
    assert store.items_since(0) == (500, many[200:])
    assert store.put_items([{"item_id": "i7", "year": 1}]) == store.items_since(500)[0] == 501


def test_an_item_changes_whole_whoever_else_changes_it(store: Store) -> None:
    assert store.item("a") is None
    assert store.change_item("a", lambda stored: stored) is None, "nothing is recorded of nothing"
    assert store.items_since(0) == (0, [])
    store.put_item({"item_id": "a", "title": "A", "count": 0})

    def count(_: int) -> None:
        store.change_item("a", lambda stored: {**(stored or {}), "count": (stored or {})["count"] + 1})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(count, range(40)))
    assert store.item("a") == {"item_id": "a", "title": "A", "count": 40}
    last, items = store.items_since(0)
    assert (last, items) == (41, [{"item_id": "a", "title": "A", "count": 40}])


def test_another_vocabulary_or_bucket_count_is_refused_in_words(make_store: MakeStore, domain: Domain) -> None:
    make_store().close()
    grown = Vocabulary((*domain.vocabulary.actions, Action(name="share", kind=ActionKind.POSITIVE)))
    make_store(grown).close()
    with pytest.raises(StoreError, match="only be appended"):
        make_store(Vocabulary(domain.vocabulary.actions[::-1]))
    with pytest.raises(StoreError, match="num_buckets 4, expected 8"):
        make_store(grown, 8)


def test_an_erased_user_is_gone_and_stays_gone(store: Store) -> None:
    before, after = make_event(1, at=T0), make_event(2, at=T0 + 2)
    store.append([before])
    store.put_user({"user_id": "u1", "effective_at_ms": T0, "country": "ch"})
    store.erase("u1", T0 + 1)
    assert len(store.lookup("u1").history) == 0
    assert store.user("u1") is None
    assert store.append([make_event(1, at=T0), make_event(3, at=T0 + 1), after]) == [
        AppendStatus.ERASED,
        AppendStatus.ERASED,
        AppendStatus.ACCEPTED,
    ]
    assert len(store.lookup("u1").history) == 1


def test_an_earlier_erasure_does_not_take_a_later_one_back(store: Store) -> None:
    store.erase("u1", T0 + 10)
    store.erase("u1", T0)
    assert store.append([make_event(1, at=T0 + 5)]) == [AppendStatus.ERASED]


def test_numbers_go_on_behind_those_that_a_log_has_seen(store: Store) -> None:
    """Of a store that is new or an older copy; what stands in its outbox is numbered anew and stays in order."""
    bucket = bucket_of("u1", 4)
    store.append([make_event(n) for n in range(3)])
    store.advance(bucket, 2)
    assert [row.commit_seq for row in store.drain(bucket, 0, 10)] == [1, 2, 3]
    store.advance(bucket, 100)
    rows = store.drain(bucket, 100, 10)
    assert [(row.commit_seq, row.value["event_id"]) for row in rows] == [(101, "e0"), (102, "e1"), (103, "e2")]
    assert store.lookup("u1").watermark == 103
    store.append([make_event(4)])
    assert [row.commit_seq for row in store.drain(bucket, 103, 10)] == [104]
    assert store.stats().outbox_rows == 1


def test_a_store_that_is_open_takes_appended_actions(make_store: MakeStore, domain: Domain) -> None:
    store, share = make_store(), Action(name="share", kind=ActionKind.POSITIVE)
    grown, identity = Vocabulary((*domain.vocabulary.actions, share)), store.identity
    store.append([make_event(1, action="share", at=T0)])
    store.follow(grown)
    store.append([make_event(2, action="share", at=T0 + 1), make_event(3, action="save", at=T0 + 2)])
    ids = store.lookup("u1").history.action_E.tolist()
    assert ids == [domain.vocabulary.id_of("save"), grown.id_of("share"), UNKNOWN], "nobody had told it of the first"
    assert (store.vocabulary, store.identity) == (grown, identity)
    assert make_store(grown).lookup("u1").history.action_E.tolist() == ids
    with pytest.raises(StoreError, match="may only be appended"):
        store.follow(Vocabulary(domain.vocabulary.actions[::-1]))
    assert store.vocabulary == grown


def shown_row(user: str, at: int, *items: str) -> dict[str, Any]:
    return {"request_id": f"{user}-{at}", "user_id": user, "timestamp_ms": at, "item_ids": list(items)}


def shown_of(store: Store, user: str) -> list[tuple[int, int]]:
    found = store.lookup(user, shown=True).shown
    return list(zip(found.hash_S.tolist(), found.at_ms_S.tolist(), strict=True))


def test_shown_items_are_kept_beside_the_sequence_where_they_rest(make_store: MakeStore) -> None:
    store = make_store()
    store.log_requests([shown_row("u", T0, "a", "b")])
    assert shown_of(store, "u") == [], "off by default"
    store.log_requests(
        [shown_row("u", T0, "a", "b"), shown_row("v", T0, "x"), shown_row("u", T0 + 1, "c", "a", "c")], 3
    )
    assert shown_of(store, "u") == [(hash64("c"), T0 + 1), (hash64("a"), T0 + 1), (hash64("b"), T0)]
    store.log_requests([shown_row("u", T0 + 2, "d")], 3)
    assert shown_of(store, "u")[0] == (hash64("d"), T0 + 2)
    assert [item for item, _ in shown_of(store, "u")] == [hash64(item) for item in "dca"], "the last three stay"
    assert len(store.lookup("u").shown.hash_S) == 0, "nobody asked"
    assert store.stats().outbox_rows == 5
    store.erase("u", T0 + 2)
    store.log_requests([shown_row("u", T0 + 1, "late")], 3)
    assert shown_of(store, "u") == [], "erased, and what was shown before stays out"
    store.log_requests([shown_row("u", T0 + 3, "e")], 3)
    assert shown_of(store, "u") == [(hash64("e"), T0 + 3)]
    assert shown_of(store, "v") == [(hash64("x"), T0)]


LISTS = st.lists(st.lists(st.sampled_from("abcdefg"), max_size=6), max_size=12)


@given(LISTS, st.integers(1, 5))
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_both_back_ends_keep_the_same_shown_items(make_store: MakeStore, lists: list[list[str]], keep: int) -> None:
    store, user, expected = make_store(), uuid.uuid4().hex, dict[str, int]()
    for n, items in enumerate(lists):
        store.log_requests([shown_row(user, T0 + n, *items)], keep)
        newer = dict.fromkeys(items, T0 + n)
        expected = dict(list({**newer, **{i: at for i, at in expected.items() if i not in newer}}.items())[:keep])
    assert shown_of(store, user) == [(hash64(item), at) for item, at in expected.items()]


def test_a_store_keeps_its_identity_and_no_two_share_one(make_store: MakeStore, tmp_path: Path, domain: Domain) -> None:
    first = make_store()
    assert make_store().identity == first.identity
    other = LmdbStore(tmp_path / "other", domain.vocabulary, 4, map_bytes=MAP)
    assert other.identity != first.identity
    other.close()


def test_a_clock_that_goes_backwards_loses_nothing(store: Store) -> None:
    """Order is by the events' times, what was seen is told by numbers; neither asks the server's clock."""
    arrivals = [(T0 + 50, T0 + 50), (T0 + 20, T0 + 20), (T0 + 40, T0 + 21), (T0 + 10, T0 + 10)]
    for n, (at, received) in enumerate(arrivals):
        before = store.lookup("u1").watermark
        store.append([make_event(n, item=f"i{n}", at=at, lag=received - at)])
        assert store.lookup("u1").watermark == before + 1
    assert ids(store) == ["i0", "i2", "i1", "i3"]
    assert [row.commit_seq for row in store.drain(bucket_of("u1", 4), 0, 10)] == [1, 2, 3, 4]


def test_requests_and_users_share_the_outbox_with_events(store: Store) -> None:
    """One count a bucket numbers them all, so a reader needs one cursor."""
    request = {"user_id": "u1", "request_id": "r", "timestamp_ms": T0, "item_ids": ["a"], "surface": None}
    store.append([make_event(1)])
    store.log_requests([request])
    store.put_user({"user_id": "u1", "effective_at_ms": T0, "country": "ch"})
    store.put_user({"user_id": "u1", "effective_at_ms": T0 - 1, "country": "de"})  # late: logged, not current
    rows = store.drain(bucket_of("u1", 4), 0, 10)
    assert [(row.commit_seq, row.kind) for row in rows] == [
        (1, OutboxKind.EVENT),
        (2, OutboxKind.REQUEST),
        (3, OutboxKind.USER),
        (4, OutboxKind.USER),
    ]
    assert rows[1].value == {k: v for k, v in request.items() if v is not None}
    assert store.user("u1") == {"user_id": "u1", "effective_at_ms": T0, "country": "ch"}
    assert store.lookup("u1").watermark == 4


ROWS = st.lists(
    st.tuples(st.integers(0, 30), st.integers(-6, 6), st.sampled_from("xyé"), st.sampled_from(["save", "impression"])),
    max_size=40,
)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ROWS, st.integers(1, 20))
def test_order_and_cap_do_not_depend_on_how_events_arrive(
    make_store: MakeStore, domain: Domain, rows: list[tuple[int, int, str, str]], chunk: int
) -> None:
    """In any chunks and any order the store ends with the same newest events, of both kinds."""
    user, store = uuid.uuid4().hex, make_store(cap=6)
    events = list({n: make_event(n, user=user, item=i, at=T0 + t, action=a) for n, t, i, a in rows}.values())
    newest = sorted(events, key=lambda e: (e.timestamp_ms, hash64(e.event_id)), reverse=True)
    kept = [e for e in newest if e.action == "save"][:6] + [e for e in newest if e.action == "impression"][:6]
    expected = [e for e in newest if e in kept]
    for at in range(0, len(events), chunk):
        assert set(store.append(events[at : at + chunk])) == {AppendStatus.ACCEPTED}
    found = store.lookup(user)
    store.close()
    assert list(found.item_ids) == [e.item_id for e in expected]
    assert found.history.event_hash_E.tolist() == [hash64(e.event_id) for e in expected]
    assert found.history.timestamp_ms_E.tolist() == [e.timestamp_ms for e in expected]
    assert found.history.action_E.tolist() == [domain.vocabulary.id_of(e.action) for e in expected]


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ROWS.filter(bool), max_size=5))
def test_the_script_in_redis_writes_the_bytes_that_python_writes(
    redis_url: str, domain: Domain, batches: list[list[tuple[int, int, str, str]]]
) -> None:
    user, cap = uuid.uuid4().hex, 4
    takes_slot = bytes(domain.vocabulary.flags(in_sequence=True).tolist()).ljust(256, b"\0")
    store, here, commit_seq = RedisStore(redis_url, domain.vocabulary, 4, cap=cap), EMPTY, 0
    commit_seq = store.lookup(user).watermark
    for batch in batches:
        events = [make_event(n, user=user, item=i, at=T0 + t, action=a) for n, t, i, a in batch]
        outcomes = store.append(events)
        for event, outcome in zip(events, outcomes, strict=True):
            item_id = event.item_id.encode()
            row = head(event, hash64(event.event_id)) + (commit_seq + 1).to_bytes(6, "big")
            row += bytes((domain.vocabulary.id_of(event.action), len(item_id)))
            after = insert(here, row, item_id, takes_slot, cap)
            assert (after is None) == (outcome is AppendStatus.DUPLICATE)
            here, commit_seq = (here, commit_seq) if after is None else (after, commit_seq + 1)
    with redis.Redis.from_url(redis_url) as client:
        stored = client.get(f"{{rayapp:{bucket_of(user, 4)}}}:seq:{user}")
    store.close()
    assert (stored or EMPTY) == here


def test_events_keep_every_field_in_the_outbox(store: Store) -> None:
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
    assert [Event(**row.value) for row in store.drain(bucket_of("u✓", 4), 0, 10)] == [event]
    assert list(store.lookup("u✓").history.received_at_ms_E) == [T0 + 1]
