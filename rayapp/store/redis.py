"""The back end on Redis 7 or Valkey, alone or as a cluster. An append is one server-side script a bucket, `append.lua`;
the short scripts stand in `scripts.py`.

Keys, all of a bucket `b` with the hash tag `{rayapp:b}` and so on one node of a cluster:
    {rayapp:b}:seq:<user_id>    packed events, newest first (`packed.py`)
    {rayapp:b}:last             last commit_seq
    {rayapp:b}:outbox           a stream; an entry's id is its commit_seq, its field the kind, its value JSON
    {rayapp:b}:erased           a hash: sequence key -> events up to this packed time are not taken
    {rayapp:b}:users            a hash: user_id -> attributes as JSON
    {rayapp:store}              what the store was made with, as JSON; with :restored_to a manifest number, with
                                :agreed a sorted set by time step: step and cursors as JSON
    {rayapp:items}:last, :item (a hash item_id -> JSON), :log (sorted set item_id by sequence number)

An acknowledged event survives a crash of Redis only if Redis syncs every write (`appendonly yes`, `appendfsync always`)
and evicts nothing (`maxmemory-policy noeviction`). Both are looked up at the start, and what is amiss is said.
"""

import importlib.resources
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, TypeVar

from rayapp.contracts.hashing import hash64
from rayapp.contracts.schema import FIRST_ACTION_ID, UNKNOWN, Event, Vocabulary, bucket_of
from rayapp.store import (
    DEFAULT_CAP,
    KEPT_STEPS,
    AppendStatus,
    Committed,
    ItemChange,
    OutboxKind,
    StoreError,
    StoreStats,
    Tail,
    UserSequence,
)
from rayapp.store.contents import (
    checked_cursors,
    checked_limit,
    checked_step,
    chunks,
    description,
    encoded,
    event_value,
    refuse_other,
    sequence_of,
    too_old,
)
from rayapp.store.packed import head, packed_time
from rayapp.store.redis_client import answered, connect, primaries, problems_of
from rayapp.store.scripts import ADVANCE, AGREE, COMMIT, ERASE, PUT_ITEM, PUT_USER, READ, SHOW
from rayapp.store.shown import shows

log = logging.getLogger(__name__)
T = TypeVar("T")

DEFAULT_MAX_OUTBOX: Final = 5_000_000
"""Of all buckets; each may hold its share."""
META: Final = "{rayapp:store}"
OF_USER: Final = ("seq", "shown")
"""Keys that each user has; the others are a bucket's."""
AGREED: Final = f"{META}:agreed"
ITEMS: Final = "{rayapp:items}"
_REBUILD_EVENTS: Final = 2_000
_OUTCOMES: Final = {1: AppendStatus.ACCEPTED, 0: AppendStatus.DUPLICATE, -1: AppendStatus.ERASED}


