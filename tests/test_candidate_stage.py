"""Candidates go by what everybody did once the step is over: alike on all replicas, after a restart, and in jobs."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rayapp.batch.as_of import settled_mix
from rayapp.batch.input_files import plan_files, stage_files
from rayapp.batch.job import InputKind, Job, workspace
from rayapp.batch.part import PartScorer
from rayapp.contracts.config import DAY_MS, Domain
from rayapp.importing.staging import Staging
from rayapp.pipeline.export import export_all
from rayapp.pipeline.statistics import count_statistics
from rayapp.registry.aliases import CHAMPION, promote
from rayapp.retrieval.candidates import Query
from rayapp.root.places import STATISTICS
from rayapp.root.publish import PublishError, write_json
from rayapp.serving.candidate_stage import CandidateStage
from rayapp.serving.closed_steps import GRACE_MS
from rayapp.statistics.known import newest_statistics
from rayapp.store import UserSequence
from rayapp.store.lmdb import LmdbStore
from rayapp.store.opening import open_store
from tests.conftest import T0, make_event
from tests.tiny_models import item_table

STEP_MS = 600_000
START = T0 // STEP_MS * STEP_MS
LIKED = [f"i{n}" for n in range(29, -1, -1)]
"""The order of the item table's likes."""
pytestmark = pytest.mark.usefixtures("without_ray")


