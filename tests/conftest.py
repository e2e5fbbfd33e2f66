"""Shared fixtures. Ray starts once, and only for tests marked `cluster`."""

import asyncio
import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from click.testing import CliRunner, Result

from rayapp.cli.main import cli
from rayapp.contracts.config import HALF_LIVES_MS, Domain, Head
from rayapp.contracts.hashing import hash64
from rayapp.contracts.presets import COUNTS, nano, variant
from rayapp.contracts.schema import PAD, Action, ActionKind, Attribute, AttributeKind, Event, Vocabulary
from rayapp.features.requests import Requests, context_row
from rayapp.features.sequence import Sequences
from rayapp.features.statistic_columns import MAX_HEADS, Columns
from rayapp.importing.domains import load_domain
from rayapp.loop.artifacts import Prepared, build_windows, item_table, train_model, training_run
from rayapp.loop.first_import import import_once
from rayapp.loop.first_training import split_of
from rayapp.pipeline.restore import seed_store
from rayapp.pipeline.tasks import quiet, run_tasks
from rayapp.registry.aliases import BASELINE, CHAMPION, promote
from rayapp.root.facts import make_root
from rayapp.sources.synthetic import World, write_world
from rayapp.store import Store
from rayapp.store.lmdb import LmdbStore
from rayapp.store.opening import open_store
from rayapp.training.run import train_and_publish, train_here
from tests.tiny_models import publish_models

# How long an example takes says more of the machine than of the code.
hypothesis.settings.register_profile("no-deadline", deadline=None)
hypothesis.settings.load_profile("no-deadline")

RAYAPP = str(Path(sys.executable).with_name("rayapp"))
"""The command as it is installed."""
T0 = 1_767_225_600_000  # 2026-01-01


@pytest.fixture(scope="session")
def domain() -> Domain:
    """A small feed: click (neutral), save (positive), hide (negative), impression (out of the sequence)."""
    return Domain(
        name="test",
        vocabulary=Vocabulary(
            (
                Action(name="click", kind=ActionKind.NEUTRAL, priority=0),
                Action(name="save", kind=ActionKind.POSITIVE, priority=2),
                Action(name="hide", kind=ActionKind.NEGATIVE, priority=3),
                Action(name="impression", kind=ActionKind.NEUTRAL, in_sequence=False),
            )
        ),
        heads=(
            Head(name="save", actions=("save",), utility=1.0),
            Head(name="hide", actions=("hide",), utility=-1.0),
        ),
        positive_head="save",
        attributes=(
            Attribute("title", AttributeKind.TEXT),
            Attribute("genres", AttributeKind.CATEGORIES),
            Attribute("year", AttributeKind.NUMBER),
        ),
        title="title",
    )


@pytest.fixture
def root(tmp_path: Path, domain: Domain) -> Path:
    """An empty root of four buckets."""
    path = tmp_path / "root"
    make_root(path, domain, num_buckets=4)
    return path


@pytest.fixture
def store(root: Path) -> Iterator[Store]:
    """The store of that root."""
    opened = open_store(root)
    yield opened
    opened.close()


@pytest.fixture
def models(root: Path, domain: Domain) -> Iterator[tuple[Path, LmdbStore]]:
    """That root with two models in it, and its store."""
    publish_models(root, domain)
    store = LmdbStore(root / "store", domain.vocabulary, 4, map_bytes=1 << 24)
    yield root, store
    store.close()


@pytest.fixture
def api(models: tuple[Path, LmdbStore], domain: Domain) -> Callable[..., None]:
    """Runs a test, an async function of a `Running`, against the API of a root with two models."""
    from tests.api_in_process import running  # the whole HTTP side, which most tests do not need

    root, store = models
    store.close()

    def run(test: Callable[[Any], Coroutine[Any, Any, None]], **options: Any) -> None:
        async def inside() -> None:
            async with running(root, domain, **options) as graph:
                await test(graph)

        asyncio.run(inside())

    return run


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def make_event(
    n: int, *, user: str = "u1", item: str = "i1", action: str = "click", at: int = T0, lag: int = 0
) -> Event:
    """The n-th event: its id is `e<n>`."""
    return Event(event_id=f"e{n}", user_id=user, item_id=item, action=action, timestamp_ms=at, received_at_ms=at + lag)


