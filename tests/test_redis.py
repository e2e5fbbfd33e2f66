"""What only Redis does: it may be set up badly, dead at the start, killed under load, hung, or out of memory."""

import signal
import time
from pathlib import Path

import pytest

from rayapp.contracts.config import Domain
from rayapp.store import StoreError
from rayapp.store.redis import RedisStore
from tests.conftest import T0, drained, forever, make_event
from tests.redis_server import free_port, start, stop


def test_redis_is_warned_about_in_words_where_it_may_lose_events(
    tmp_path: Path, domain: Domain, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    server = start(tmp_path, port, "--appendonly", "no", "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
    RedisStore(f"redis://127.0.0.1:{port}/0", domain.vocabulary, 4).close()
    stop(server)
    assert "set `appendonly yes`" in caplog.text
    assert "set `maxmemory-policy noeviction`" in caplog.text


def test_redis_that_does_not_answer_is_told_in_words(domain: Domain) -> None:
    with pytest.raises(StoreError, match="Redis does not answer"):
        RedisStore(f"redis://:secret@127.0.0.1:{free_port()}/0", domain.vocabulary, 4)


def test_redis_killed_while_written_loses_nothing_acknowledged(tmp_path: Path, domain: Domain) -> None:
    """Its append-only file is synced before each answer; the client connects again by itself."""
    port = free_port()
    server = start(tmp_path, port)
    store = RedisStore(f"redis://127.0.0.1:{port}/0", domain.vocabulary, 4)
    acknowledged = set()
    for n in range(300):
        if n % 100 == 50:
            server.send_signal(signal.SIGKILL)
        event = make_event(n, user=f"u{n % 7}", at=T0 + n)
        while True:
            try:
                store.append([event])
                break
            except StoreError:
                server.wait()
                server = start(tmp_path, port)
        acknowledged.add(event.event_id)
    drained = [row.value["event_id"] for bucket in range(4) for row in store.drain(bucket, 0, 1_000)]
    assert len(drained) == len(set(drained)) == 300
    assert set(drained) == acknowledged
    assert sum(len(store.lookup(f"u{n}").history) for n in range(7)) == 300
    store.close()
    stop(server)


def test_a_redis_without_memory_refuses_and_keeps_what_it_acknowledged(tmp_path: Path, domain: Domain) -> None:
    port = free_port()
    server = start(tmp_path, port, "--maxmemory", "3mb", "--maxmemory-policy", "noeviction")
    store = RedisStore(f"redis://127.0.0.1:{port}/0", domain.vocabulary, 4)
    acknowledged: list[str] = []

    def append(number: int) -> None:
        events = [make_event(1_000 * number + k, user=f"u{number}-{k}") for k in range(100)]
        store.append(events)
        acknowledged.extend(e.event_id for e in events)

    with pytest.raises(StoreError, match="Redis refuses"):
        forever(append)
    assert set(acknowledged) <= set(drained(store))
    store.close()
    stop(server)


def test_a_redis_that_hangs_is_given_up_on_in_words(
    tmp_path: Path, domain: Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped, not ended: connections stand and nobody answers. Retrying is bounded."""
    monkeypatch.setattr("rayapp.store.redis_client.ANSWER_TIMEOUT_S", 0.2)
    port = free_port()
    server = start(tmp_path, port)
    store = RedisStore(f"redis://127.0.0.1:{port}/0", domain.vocabulary, 4)
    store.append([make_event(1)])
    server.send_signal(signal.SIGSTOP)
    started = time.monotonic()
    with pytest.raises(StoreError, match="does not answer"):
        store.append([make_event(2)])
    assert time.monotonic() - started < 20
    server.send_signal(signal.SIGCONT)
    store.append([make_event(2)])  # it may have been taken the first time: sending again is harmless
    assert sorted(drained(store)) == ["e1", "e2"]
    store.close()
    stop(server)
