"""Batch scores of what was served, histories as the store holds them, and a full disk: real stores, no Ray."""

import base64
import dataclasses
import errno
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rayapp.batch.as_of import as_stored
from rayapp.batch.job import InputKind, Job, Workspace, workspace
from rayapp.batch.part import PartScorer
from rayapp.contracts.config import Domain
from rayapp.contracts.hashing import hash64
from rayapp.contracts.schema import bucket_of
from rayapp.features.sequence import NO_WATERMARK
from rayapp.pipeline.export import export
from rayapp.pipeline.histories import UserHistories
from rayapp.pipeline.log_view import LogView
from rayapp.pipeline.statistics import count_statistics
from rayapp.registry.models import LoadedModel, load_model
from rayapp.root.facts import read_root
from rayapp.root.logs import read_log
from rayapp.root.places import REQUESTS
from rayapp.root.publish import write_json
from rayapp.serving.fresh_statistics import FreshStatistics
from rayapp.serving.ranking import RankCall, rank
from rayapp.statistics.logged import pack
from rayapp.store.lmdb import LmdbStore
from tests.conftest import T0, make_event
from tests.tiny_models import item_table

NOW = T0 + 10 * 86_400_000


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As an actor has it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def events_of_test() -> list[dict[str, object]]:
    rng = np.random.default_rng(1)
    return [
        {"n": n, "user": f"u{rng.integers(6)}", "item": f"i{rng.integers(30)}",
         "at": T0 + int(rng.integers(10_000_000)), "action": ["click", "save", "hide", "impression"][rng.integers(4)],
         "lag": int(rng.integers(3)) * 2_000_000}
        for n in range(900)
    ]  # fmt: skip


@dataclasses.dataclass
class Clock:
    """What the replica takes for the time."""

    now_ms: int = T0

    def time_ns(self) -> int:
        return self.now_ms * 1_000_000


def live(
    store: LmdbStore,
    statistics: FreshStatistics,
    domain: Domain,
    model: LoadedModel,
    user: str,
    at_ms: int,
    items: list[str],
) -> dict[str, object]:
    """What a replica does with one request, and the row it logs."""
    seen = store.lookup(user)
    ranking = rank(model, statistics, domain, RankCall.of(user, seen, at_ms, items, {}))
    return {
        "user_id": user,
        "timestamp_ms": at_ms,
        "item_ids": items,
        "probabilities": ranking.probability_CH.ravel().tolist(),
        "model_version": model.version,
        "watermark": seen.watermark,
        "sequence_hash": ranking.sequence_hash,
        "statistics_at_ms": ranking.statistics.at_ms,
        "statistics": pack(ranking.statistics.item_CK, ranking.statistics.user_K),
    }