def until(condition: Callable[[], bool], seconds: float) -> None:
    """Waits for something that must become true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not become true in time"
        time.sleep(0.01)


def forever(append: Callable[[int], None]) -> None:
    for number in range(1_000):
        append(number)


def drained(store: Store) -> list[str]:
    return [row.value["event_id"] for bucket in range(4) for row in store.drain(bucket, 0, 1_000_000)]


@pytest.fixture(scope="session")
def ray_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One local Ray for every test that needs one."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_DATA_DISABLE_PROGRESS_BARS"] = "1"
    from rayapp.launch.runtime import local_ray

    with local_ray():
        yield


@pytest.fixture(scope="session")
def on_our_ray(ray_session: None) -> dict[str, str]:
    """The environment of commands that run on that Ray, as those of `ray job submit` run on theirs: each is spared the
    start of its own."""
    import ray

    return {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics are counted and compared, and windows built, in this process."""
    for name in ("statistics", "statistics_parity", "windows"):
        monkeypatch.setattr(
            f"rayapp.pipeline.{name}.run_tasks", lambda count, task, told=quiet: [task(n) for n in range(count)]
        )


Command = Callable[..., Result]


@pytest.fixture
def rayapp_here(ray_session: None, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs `rayapp WORDS` in this process on that Ray: it needs no start of a process, nor of a Ray of its own."""
    for starts in ("local_ray", "job_ray"):
        monkeypatch.setattr(f"rayapp.launch.runtime.{starts}", lambda **_: contextlib.nullcontext())
    return lambda *words: CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False)


def make_request(
    action_L: np.ndarray,
    item_hash_L: np.ndarray,
    candidate_hash_C: np.ndarray,
    *,
    num_heads: int,
    attributes: Sequence[Attribute] = (),
    user: str = "u1",
    timestamp_ms: int = 50,
    **context: object,
) -> Requests:
    """One request without statistics, as the server asks a scorer."""
    num_item, num_user = Columns(len(HALF_LIVES_MS), tuple(range(1, num_heads + 1))[:MAX_HEADS]).widths
    length = np.array([int((action_L != PAD).sum())])
    sequences = Sequences(action_L[None], item_hash_L[None], np.zeros((1, len(action_L)), np.int64), length)
    return Requests.of_one(
        hash64(user),
        timestamp_ms,
        context_row(attributes, timestamp_ms, context),
        sequences,
        candidate_hash_C,
        np.zeros(num_user, np.float32),
        np.zeros((len(candidate_hash_C), num_item), np.float32),
    )


WORLD = World(num_users=120, num_items=200, sessions_per_day=0.2)


@pytest.fixture(scope="session")
def trained_world(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Prepared]:
    """A root with logs, statistics, windows, three trained models, aliases and a seeded store. Made once; nobody
    changes it."""
    root = tmp_path_factory.mktemp("trained") / "root"
    domain_file = load_domain("synthetic")
    assert import_once(root, domain_file, lambda: write_world(WORLD, root / "raw", run_tasks))
    domain = domain_file.domain
    prepared, _ = build_windows(root, domain, split_of(root))
    table, _ = item_table(root, prepared, nano())
    presets = {CHAMPION: nano(), **{name: variant(nano(), name) for name in (BASELINE, COUNTS)}}
    for alias, preset in presets.items():
        run = training_run(root, prepared, preset, table)
        assert train_model(run, domain, train_and_publish if alias == CHAMPION else train_here)
        assert not train_model(run, domain), "a finished step is reused"
        promote(root, alias, run.version)
    assert seed_store(root)[0] > 0
    assert seed_store(root) == (0, False)
    return root, prepared


@pytest.fixture(scope="module")
def world(trained_world: tuple[Path, Prepared], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Prepared]:
    """A copy of the trained world that a test module may change."""
    root = tmp_path_factory.mktemp("world") / "root"
    shutil.copytree(trained_world[0], root)
    return root, trained_world[1]
