"""The parts of the stages that need no request: commits in groups, and the model that answers."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rayapp.contracts.config import Domain
from rayapp.contracts.schema import Event
from rayapp.serving import group_commit
from rayapp.serving.background import Background
from rayapp.serving.group_commit import Busy, GroupCommit
from rayapp.serving.live import Live
from rayapp.store import AppendStatus, StoreError
from rayapp.store.lmdb import LmdbStore
from tests.conftest import make_event


class Held(LmdbStore):
    """A store whose appends wait until they are let go."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.go, self.groups = threading.Event(), list[int]()

    def append(self, events: Any) -> list[AppendStatus]:
        self.go.wait(10)
        self.groups.append(len(events))
        return super().append(events)


@pytest.fixture
def store(root: Path, domain: Domain) -> Iterator[Held]:
    held = Held(root / "store", domain.vocabulary, 4, map_bytes=1 << 24)
    yield held
    held.close()


def test_what_arrives_during_a_commit_shares_the_next_one(store: Held) -> None:
    told: list[list[Event]] = []

    async def session() -> list[list[AppendStatus]]:
        commits = GroupCommit(store, told.append)
        sent = [asyncio.create_task(commits.append([make_event(n)])) for n in (1, 2, 3, 1)]
        await asyncio.sleep(0.01)
        sent[1].cancel()  # a client that goes away
        store.go.set()
        return await asyncio.gather(sent[0], sent[2], sent[3])

    outcomes = asyncio.run(session())
    assert outcomes == [[AppendStatus.ACCEPTED], [AppendStatus.ACCEPTED], [AppendStatus.DUPLICATE]]
    assert store.groups[0] <= 4
    assert len(store.groups) <= 2
    assert sum(store.groups) == 4, "what a client sent that went away is stored"
    assert sum(map(len, told)) == 3


def test_too_much_that_waits_is_refused_and_a_failure_is_told(store: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_commit, "MAX_PENDING_EVENTS", 2)

    async def session() -> None:
        commits = GroupCommit(store, lambda events: None)
        first = asyncio.create_task(commits.append([make_event(0)]))
        await asyncio.sleep(0.01)
        more = asyncio.create_task(commits.append([make_event(1), make_event(2)]))
        await asyncio.sleep(0.01)
        with pytest.raises(Busy, match="2 events wait"):
            await commits.append([make_event(3)])
        store.go.set()
        await asyncio.gather(first, more)
        assert commits.failure(10) is None
        monkeypatch.setattr(store, "log_requests", broken)
        with pytest.raises(StoreError, match="disk is gone"):
            await commits.log_requests([{"request_id": "r"}])
        assert commits.failure(10) == "the disk is gone"
        assert commits.failure(0) is None

    def broken(rows: Any, rest_items: int) -> None:
        raise StoreError("the disk is gone")

    asyncio.run(session())


def test_a_champion_answers_once_all_stages_hold_it() -> None:
    held = {"ranker": ["a"], "candidates": ["a", "b"]}

    def stage(name: str) -> Any:
        async def versions() -> list[str]:
            return held[name]

        async def popular(version: str, now_ms: int) -> list[str] | None:
            return ["i1"] if version in held[name] else None

        return SimpleNamespace(versions=versions, popular=popular)

    async def session() -> None:
        live, stages = (
            Live.of({"champion": "a"}),
            SimpleNamespace(ranker=stage("ranker"), candidates=stage("candidates")),
        )
        await live.fetch_popular(stages, 0)
        await live.follow({"champion": "b", "shadow": "a"}, stages)
        assert (live.version, live.versions_for("shadow")) == ("a", ["a", "a", "a"])
        held["ranker"].append("b")
        await live.follow({"champion": "b"}, stages)
        assert live.versions_for("gone") == ["b", "a"]
        held["candidates"].remove("b")
        await live.fetch_popular(stages, 0)
        assert live.popular == ["i1"], "what was told before stands"

    asyncio.run(session())


def test_a_refresh_that_fails_is_tried_again_and_one_that_ended_is_told(caplog: pytest.LogCaptureFixture) -> None:
    calls = 0

    async def refresh() -> None:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise ValueError("not yet")

    async def session() -> None:
        background = Background()
        background.every(0.001, refresh)
        async with asyncio.timeout(10):
            while calls < 4:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        background.check()
        background.close()
        await asyncio.sleep(0.001)
        with pytest.raises(RuntimeError, match="has ended"):
            background.check()

    asyncio.run(session())
    assert caplog.text.count("refreshing failed") == 1