class Graph:
    """A root under a clock of its own, and replicas of the stage."""

    def __init__(self, root: Path, store: LmdbStore, domain: Domain) -> None:
        self.root, self.store, self.domain, self.now_ms, self.count = root, store, domain, START, 0
        self.stages: list[CandidateStage] = []

    def replica(self) -> CandidateStage:
        stage = CandidateStage(self.root, open_store(self.root), lambda: self.now_ms * 1_000_000)
        self.stages.append(stage)
        return stage

    def act(self, item: str, *users: str, action: str = "save", late_ms: int = 0) -> None:
        numbers, at_ms = range(self.count, self.count + len(users)), self.now_ms - late_ms
        self.count += len(users)
        events = zip(numbers, users, strict=True)
        self.store.append([make_event(n, user=user, item=item, action=action, at=at_ms) for n, user in events])

    def end_step(self) -> None:
        self.now_ms = (self.now_ms // STEP_MS + 1) * STEP_MS + GRACE_MS

    def export(self) -> None:
        export_all(self.root, self.store, self.now_ms)
        count_statistics(self.root, self.domain)

    async def brings(self, stage: CandidateStage, source: str, count: int = 30) -> list[str]:
        """What a source shows to a new user."""
        query = Query(count, self.now_ms, {} if source == "popular" else {source: 1.0})
        found = await stage.fetch("a", UserSequence.unknown(), query)
        assert found is not None
        return [item for item, by in zip(found.item_ids, found.sources, strict=True) if by == source]


Play = Callable[[Callable[[Graph], Awaitable[None]]], None]


@pytest.fixture
def play(models: tuple[Path, LmdbStore], domain: Domain) -> Play:
    """Runs a test that needs an event loop."""

    def run(test: Callable[[Graph], Awaitable[None]]) -> None:
        async def inside() -> None:
            graph = Graph(*models, domain)
            try:
                await test(graph)
            finally:
                for stage in graph.stages:
                    stage.close()

        asyncio.run(inside())

    return run


def test_a_new_user_sees_what_others_just_did_once_the_step_is_over_on_every_replica(play: Play) -> None:
    async def test(graph: Graph) -> None:
        one, other = graph.replica(), graph.replica()
        graph.act("i3", "ann", "bob")
        graph.act("i7", "ann")
        graph.act("i7", "ann", action="click")
        graph.act("i9", "ann", "bob", "cid", action="hide")
        one.order()
        assert await graph.brings(one, "trending") == []
        assert await graph.brings(one, "popular") == LIKED
        graph.end_step()
        one.order()
        graph.act("i5", "dan", late_ms=2 * GRACE_MS)  # received in the step that `one` has closed
        other.order()
        for stage in (one, other):
            assert await graph.brings(stage, "trending") == ["i3", "i7"]
            assert (await graph.brings(stage, "popular"))[:3] == ["i3", "i7", "i29"]
            assert (await stage.popular("a", graph.now_ms) or [])[:3] == ["i3", "i7", "i29"]
        graph.end_step()
        for stage in (other, one):
            stage.order()
            assert await graph.brings(stage, "trending") == ["i3", "i5", "i7"]

    play(test)


def test_what_trends_is_forgotten_in_hours_and_what_is_popular_in_weeks(play: Play) -> None:
    async def test(graph: Graph) -> None:
        stage = graph.replica()
        graph.act("i3", "ann")
        for hours, trending, popular in ((0, "i3", "i3"), (12, None, "i3"), (24 * 60, None, "i29")):
            graph.now_ms += hours * 3_600_000
            graph.end_step()
            stage.order()
            assert await graph.brings(stage, "trending") == ([trending] if trending else [])
            assert (await graph.brings(stage, "popular"))[0] == popular

    play(test)


def test_a_restart_an_export_and_another_model_lose_nothing(play: Play) -> None:
    async def test(graph: Graph) -> None:
        stage = graph.replica()
        graph.act("i3", "ann", "bob")
        graph.export()
        graph.act("i7", "ann")
        graph.end_step()
        stage.order()
        for _ in range(2):
            again = graph.replica()
            assert await graph.brings(again, "popular") == LIKED, "until the statistics are read"
            again.order()
            for source in ("trending", "popular", "newest"):
                assert await graph.brings(again, source) == await graph.brings(stage, source)
            graph.export()
        graph.store.put_item({"item_id": "new", "created_at_ms": START, "title": "new", "genres": [], "year": None})
        promote(graph.root, CHAMPION, "b")
        await asyncio.to_thread(stage._shelf.refresh)
        assert (await graph.brings(stage, "popular"))[:2] == ["i3", "i7"], "of what it had"
        assert (await graph.brings(stage, "newest"))[0] == "new"
        assert (await stage.popular("b", graph.now_ms) or [])[:2] == ["i3", "i7"], "and of what came to it"

    play(test)


def test_statistics_that_can_not_be_read_leave_the_orders(play: Play) -> None:
    async def test(graph: Graph) -> None:
        graph.act("i3", "ann")
        graph.export()
        (manifest,) = (graph.root / STATISTICS / str(newest_statistics(graph.root))).glob("manifest*")
        write_json(manifest, {"settings": "of another domain"})
        stage = graph.replica()
        with pytest.raises(PublishError):
            stage.order()
        assert await graph.brings(stage, "popular") == LIKED

    play(test)


def test_a_job_fetches_what_the_graph_fetched_at_each_user_s_time(
    play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rayapp.batch.input_files.run_tasks", lambda count, task, told: [task(n) for n in range(count)])
    rows: list[dict[str, object]] = []
    fetched: dict[tuple[str, int, str], str] = {}

    async def test(graph: Graph) -> None:
        stage, rng, num_candidates = graph.replica(), np.random.default_rng(1), 12
        for n in range(12):
            for item in rng.integers(0, 30, 4).tolist():
                graph.act(f"i{item}", f"u{n}", f"v{n}")
            graph.end_step()
            stage.order()
            user, at_ms = f"w{n % 5}", graph.now_ms + 1
            rows.append({"user_id": user, "timestamp_ms": at_ms})
            query = Query(num_candidates, at_ms, settled_mix(), fewest=num_candidates)
            found = await stage.fetch("a", UserSequence.unknown(), query)
            assert found is not None
            fetched.update({(user, at_ms, item): by for item, by in zip(found.item_ids, found.sources, strict=True)})
        graph.export()
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "users.parquet")
        job = Job(
            root=str(graph.root),
            kind=InputKind.USERS,
            model_version="a",
            num_candidates=num_candidates,
            top_k=num_candidates,
        )
        planned = plan_files([tmp_path / "users.parquet"], job.kind, graph.domain)
        with workspace(tmp_path / "out", job, overwrite=False) as work:
            staging = Staging(work.staging, 4)
            staged = stage_files(staging, planned, graph.domain, as_of_ms=None, now_ms=START + DAY_MS)
            write_json(work.directory / "staged.json", staged)
            pq.write_table(
                pa.Table.from_pylist(list(item_table(graph.domain).items)), work.directory / "catalogue.parquet"
            )
            scorer = PartScorer(work, torch.device("cpu"))
            for part in range(4):
                scorer.score(part)
            scores = pq.read_table(work.result / "scores", partitioning=None).to_pylist()
        assert {(s["user_id"], s["timestamp_ms"], s["item_id"]): s["source"] for s in scores} == fetched
        assert {"trending", "newest", "popular"} == set(fetched.values())

    play(test)