def serve(root: Path, store: LmdbStore, domain: Domain, num_requests: int) -> Path:
    """The root, its log holding requests served while events arrived, many late, while time went on, and while the
    champion and the statistics that were counted last changed."""
    for item in item_table(domain).items:
        store.put_item(dict(item))
    export(root, store, T0)
    count_statistics(root, domain)
    loaded = {version: load_model(root, version, domain) for version in ("a", "b")}
    clock = Clock()
    statistics = FreshStatistics(root, domain, store, clock.time_ns)
    arriving = sorted(events_of_test(), key=lambda e: int(e["at"]) + int(e["lag"]))  # type: ignore[call-overload]
    rng, requests = np.random.default_rng(2), 0
    for round in range(20):
        group = arriving[45 * round : 45 * round + 45]
        store.append([make_event(**event) for event in group])  # type: ignore[arg-type]
        clock.now_ms = now = int(group[-1]["at"]) + int(group[-1]["lag"])  # type: ignore[call-overload]
        if round == 8:
            export(root, store, NOW)
            count_statistics(root, domain)
        if round % 3 == 0:  # else what was served stays
            statistics.refresh()
        rows = []
        for user in (f"u{k % 7}" for k in range(num_requests // 20)):
            items = [f"i{i}" for i in rng.choice(32, 1 + requests % 40, replace=requests % 40 > 30)]
            row = live(store, statistics, domain, loaded["a" if round < 10 else "b"], user, now, items)
            rows.append({"request_id": f"r{requests}", **row})
            requests += 1
        store.log_requests(rows)
    assert requests == num_requests
    while export(root, store, NOW):
        pass
    count_statistics(root, domain)
    return root


@pytest.fixture
def served(models: tuple[Path, LmdbStore], domain: Domain, without_ray: None) -> Path:
    return serve(*models, domain, 100)


def score_all(root: Path, out: Path, given: Job) -> tuple[list[dict], pa.Table]:
    with workspace(out, given, overwrite=False) as work:
        write_json(work.directory / "staged.json", {"partitions": 8})
        pq.write_table(pa.Table.from_pylist([dict(i) for i in item_table(read_root(root)[0]).items]),
                       work.directory / "catalogue.parquet")  # fmt: skip
        scorer = PartScorer(work, torch.device("cpu"))
        records = [scorer.score(part) for part in range(8)]
        return records, pq.read_table(work.result / "scores", partitioning=None)


@pytest.mark.slow
def test_served_requests_are_reproduced_with_late_events_and_a_model_swap(
    models: tuple[Path, LmdbStore],
    domain: Domain,
    without_ray: None,
    tmp_path: Path,
) -> None:
    served = serve(*models, domain, 1_000)
    asked = Job(root=str(served), kind=InputKind.REQUESTS)
    records, table = score_all(served, tmp_path / "out", asked)
    assert sum(r["compared"] for r in records if "compared" in r) == 1_000
    assert sum(r["equal_hashes"] for r in records if "equal_hashes" in r) == 1_000
    assert max(r["max_difference"] for r in records) < 1e-5
    assert set(table["model_version"].to_pylist()) == {"a", "b"}
    assert table["logged_difference"].null_count == 0
    logged = read_log(served, REQUESTS, ["watermark", "statistics_at_ms", "statistics"])
    assert logged["watermark"].null_count == logged["statistics_at_ms"].null_count == 0
    assert len(logged["statistics_at_ms"].unique()) >= 5
    counted = [text for text in logged["statistics"].to_pylist() if any(base64.b64decode(text))]
    assert len(counted) > logged.num_rows * 2 / 3, "most were answered with counts"
    # Another model is another answer: the comparison can fail.
    records, _ = score_all(served, tmp_path / "other", dataclasses.replace(asked, model_version="b"))
    assert sum(r["different"] for r in records if "different" in r) > 250


def test_histories_are_what_the_store_holds(served: Path, domain: Domain, tmp_path: Path) -> None:
    store = LmdbStore(tmp_path / "again", domain.vocabulary, 4, map_bytes=1 << 24)
    store.append([make_event(**event) for event in events_of_test()])  # type: ignore[arg-type]
    for user in [f"u{k}" for k in range(7)]:
        histories = UserHistories.of(LogView.of(served).events(bucket_of(user, 4)), domain)
        one = np.array([hash64(user)], np.uint64)
        start, end = histories.ranges(one, np.array([NOW]))
        found = as_stored(histories.history.take(slice(start[0], end[0])), NOW, NO_WATERMARK, domain.vocabulary)
        expected = store.lookup(user).history
        assert found.event_hash_E.tolist() == expected.event_hash_E.tolist()
        middle = T0 + 5_000_000
        start, end = histories.ranges(one, np.array([middle]))
        early = as_stored(histories.history.take(slice(start[0], end[0])), middle, NO_WATERMARK, domain.vocabulary)
        seen = (expected.timestamp_ms_E < middle) & (expected.received_at_ms_E <= middle)
        assert early.event_hash_E.tolist() == expected.event_hash_E[seen].tolist()
    store.close()


# ---- a full disk -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_full_disk_leaves_no_half_part_and_the_next_run_makes_it_whole(served: Path, tmp_path: Path) -> None:
    asked = Job(root=str(served), kind=InputKind.REQUESTS)
    out = tmp_path / "out"
    with workspace(out, asked, overwrite=False) as work:
        directory = work.directory
    program = (
        "import resource, signal, sys, torch\n"
        "from pathlib import Path\n"
        "from rayapp.batch.job import Workspace\n"
        "from rayapp.batch.part import PartScorer\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "torch.set_num_threads(1)\n"
        "scorer = PartScorer(Workspace.read(Path(sys.argv[1])), torch.device('cpu'))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "try:\n"
        "    [scorer.score(part) for part in range(8)]\n"
        "except OSError as error:\n"
        "    sys.exit(error.errno)\n"
    )
    write_json(directory / "staged.json", {"partitions": 8})
    pq.write_table(pa.table({"item_id": pa.array([], pa.string())}), directory / "catalogue.parquet")
    done = subprocess.run([sys.executable, "-c", program, str(directory)], capture_output=True, text=True, check=False)
    assert done.returncode == errno.EFBIG, done.stderr
    assert list((directory / "result").rglob("*.tmp")) == []
    assert len(Workspace.read(directory).finished()) < 8
    records, table = score_all(served, out, asked)
    assert table.num_rows == sum(r["rows"] for r in records) > 0
