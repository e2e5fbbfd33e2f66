"""Hypothesis drives real stores through any order of appends, erasures, exports, crashes and losses, and compares them
with a model of a few lines."""

import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from rayapp.contracts.config import Domain
from rayapp.contracts.hashing import hash64
from rayapp.contracts.schema import Event, Vocabulary, bucket_of
from rayapp.store import AppendStatus, Committed, OutboxKind, StepTooOld, Store
from rayapp.store.lmdb import LmdbStore
from rayapp.store.redis import RedisStore
from tests.conftest import T0, make_event
from tests.redis_server import free_port, start, stop

CAP, BUCKETS, KEPT = 4, 2, 3
USERS = ("u1", "u2", "u3")
EVENTS = st.tuples(
    st.integers(0, 25),  # few ids, so that duplicates happen
    st.sampled_from(USERS),
    st.sampled_from(["save", "impression"]),
    st.integers(-5, 5),  # few moments, so that ties and late ones happen
)


def name_of(row: Committed) -> Any:
    return row.value["event_id" if row.kind is OutboxKind.EVENT else "request_id"]


class StoreMachine(RuleBasedStateMachine):
    """What a store does against what it should do."""

    vocabulary: Vocabulary

    def open(self) -> Store:
        raise NotImplementedError

    def lose(self) -> None:
        """All that the store held is gone."""
        raise NotImplementedError

    @initialize()
    def begin(self) -> None:
        self.lose()
        self.store = self.open()
        self.kept: dict[str, list[Event]] = defaultdict(list)
        self.erased: dict[str, int] = {}
        self.outbox: dict[int, list[str]] = defaultdict(list)
        self.log: dict[int, list[tuple[int, str]]] = defaultdict(list)
        self.cursor: dict[int, int] = dict.fromkeys(range(BUCKETS), 0)
        self.removed: dict[int, int] = dict.fromkeys(range(BUCKETS), 0)
        self.agreed: dict[int, tuple[int, ...]] = {}
        self.logged: dict[str, Event] = {}
        self.requests = 0

    # ---- what happens ----------------------------------------------------------------------------------------------

    @rule(rows=st.lists(EVENTS, min_size=1, max_size=8))
    def append(self, rows: list[tuple[int, str, str, int]]) -> None:
        events = [make_event(n, user=user, item=f"i{n}", action=action, at=T0 + at) for n, user, action, at in rows]
        assert self.store.append(events) == [self._expected(event) for event in events]

    def _expected(self, event: Event) -> AppendStatus:
        kept = self.kept[event.user_id]
        if event.timestamp_ms <= self.erased.get(event.user_id, -1):
            return AppendStatus.ERASED
        if event.event_id in {e.event_id for e in kept}:
            return AppendStatus.DUPLICATE
        self._keep(event)
        self.outbox[bucket_of(event.user_id, BUCKETS)].append(event.event_id)
        self.logged[f"{event.user_id} {event.event_id}"] = event
        return AppendStatus.ACCEPTED

    def _keep(self, event: Event) -> None:
        newest = sorted(
            [*self.kept[event.user_id], event], key=lambda e: (e.timestamp_ms, hash64(e.event_id)), reverse=True
        )
        of_kind = [e for e in newest if (e.action == "save") == (event.action == "save")]
        dropped = of_kind[CAP:]
        self.kept[event.user_id] = [e for e in newest if e not in dropped]

    @rule(user=st.sampled_from(USERS))
    def log_request(self, user: str) -> None:
        self.requests += 1
        self.store.log_requests([{"user_id": user, "request_id": f"r{self.requests}"}])
        self.outbox[bucket_of(user, BUCKETS)].append(f"r{self.requests}")

    @rule(user=st.sampled_from(USERS), at=st.integers(-5, 5))
    def erase(self, user: str, at: int) -> None:
        self.store.erase(user, T0 + at)
        self.kept[user] = []
        self.erased[user] = max(T0 + at, self.erased.get(user, 0))

    @rule(bucket=st.integers(0, BUCKETS - 1), limit=st.integers(1, 12), acknowledged=st.booleans())
    def export(self, bucket: int, limit: int, acknowledged: bool) -> None:
        """An export that is killed before it has committed asks for the same rows again."""
        rows = self.store.drain(bucket, self.cursor[bucket], limit)
        self.removed[bucket] = self.cursor[bucket]
        ids = [name_of(row) for row in rows]
        assert ids == self.outbox[bucket][:limit]
        assert all(row.commit_seq > self.cursor[bucket] for row in rows)
        if acknowledged and rows:
            self.log[bucket] += [(row.commit_seq, name) for row, name in zip(rows, ids, strict=True)]
            self.cursor[bucket] = rows[-1].commit_seq
            del self.outbox[bucket][:limit]

    @rule(behind=st.tuples(*[st.integers(-2, 12)] * BUCKETS), limit=st.integers(1, 12))
    def read(self, behind: tuple[int, ...], limit: int) -> None:
        """A reader whose cursors are some rows behind the end, or ahead of it."""
        last = [self.cursor[bucket] + len(self.outbox[bucket]) for bucket in range(BUCKETS)]
        after = [max(number - rows, 0) for number, rows in zip(last, behind, strict=True)]
        for bucket, tail in enumerate(self.store.read(after, limit)):
            rows = self.log[bucket] + list(enumerate(self.outbox[bucket], self.cursor[bucket] + 1))
            there = [row for row in rows if row[0] > max(self.removed[bucket], after[bucket])]
            assert [(row.commit_seq, name_of(row)) for row in tail.rows] == there[:limit]
            assert (tail.after, tail.last) == (after[bucket], last[bucket])
            gone = [seq for seq in range(after[bucket] + 1, last[bucket] + 1) if seq <= self.removed[bucket]]
            assert tail.missing_until == max(gone, default=None)

    @rule(step=st.integers(0, 9), cursor=st.integers(0, 3))
    def agree(self, step: int, cursor: int) -> None:
        named = (cursor,) * BUCKETS
        if step not in self.agreed and len(self.agreed) == KEPT and step < min(self.agreed):
            with pytest.raises(StepTooOld):
                self.store.agree(step, named)
        else:
            assert self.store.agree(step, named) == self.agreed.get(step, named)
            self.agreed.setdefault(step, named)
            self.agreed = dict(sorted(self.agreed.items())[-KEPT:])

    @rule()
    def crash(self) -> None:
        """The process ends and another opens the store."""
        identity = self.store.identity
        self.store.close()
        self.store = self.open()
        assert self.store.identity == identity

    @rule()
    def lose_and_rebuild(self) -> None:
        """What stood in the outbox is lost with the store, what is in the log comes back."""
        self.store.close()
        self.lose()
        self.store = self.open()
        self.erased = {}
        exported = {name for rows in self.log.values() for _, name in rows}
        events = [e for e in self.logged.values() if e.event_id in exported]
        events = [e for e in events if e.event_id not in self.outbox[bucket_of(e.user_id, BUCKETS)]]
        self.kept.clear()
        for event in events:
            self._keep(event)
        self.store.rebuild(events)
        for bucket, cursor in self.cursor.items():
            self.store.advance(bucket, cursor)
        self.outbox.clear()
        self.removed = dict(self.cursor)
        self.agreed = {}

    # ---- what must hold --------------------------------------------------------------------------------------------

    @invariant()
    def sequences_are_the_model_s(self) -> None:
        for user in USERS:
            found = self.store.lookup(user)
            assert list(found.item_ids) == [e.item_id for e in self.kept[user]]
            assert found.history.timestamp_ms_E.tolist() == [e.timestamp_ms for e in self.kept[user]]
            assert found.watermark >= self.cursor[bucket_of(user, BUCKETS)], "a log never knows more than its store"

    @invariant()
    def agreements_are_the_model_s(self) -> None:
        assert list(self.store.agreed().items()) == list(self.agreed.items())

    @invariant()
    def the_log_s_numbers_grow(self) -> None:
        for rows in self.log.values():
            numbers = [number for number, _ in rows]
            assert numbers == sorted(set(numbers))

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()


