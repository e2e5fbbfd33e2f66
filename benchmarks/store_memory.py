"""Bench `memory`: what a user with 100 actions costs in each back end, everything included.

The actions come one by one as they do from clients, round after round over all users, through `append`; the outbox is
drained meanwhile as an export would do it. So pages are as full and as scattered as they are in a store that lives.
"""

import tempfile
from pathlib import Path
from typing import Any, Final

import click

from benchmarks.live import RedisProcess
from rayapp.contracts.schema import Event
from rayapp.importing.domains import load_domain
from rayapp.record import Bars, tell
from rayapp.root.facts import DEFAULT_NUM_BUCKETS
from rayapp.store import Store
from rayapp.store.environment import DATA
from rayapp.store.lmdb import LmdbStore
from rayapp.store.redis import RedisStore

ACTIONS: Final = 100
GROUP: Final = 500
"""Events of one append: some requests that share a commit."""
EXPORTED: Final = 10
"""Appends between two times that the outbox is drained."""
LIMIT: Final = 6_144
FIRST_MS: Final = 1_767_225_600_000  # 2026-01-01


def run_memory(users: int, as_json: bool, write: Path | None) -> None:
    with tempfile.TemporaryDirectory(prefix="rayapp-memory-") as directory:
        result: dict[str, Any] = {"bench": "memory", "users": users, "actions": ACTIONS}
        result |= _lmdb(Path(directory) / "lmdb", users) | _redis(Path(directory) / "redis", users)
    series = {"measured": [result["bytes_per_user_lmdb"], result["bytes_per_user_redis"]], "limit": [LIMIT] * 2}
    bars = Bars("bytes per user", ["LMDB", "Redis"], series)
    tell(result, _table(result), f"A user with {ACTIONS} actions", bars, as_json=as_json, write=write)


def fill(store: Store, users: int) -> None:
    """`ACTIONS` actions for each user, ids of 12 bytes, and an empty outbox."""
    group: list[Event] = []
    cursors, appended = [0] * DEFAULT_NUM_BUCKETS, 0
    for n in range(users * ACTIONS):
        action, user = divmod(n, users)
        at_ms = FIRST_MS + action * 60_000
        group.append(
            Event(
                event_id=f"{n:012d}",
                user_id=f"u{user:011d}",
                item_id=f"i{(n * 7919) % 1_000_003:011d}",
                action="save",
                timestamp_ms=at_ms,
                received_at_ms=at_ms,
            )
        )
        if len(group) == GROUP or n == users * ACTIONS - 1:
            store.append(group)
            group.clear()
            appended += 1
            if appended % EXPORTED == 0:
                _drain(store, cursors)
        if action and not user:
            click.echo(f"\r  {action} of {ACTIONS} actions a user ", err=True, nl=False)
    for _ in range(2):  # the second time acknowledges what the first has read
        _drain(store, cursors)
    assert store.stats().outbox_rows == 0
    click.echo(f"\r  {ACTIONS} of {ACTIONS} actions a user", err=True)


def _drain(store: Store, cursors: list[int]) -> None:
    for bucket, cursor in enumerate(cursors):
        rows = store.drain(bucket, cursor, 2 * GROUP * EXPORTED)
        cursors[bucket] = rows[-1].commit_seq if rows else cursor


def _lmdb(path: Path, users: int) -> dict[str, Any]:
    # Without syncing: it decides when a page reaches the disk, and not which pages there are.
    store = LmdbStore(path, load_domain("synthetic").domain.vocabulary, DEFAULT_NUM_BUCKETS, sync=False)
    fill(store, users)
    used = store.stats().used_bytes
    store.close()
    return {
        "bytes_per_user_lmdb": used / users,
        "file_bytes_per_user_lmdb": (path / DATA).stat().st_size / users,
    }


def _redis(path: Path, users: int) -> dict[str, Any]:
    server = RedisProcess(path)
    server.start()
    try:
        # As for LMDB: what is measured lies in memory. An empty server's own bytes are not a user's.
        store = RedisStore(server.url, load_domain("synthetic").domain.vocabulary, DEFAULT_NUM_BUCKETS)
        before = store.stats().used_bytes
        fill(store, users)
        used = store.stats().used_bytes
        store.close()
    finally:
        server.kill()
    return {"bytes_per_user_redis": (used - before) / users}


def _table(r: dict[str, Any]) -> str:
    lines = ["| | bytes per user | wanted |", "|---|---:|---:|"]
    lines += [
        f"| LMDB: pages in use | {r['bytes_per_user_lmdb']:,.0f} | ≤ {LIMIT:,} |",
        f"| LMDB: the file, with pages that will be used again | {r['file_bytes_per_user_lmdb']:,.0f} | – |",
        f"| Redis: `used_memory` above an empty server's | {r['bytes_per_user_redis']:,.0f} | ≤ {LIMIT:,} |",
        "",
        f"{r['users']:,} users with {r['actions']} actions each, ids of 12 bytes, appended in groups of {GROUP:,} "
        "events round after round, the outbox drained all along. All of it: sequences with what recognises a "
        "duplicate, counters, indexes.",
    ]
    return "\n".join(lines)