class RedisStore:
    """`Store` in a Redis that several nodes share."""

    def __init__(
        self,
        url: str,
        vocabulary: Vocabulary,
        num_buckets: int,
        *,
        cluster: bool = False,
        cap: int = DEFAULT_CAP,
        max_outbox: int = DEFAULT_MAX_OUTBOX,
    ) -> None:
        """Connects.

        Raises:
            StoreError: Redis does not answer, or holds another bucket count or vocabulary.
        """
        self.num_buckets, self.cap, self.max_outbox = num_buckets, cap, max_outbox
        self._learn(vocabulary)
        self._redis = self._answered(lambda: connect(url, cluster))
        self._append_script = importlib.resources.files("rayapp.store").joinpath("append.lua").read_text()
        self.identity = self._answered(self._check)

    def _learn(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._takes_slot = "".join(str(int(flag)) for flag in vocabulary.flags(in_sequence=True)).ljust(256, "0")
        self._ids = {name: i + FIRST_ACTION_ID for i, name in enumerate(vocabulary.names)}

    def follow(self, vocabulary: Vocabulary) -> None:
        before = self.vocabulary
        self._learn(vocabulary)
        try:
            self._answered(self._check)
        except StoreError:
            self._learn(before)
            raise

    def _check(self) -> str:
        wanted = description(self.vocabulary, self.num_buckets)
        self._redis.set(META, json.dumps(wanted), nx=True)  # two that start at once make one store
        found = json.loads(self._redis.get(META) or "{}")
        refuse_other("the sequence store in Redis", found, wanted)
        wanted["id"] = found["id"]
        if found != wanted:
            self._redis.set(META, json.dumps(wanted))
        for problem in problems_of(self._redis):
            log.warning("Redis: %s", problem)
        return str(wanted["id"])

    def close(self) -> None:
        self._redis.close()

    def _answered(self, ask: Callable[[], T]) -> T:
        """What Redis answers, its errors in our words."""
        return answered(ask, self.max_outbox)

    def _eval(self, calls: Sequence[tuple[str, Sequence[str], Sequence[Any]]]) -> list[Any]:
        """Runs scripts with their keys and arguments, all sent at once: a server syncs once for what it reads at once.

        EVAL and not EVALSHA, which a server that restarts has forgotten. As a plain command, because the client's
        pipeline on a cluster has no method for it.
        """

        def ask() -> list[Any]:
            pipeline = self._redis.pipeline(transaction=False)
            for script, keys, args in calls:
                pipeline.execute_command("EVAL", script, len(keys), *keys, *args)  # type: ignore[no-untyped-call]
            return list(pipeline.execute())

        return self._answered(ask)

    # ---- events ----------------------------------------------------------------------------------------------------

    def append(self, events: Sequence[Event]) -> list[AppendStatus]:
        return self._append(events, outbox=True)

    def rebuild(self, events: Iterable[Event]) -> int:
        parts = chunks(events, _REBUILD_EVENTS)
        return sum(self._append(part, outbox=False).count(AppendStatus.ACCEPTED) for part in parts)

    def _append(self, events: Sequence[Event], *, outbox: bool) -> list[AppendStatus]:
        by_bucket: dict[int, list[int]] = {}
        for i, event in enumerate(events):
            by_bucket.setdefault(bucket_of(event.user_id, self.num_buckets), []).append(i)
        calls = []
        for bucket, indices in by_bucket.items():
            keys = [_key(bucket, "last"), _key(bucket, "outbox"), _key(bucket, "erased")]
            args: list[Any] = [self.cap, self._max_outbox_of_bucket, self._takes_slot, int(outbox)]
            place: dict[str, int] = {}
            for i in indices:
                event = events[i]
                if event.user_id not in place:
                    keys.append(_key(bucket, f"seq:{event.user_id}"))
                    place[event.user_id] = len(keys)
                item_id = event.item_id.encode()
                behind = bytes((self._ids.get(event.action, UNKNOWN), len(item_id)))
                args += [place[event.user_id], head(event, hash64(event.event_id)), behind, item_id]
                args.append(encoded(event_value(event)) if outbox else "")
            calls.append((self._append_script, keys, args))
        outcomes = [AppendStatus.ACCEPTED] * len(events)
        for indices, answer in zip(by_bucket.values(), self._eval(calls), strict=True):
            for i, code in zip(indices, answer, strict=True):
                outcomes[i] = _OUTCOMES[code]
        return outcomes

    @property
    def _max_outbox_of_bucket(self) -> int:
        return max(1, self.max_outbox // self.num_buckets)

    def log_requests(self, requests: Sequence[dict[str, Any]], rest_items: int = 0) -> None:
        by_bucket: dict[int, list[Any]] = {}
        for row in requests:
            args = by_bucket.setdefault(bucket_of(row["user_id"], self.num_buckets), [self._max_outbox_of_bucket])
            args += [OutboxKind.REQUEST, encoded(row)]
        calls: list[tuple[str, list[str], list[Any]]] = [
            (COMMIT, [_key(b, "last"), _key(b, "outbox")], args) for b, args in by_bucket.items()
        ]
        for user_id, at, hashes in shows(requests) if rest_items else ():
            calls.append((SHOW, self._keys_of(user_id, "erased", "seq", "shown"), [rest_items, at, b"".join(hashes)]))
        self._eval(calls)

    def _keys_of(self, user_id: str, *names: str) -> list[str]:
        bucket = bucket_of(user_id, self.num_buckets)
        return [_key(bucket, f"{name}:{user_id}" if name in OF_USER else name) for name in names]

    def lookup(
        self, user_id: str, *, before_ms: int | None = None, limit: int | None = None, shown: bool = False
    ) -> UserSequence:
        keys = self._keys_of(user_id, "seq", "last", *(("shown",) if shown else ()))
        stored, last, *items = self._answered(lambda: self._redis.mget(keys))
        return sequence_of(_bytes(stored), int(last or 0), before_ms, limit, _bytes(items[0]) if items else None)

    def drain(self, bucket: int, cursor: int, limit: int) -> list[Committed]:
        def ask() -> list[Any]:
            outbox = _key(bucket, "outbox")
            pipeline = self._redis.pipeline(transaction=False)
            pipeline.xtrim(outbox, minid=f"{cursor + 1}-0", approximate=False)
            pipeline.xrange(outbox, min=f"{cursor + 1}-0", count=limit)
            return list(pipeline.execute()[1])

        return [_committed(entry, *field) for entry, fields in self._answered(ask) for field in fields.items()]

    def read(self, after: Sequence[int], limit: int) -> list[Tail]:
        cursors = checked_cursors(after, self.num_buckets)
        limit = checked_limit(limit)
        keys = [(_key(b, "last"), _key(b, "outbox")) for b in range(self.num_buckets)]
        # A script a bucket: rows and number are of one moment. Asked for apart, a row that comes or goes in between
        # would look like one that was removed.
        answers = self._eval([(READ, key, [cursor + 1, limit]) for key, cursor in zip(keys, cursors, strict=True)])
        return [
            Tail(cursor, [_committed(entry, *fields) for entry, fields in rows], int(last))
            for cursor, (last, rows) in zip(cursors, answers, strict=True)
        ]

    # ---- agreements ------------------------------------------------------------------------------------------------

    def agree(self, step: int, cursors: Sequence[int]) -> tuple[int, ...]:
        # The step stands in the value too, since no two values of a sorted set are equal.
        step = checked_step(step)
        value = json.dumps([step, checked_cursors(cursors, self.num_buckets)])
        [kept] = self._eval([(AGREE, [AGREED], [step, value, KEPT_STEPS])])
        if kept is None:
            raise too_old(step)
        return tuple(json.loads(kept)[1])

    def agreed(self, after_step: int = -1) -> dict[int, tuple[int, ...]]:
        rows: Any = self._answered(lambda: self._redis.zrange(AGREED, f"({after_step}", "+inf", byscore=True))
        return {step: tuple(cursors) for step, cursors in map(json.loads, rows)}

    # ---- users and items -------------------------------------------------------------------------------------------

    def advance(self, bucket: int, commit_seq: int) -> None:
        self._eval([(ADVANCE, [_key(bucket, "last"), _key(bucket, "outbox")], [commit_seq])])

    def erase(self, user_id: str, at_ms: int) -> None:
        keys = self._keys_of(user_id, "erased", "seq", "users", "shown")
        self._eval([(ERASE, keys, [packed_time(at_ms), user_id])])

    def put_user(self, user: dict[str, Any]) -> None:
        bucket, body = bucket_of(user["user_id"], self.num_buckets), encoded(user)
        keys = [_key(bucket, "last"), _key(bucket, "outbox"), _key(bucket, "users")]
        args = [self._max_outbox_of_bucket, OutboxKind.USER, body, user["user_id"], user["effective_at_ms"]]
        self._eval([(PUT_USER, keys, args)])

    def user(self, user_id: str) -> dict[str, Any] | None:
        bucket = bucket_of(user_id, self.num_buckets)
        raw = self._answered(lambda: self._redis.hget(_key(bucket, "users"), user_id))
        return None if raw is None else dict(json.loads(raw))

    def restored_to(self) -> int | None:
        raw = self._answered(lambda: self._redis.get(f"{META}:restored_to"))
        return None if raw is None else int(raw)

    def set_restored_to(self, manifest: int) -> None:
        self._answered(lambda: self._redis.set(f"{META}:restored_to", manifest))

    def put_item(self, item: dict[str, Any]) -> int:
        return self.put_items([item])

    def put_items(self, items: Sequence[dict[str, Any]]) -> int:
        return self._put_items([[item["item_id"], encoded(item)] for item in items])

    def _put_items(self, args: list[list[Any]]) -> int:
        """The last item's number; 0 where it is not what its third argument says any more."""
        keys = [f"{ITEMS}:last", f"{ITEMS}:item", f"{ITEMS}:log"]
        return int(self._eval([(PUT_ITEM, keys, of_one) for of_one in args])[-1])

    def change_item(self, item_id: str, change: ItemChange) -> dict[str, Any] | None:
        while True:  # until nobody came in between
            stored = self._answered(lambda: self._redis.hget(f"{ITEMS}:item", item_id))
            item = change(None if stored is None else json.loads(stored))
            if item is None or self._put_items([[item_id, encoded(item), stored or ""]]):
                return item

    def item(self, item_id: str) -> dict[str, Any] | None:
        raw = self._answered(lambda: self._redis.hget(f"{ITEMS}:item", item_id))
        return None if raw is None else dict(json.loads(raw))

    def items_since(self, sequence: int) -> tuple[int, list[dict[str, Any]]]:
        def ask() -> list[Any]:
            rows: list[Any] = self._redis.zrange(f"{ITEMS}:log", sequence + 1, "+inf", byscore=True, withscores=True)
            bodies = self._redis.hmget(f"{ITEMS}:item", [item_id for item_id, _ in rows]) if rows else []
            return list(zip([int(score) for _, score in rows], bodies, strict=True))

        rows = self._answered(ask)
        return (rows[-1][0] if rows else sequence), [json.loads(body) for _, body in rows]

    def stats(self) -> StoreStats:
        def ask() -> StoreStats:
            lengths = self._redis.pipeline(transaction=False)
            for bucket in range(self.num_buckets):
                lengths.xlen(_key(bucket, "outbox"))
            rows = sum(lengths.execute())
            nodes = [node.info("memory") for node in primaries(self._redis)]
            limits = [int(node["maxmemory"]) for node in nodes]
            used = sum(int(node["used_memory"]) for node in nodes)
            return StoreStats(rows, self.max_outbox, used, sum(limits) if all(limits) else None)

        return self._answered(ask)


def _key(bucket: int, name: str) -> str:
    return f"{{rayapp:{bucket}}}:{name}"


def _committed(entry: Any, kind: Any, value: bytes) -> Committed:
    """A row of the stream, whose entry's id is its commit_seq."""
    return Committed(int(_text(entry).partition("-")[0]), OutboxKind(_text(kind)), json.loads(value))


def _bytes(value: bytes | str | None) -> bytes | None:
    assert not isinstance(value, str)  # responses are not decoded
    return value


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