@pytest.fixture(scope="module")
def redis_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    port = free_port()
    server = start(tmp_path_factory.mktemp("redis"), port, "--appendfsync", "no")
    yield port
    stop(server)


@pytest.fixture(autouse=True)
def few_agreements(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that old ones go."""
    for name in ("lmdb_agreements", "redis"):
        monkeypatch.setattr(f"rayapp.store.{name}.KEPT_STEPS", KEPT)


FEW: Any = settings(max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck))


def test_lmdb_is_what_the_model_is(domain: Domain) -> None:
    class Machine(StoreMachine):
        vocabulary = domain.vocabulary

        def open(self) -> Store:
            return LmdbStore(self.path, self.vocabulary, BUCKETS, cap=CAP, map_bytes=1 << 22, sync=False)

        def lose(self) -> None:
            if hasattr(self, "path"):
                shutil.rmtree(self.path)
            self.path = Path(tempfile.mkdtemp(prefix="rayapp-model-"))

        def teardown(self) -> None:
            super().teardown()
            if hasattr(self, "path"):
                shutil.rmtree(self.path)

    run_state_machine_as_test(Machine, settings=FEW)


def test_redis_is_what_the_model_is(domain: Domain, redis_port: int) -> None:
    client = redis.Redis(port=redis_port)

    class Machine(StoreMachine):
        vocabulary = domain.vocabulary

        def open(self) -> Store:
            return RedisStore(f"redis://127.0.0.1:{redis_port}/0", self.vocabulary, BUCKETS, cap=CAP)

        def lose(self) -> None:
            client.flushall()

    run_state_machine_as_test(Machine, settings=FEW)
    client.close()
