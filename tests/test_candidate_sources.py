"""The list of candidate sources: how to add one, and what the documents tell of them."""

import asyncio
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayapp.contracts.config import Domain
from rayapp.experiments.declaration import parse_experiments
from rayapp.features.sequence import History
from rayapp.retrieval.candidates import Query, fetch
from rayapp.retrieval.index import CandidateIndex
from rayapp.retrieval.sources import SOURCES, Found, Need, Pool, Source, default_mix
from rayapp.serving.closed_steps import GRACE_MS
from rayapp.serving.request_run import FALLBACK_REASONS
from rayapp.store.lmdb import LmdbStore
from tests.api_in_process import running
from tests.films import NOW, by_source, item, table_of
from tests.tiny_models import item_table

ROOT = Path(__file__).parents[1]
IN_TIME = {"deadline_ms": 10_000}
"""A first feed sets much up, and this machine may be busy."""
EXPERIMENT = """
[[experiments]]
name = "first"
salt = "first-1"
starts = 2026-12-01
planned_days = 14
[[experiments.arms]]
name = "control"
alias = "champion"
share = 0.1
[[experiments.arms]]
name = "treatment"
alias = "champion"
share = 0.1
mix = { first = 0.5 }
"""


def first_of_the_table(pool: Pool, count: int) -> Found:
    """A function from what a request may show to rows and scores: half of the recipe."""
    row_K = np.flatnonzero(pool.free_N)[:count]
    return Found(row_K, np.ones(len(row_K), np.float32))


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other half: a line of the list."""
    source = Source("first", 0.1, (), "the first items of the table", first_of_the_table)
    monkeypatch.setitem(SOURCES, source.name, source)


@pytest.mark.usefixtures("added")
def test_a_source_of_the_list_is_in_the_mix_in_experiments_and_in_candidates(domain: Domain) -> None:
    assert default_mix()["first"] == 0.1
    (experiment,) = parse_experiments(EXPERIMENT, domain)
    assert experiment.arms[1].mix == {"first": 0.5}
    index = CandidateIndex(table_of([item(n) for n in range(100)]))
    for mix, count in ((default_mix(), 2), ({"first": 0.5}, 10)):
        found = fetch(index, History.empty(), domain.vocabulary, Query(20, NOW, mix))
        assert by_source(found)["first"] == [f"i{n}" for n in range(count)]
        assert len(set(found.item_ids)) == 20, "popular items make room for it"


@pytest.mark.usefixtures("added")
def test_a_source_of_the_list_is_in_answers(models: tuple[Path, LmdbStore], domain: Domain) -> None:
    root, store = models
    store.close()

    async def session() -> None:
        async with running(root, domain) as graph:
            feed: dict[str, Any] = await graph.feed("ann", num_results=20, num_candidates=20, **IN_TIME)
            brought = {row["item_id"]: row["sources"] for row in feed["items"]}
            left = [f"i{n}" for n in range(100) if brought.get(f"i{n}") != ["explore"]]  # drawn before, by chance
            assert {item_id for item_id, sources in brought.items() if sources == ["first"]} == set(left[:2])

    asyncio.run(session())


def test_a_source_reads_what_others_did_once_the_step_is_over(
    models: tuple[Path, LmdbStore],
    domain: Domain,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root, store = models
    store.close()
    asked: list[list[int]] = []
    later_ns = 0

    def watching(pool: Pool, count: int) -> Found:
        asked.append(pool.index.orders.trending.tolist())
        return first_of_the_table(pool, count)

    monkeypatch.setattr("rayapp.serving.candidate_stage.STATISTICS_EVERY_S", 0.01)
    monkeypatch.setitem(SOURCES, "watching", Source("watching", 0.1, (Need.STATISTICS,), "", watching))

    async def session() -> None:
        nonlocal later_ns
        async with running(root, domain, time_ns=lambda: time.time_ns() + later_ns) as graph:
            await graph.act("ann", "i3")
            await graph.act("bob", "i4", "hide")  # nobody likes it
            await graph.feed("cid", **IN_TIME)
            later_ns = (domain.statistics_step_ms + GRACE_MS) * 1_000_000
            async with asyncio.timeout(30):
                while not asked[-1]:
                    await graph.feed("cid", **IN_TIME)

    asyncio.run(session())
    assert asked[-1] == item_table(domain).rows_of_ids(["i3"]).tolist()


def test_the_documents_tell_every_fallback_reason() -> None:
    text = (ROOT / "docs/serving.md").read_text()
    table = text[text.index("| `fallback_reason` |") :].split("\n\n")[0].splitlines()[2:]
    assert table == [f"| `{reason}` | {meaning} |" for reason, meaning in FALLBACK_REASONS.items()]


def test_the_documents_tell_every_source() -> None:
    text = (ROOT / "docs/serving.md").read_text()
    for name, source in SOURCES.items():
        share = "what is left" if source.share is None else f"{source.share:.0%}"
        assert f"| `{name}` | {share} | {', '.join(source.needs)} | {source.brings} |" in text
    told = text[text.index("| source |") :].split("\n\n")[0].count("\n| `")
    assert told == len(SOURCES)
