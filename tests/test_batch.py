"""Batch scoring without Ray: sums that merge, rows that become requests, workspaces, served requests scored again."""

import dataclasses
import errno
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rayapp.batch.accumulators import Accumulators, Sums
from rayapp.batch.asked import BY_TIME, asked_of
from rayapp.batch.histories import read_histories
from rayapp.batch.inputs import check_rows, num_partitions, plan_files
from rayapp.batch.job import Job, Kind, State, Workspace, finished_output, publish, workspace
from rayapp.batch.models import PastRates, changed_items
from rayapp.batch.part import PartScorer, cuts
from rayapp.batch.scoring import batches
from rayapp.config import Domain
from rayapp.features.requests import Requests, context_row
from rayapp.features.sequence import NO_WATERMARK, at_request
from rayapp.hashing import hash64
from rayapp.pipeline.export import export
from rayapp.publish import PublishError, read_json, write_json
from rayapp.registry.models import LoadedModel, load_model
from rayapp.root import read_root
from rayapp.schema import Attribute, AttributeKind, bucket_of
from rayapp.store.lmdb import LmdbStore
from rayapp.training import metrics
from tests.conftest import T0, make_event
from tests.test_serving import item_table, models  # noqa: F401  (a fixture)

NOW = T0 + 10 * 86_400_000


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As an actor has it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ---- sums ------------------------------------------------------------------------------------------------------------


def test_sums_say_what_the_metrics_say(rng: np.random.Generator) -> None:
    probability = rng.beta(1, 6, 20_000).astype(np.float32)
    label = (rng.random(20_000) < probability).astype(np.float32)
    sums = Sums()
    for part in np.array_split(np.arange(20_000), 7):
        sums.add(probability[part], label[part])
    result = sums.result()
    assert result["auc"] == pytest.approx(metrics.auc(probability, label)[0], abs=1e-3)
    assert result["normalised_entropy"] == pytest.approx(metrics.normalised_entropy(probability, label)[0])
    assert result["calibration"] == pytest.approx(metrics.calibration_ratio(probability, label)[0])
    assert (result["rows"], result["labels"]) == (20_000, label.sum())


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.sampled_from([0.0, 1.0, float("nan")]), st.integers(0, 80)), max_size=40))
def test_accumulators_of_parts_add_up_and_survive_json(rows: list[tuple[float, float, int]]) -> None:
    columns = [np.array([row[k] for row in rows]) for k in range(3)]
    p, label, activity = columns[0].astype(np.float32), columns[1].astype(np.float32), columns[2].astype(np.int64)
    whole, merged = Accumulators(), Accumulators()
    whole.add("save", p, label, activity)
    for part in np.array_split(np.arange(len(rows)), 3):
        some = Accumulators()
        some.add("save", p[part], label[part], activity[part])
        merged.merge(Accumulators.from_json(json.loads(json.dumps(some.to_json()))))
    one, other = whole.result(), merged.result()
    assert one.keys() == other.keys() == ({"save"} if (~np.isnan(label)).any() else set())
    for segment, values in one.get("save", {}).items():
        for name, value in values.items():
            found = other["save"][segment][name]
            assert found == (None if value is None else pytest.approx(value))


def test_without_both_classes_there_is_no_auc() -> None:
    sums = Sums()
    sums.add(np.array([0.2, 0.3], np.float32), np.zeros(2, np.float32))
    assert sums.result() == {"auc": None, "normalised_entropy": None, "rows": 2, "labels": 0, "calibration": None}


# ---- requests --------------------------------------------------------------------------------------------------------


def rows_of(users: list[str], items: list[str], **more: list[object]) -> pa.Table:
    numbers = {"source_file": pa.array([0] * len(users), pa.int32()), "source_row": pa.array(range(1, len(users) + 1))}
    return pa.table({"user_id": users, "item_id": items, **more, **numbers})


def test_rows_of_one_user_and_moment_are_one_request_and_an_item_asked_twice_counts_once(domain: Domain) -> None:
    asked = asked_of(rows_of(["b", "a", "b", "a", "b"], ["1", "2", "3", "2", "1"], n=[0, 1, 2, 3, 4]), domain, 50)
    assert asked.rows.to_pylist() == [
        {"user_id": "a", "item_id": "2", "n": 1},
        {"user_id": "b", "item_id": "1", "n": 0},
        {"user_id": "b", "item_id": "3", "n": 2},
    ]
    assert asked.offset_R.tolist() == [0, 1, 3]
    assert asked.duplicates == 2
    assert asked.timestamp_ms_R.tolist() == [50, 50]
    assert asked.watermark_R.tolist() == [NO_WATERMARK] * 2
    assert set(asked.rate_snapshot_R) == {BY_TIME}
    assert asked.user_hash_R.tolist() == [hash64("a"), hash64("b")]


def test_times_watermarks_requests_and_context_part_the_rows_of_a_user(domain: Domain) -> None:
    domain = dataclasses.replace(domain, context_attributes=(Attribute("tab", AttributeKind.CATEGORIES),))
    asked = asked_of(
        rows_of(
            ["a"] * 6,
            ["1"] * 6,
            timestamp_ms=[9, None, 7, 7, 7, 7],
            watermark=[None, None, 3, None, None, None],
            request_id=[None, None, None, "r", None, None],
            tab=pa.array([None, None, None, None, ["x"], None], pa.large_list(pa.string())),
        ),
        domain,
        8,
    )
    assert len(asked) == 6
    assert sorted(zip(asked.timestamp_ms_R.tolist(), asked.watermark_R.tolist(), strict=True)) == [
        *[(7, -1)] * 3,
        (7, 3),
        (8, -1),
        (9, -1),
    ]
    assert asked.context["tab"].to_pylist().count(["x"]) == 1
    assert asked.context["timestamp_ms"].to_pylist() == asked.timestamp_ms_R.tolist()


@given(st.lists(st.integers(0, 300), max_size=60), st.booleans())
def test_every_request_is_in_one_batch_and_batches_stay_small(sizes: list[int], gpu: bool) -> None:
    size = np.array(sizes, np.int64)
    made = list(batches(size, gpu=gpu))
    assert sorted(r for rows in made for r in rows.tolist()) == np.flatnonzero(size).tolist()
    most = 8192 if gpu else 128
    assert all(len(rows) == 1 or len(rows) * size[rows].max() <= most for rows in made)


@given(st.lists(st.tuples(st.integers(0, 50_000), st.integers(0, 2_000_000)), max_size=30))
def test_cuts_cover_all_requests_in_order(sizes: list[tuple[int, int]]) -> None:
    items, events = (np.array([s[k] for s in sizes], np.int64) for k in (0, 1))
    pieces = list(cuts(items, events))
    assert [r for piece in pieces for r in range(piece.start, piece.stop)] == list(range(len(sizes)))
    assert all(p.stop == p.start + 1 or items[p].sum() <= 20_000 for p in pieces)


def test_partitions_are_a_multiple_of_the_buckets() -> None:
    assert num_partitions(0, 4, 100) == 4
    assert num_partitions(1000, 4, 100) == 12
    assert num_partitions(10**12, 4096, 1000) <= 65_535
    user = "someone"
    assert hash64(user) % 12 % 4 == bucket_of(user, 4), "a part's users lie in one bucket"


# ---- input files -----------------------------------------------------------------------------------------------------


def test_files_that_do_not_fit_are_told_and_the_others_are_read(domain: Domain, tmp_path: Path) -> None:
    good = pa.table({"user_id": ["u"], "item_id": ["i"], "campaign": [7]})
    pq.write_table(good, tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:60])
    pq.write_table(good.rename_columns(["user", "item_id", "campaign"]), tmp_path / "c.parquet")
    pq.write_table(good.append_column("rank", pa.array([1])), tmp_path / "d.parquet")
    (tmp_path / "e.csv").write_text("user_id,item_id,campaign\nu,i,seven\n")
    (tmp_path / "f.csv").write_text("")
    pq.write_table(good.append_column("more", pa.array(["x"])), tmp_path / "g.parquet")
    planned = plan_files(sorted(tmp_path.iterdir()), Kind.PAIRS, domain)
    told = {Path(r.file).name: r.reason for r in planned.rejected}
    assert told.keys() == {"b.parquet", "c.parquet", "d.parquet", "e.csv", "f.csv"}
    assert told["c.parquet"] == "the column user_id is missing; the file has campaign, item_id, user"
    assert "rank; rename yours" in told["d.parquet"]
    assert "campaign" in told["e.csv"]
    assert planned.schema.names == ["user_id", "item_id", "campaign", "more"]
    users = plan_files([tmp_path / "a.parquet"], Kind.USERS, domain)
    assert "--pairs" in users.rejected[0].reason


def test_rows_are_checked_one_by_one(domain: Domain) -> None:
    schema = pa.schema([("user_id", pa.string()), ("item_id", pa.string()), ("timestamp_ms", pa.int64()),
                        ("save", pa.float32()), ("n", pa.int64())])  # fmt: skip
    raw = pa.table(
        {
            "user_id": ["u", None, "u", "u", "u"],
            "item_id": [1, 2, 3, 4, 5],
            "timestamp_ms": [float(T0), float(T0), T0 / 1000, float("nan"), float(T0)],
            "save": [1.0, 0.0, 0.0, float("nan"), float("inf")],
            "n": pa.array([1, 2, 3, 4, 5], pa.int8()),
        }
    )
    rows, check = check_rows(raw, schema, domain, as_of_ms=T0, now_ms=NOW)
    assert [(row, field) for row, field, *_ in check.rejected] == [(1, "user_id"), (2, "timestamp_ms"), (4, "save")]
    assert 'unit = "s" would fit' in check.rejected[1][2]
    assert rows.to_pylist() == [
        {"user_id": "u", "item_id": "1", "timestamp_ms": T0, "save": 1.0, "n": 1},
        {"user_id": "u", "item_id": "4", "timestamp_ms": None, "save": None, "n": 4},
    ]
    rows, check = check_rows(raw.drop_columns(["timestamp_ms"]), schema, domain, as_of_ms=None, now_ms=NOW)
    assert rows.num_rows == 0
    assert {reason for *_, field, reason, _ in check.rejected if field == "timestamp_ms"} == {
        "is missing, and no --as-of was given"
    }


# ---- workspaces ------------------------------------------------------------------------------------------------------


def job(root: Path, **changed: object) -> Job:
    return dataclasses.replace(Job(root=str(root), kind=Kind.PAIRS, model_version="a", as_of_ms=T0), **changed)


def test_a_job_is_continued_by_itself_alone(root: Path, tmp_path: Path) -> None:
    out, mine, other = tmp_path / "scores", job(root), job(root, as_of_ms=T0 + 1)
    assert finished_output(out, mine, overwrite=False) is None
    with workspace(out, mine, overwrite=False) as work:
        assert work.finished() == set()
        write_json(work.record_path(3), {"rows": 1})
        with pytest.raises(PublishError, match="another process holds"), workspace(out, mine, overwrite=False):
            pass
    with workspace(out, mine, overwrite=False) as work:
        assert work.finished() == {3}
    with (
        pytest.raises(PublishError, match=f"unfinished other job .as_of_ms: {T0} there, {T0 + 1} here"),
        workspace(out, other, overwrite=False),
    ):
        pass
    with workspace(out, other, overwrite=True) as work:
        assert work.finished() == set()
        publish(work, out, {"rows": 5})
    assert [p.name for p in tmp_path.glob(".scores*")] == []
    found = finished_output(out, other, overwrite=False)
    assert found is not None
    assert found["rows"] == 5
    with pytest.raises(PublishError, match="--overwrite"):
        finished_output(out, mine, overwrite=False)
    assert finished_output(out, mine, overwrite=True) is None
    with workspace(out, mine, overwrite=True) as work:
        publish(work, out, {"rows": 6})
    assert read_json(out / "manifest.json")["rows"] == 6


def test_a_job_that_fails_before_its_first_part_is_done_leaves_nothing(root: Path, tmp_path: Path) -> None:
    with pytest.raises(PublishError, match="nothing"), workspace(tmp_path / "out", job(root), overwrite=False):
        raise PublishError("nothing to score")
    assert list(tmp_path.glob(".out*")) == []


def test_a_directory_of_somebody_else_is_never_replaced(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "home"
    out.mkdir()
    (out / "manifest.json").write_text("{}")
    with pytest.raises(PublishError, match="no output of batch scoring"):
        finished_output(out, job(root), overwrite=True)


def test_a_job_reads_the_root_as_it_stood_when_it_began(root: Path, tmp_path: Path) -> None:
    with workspace(tmp_path / "out", job(root), overwrite=False) as work:
        assert work.state == State(0, 0, ())
    (root / "rates" / "2026-01-01").mkdir(parents=True)
    with workspace(tmp_path / "out", job(root), overwrite=False) as work:
        assert work.state == State(0, 0, ())
    assert State.of(root).rates == ("2026-01-01",)


# ---- what a request may know -----------------------------------------------------------------------------------------


def test_a_request_sees_the_newest_rates_of_its_time(root: Path, domain: Domain) -> None:
    rates = PastRates(root, domain, ("2025-12-30", "2026-01-01", "2026-01-02"))
    given = np.array([BY_TIME, BY_TIME, BY_TIME, None, "2025-12-30"], object)
    times = np.array([T0 - 1, T0, T0 - 10 * 86_400_000, T0, T0])
    assert rates.days_of(given, times).tolist() == ["2025-12-30", "2026-01-01", None, None, "2025-12-30"]


def test_items_that_changed_since_the_table_was_made_are_found(domain: Domain) -> None:
    table = item_table(domain, 4)
    items = [dict(item) for item in table.items]
    items[2]["year"] = 1.0
    items.append({"item_id": "new", "created_at_ms": 9, "title": None, "genres": ["g1"], "year": None})
    assert [item["item_id"] for item in changed_items(pa.Table.from_pylist(items), table)] == ["i2", "new"]


def events_of_test() -> list[dict[str, object]]:
    rng = np.random.default_rng(1)
    return [
        {"n": n, "user": f"u{rng.integers(6)}", "item": f"i{rng.integers(30)}", "at": T0 + int(rng.integers(100_000)),
         "action": ["click", "save", "hide", "impression"][rng.integers(4)], "lag": int(rng.integers(3)) * 20_000}
        for n in range(900)
    ]  # fmt: skip


def live(
    store: LmdbStore, domain: Domain, model: LoadedModel, user: str, at_ms: int, items: list[str]
) -> dict[str, object]:
    """What a replica does with one request, and the row it logs."""
    seen = store.lookup(user)
    sequences = at_request(
        seen.history,
        timestamp_ms=at_ms,
        watermark=seen.watermark,
        length=model.config.history_length,
        vocabulary=domain.vocabulary,
    )
    width = len(domain.heads) + 1
    request = Requests(
        np.array([hash64(user)], np.uint64),
        np.array([at_ms]),
        context_row(domain.context_attributes, at_ms, {}),
        sequences,
        np.array([[hash64(i) for i in items]], np.uint64),
        np.zeros((1, width), np.float32),
        np.zeros((1, len(items), width), np.float32),
    )
    return {
        "user_id": user,
        "timestamp_ms": at_ms,
        "item_ids": items,
        "probabilities": model.scorer.score(request)[0].ravel().tolist(),
        "model_version": model.version,
        "watermark": seen.watermark,
        "sequence_hash": sequences.hash_of(0),
    }


def serve(root: Path, store: LmdbStore, domain: Domain, num_requests: int) -> Path:
    """The root, its log holding requests served while events arrived, many late, and while the champion changed."""
    loaded = {version: load_model(root, version, domain) for version in ("a", "b")}
    arriving = sorted(events_of_test(), key=lambda e: int(e["at"]) + int(e["lag"]))  # type: ignore[call-overload]
    rng, requests = np.random.default_rng(2), 0
    for round in range(20):
        group = arriving[45 * round : 45 * round + 45]
        store.append([make_event(**event) for event in group])  # type: ignore[arg-type]
        now = int(group[-1]["at"]) + int(group[-1]["lag"])  # type: ignore[call-overload]
        rows = []
        for user in (f"u{k % 7}" for k in range(num_requests // 20)):
            items = [f"i{i}" for i in rng.choice(32, 1 + requests % 40, replace=requests % 40 > 30)]
            row = live(store, domain, loaded["a" if round < 10 else "b"], user, now, items)
            rows.append({"request_id": f"r{requests}", **row})
            requests += 1
        store.log_requests(rows)
    assert requests == num_requests
    while export(root, store, NOW):
        pass
    return root


@pytest.fixture
def served(models: tuple[Path, LmdbStore], domain: Domain) -> Path:  # noqa: F811
    return serve(*models, domain, 100)


def score_all(root: Path, out: Path, given: Job) -> tuple[list[dict], pa.Table]:
    with workspace(out, given, overwrite=False) as work:
        write_json(work.directory / "staged.json", {"partitions": 8})
        pq.write_table(pa.Table.from_pylist([dict(i) for i in item_table(read_root(root)[0]).items]),
                       work.directory / "catalogue.parquet")  # fmt: skip
        scorer = PartScorer(work, torch.device("cpu"))
        records = [scorer.score(part) for part in range(8)]
        return records, pq.read_table(work.result / "scores", partitioning=None)


def test_served_requests_are_reproduced_with_late_events_and_a_model_swap(
    models: tuple[Path, LmdbStore],  # noqa: F811
    domain: Domain,
    tmp_path: Path,
) -> None:
    served = serve(*models, domain, 1_000)
    asked = job(served, kind=Kind.REQUESTS, model_version=None, as_of_ms=None)
    records, table = score_all(served, tmp_path / "out", asked)
    assert sum(r["compared"] for r in records if "compared" in r) == 1_000
    assert sum(r["equal_hashes"] for r in records if "equal_hashes" in r) == 1_000
    assert max(r["max_difference"] for r in records) < 1e-5
    assert set(table["model_version"].to_pylist()) == {"a", "b"}
    assert table["logged_difference"].null_count == 0
    by_time = pq.read_table(next((served / "requests").rglob("*.parquet")), partitioning=None)
    assert by_time["watermark"].null_count == 0
    # Another model is another answer: the comparison can fail.
    records, _ = score_all(served, tmp_path / "other", dataclasses.replace(asked, model_version="b"))
    assert sum(r["different"] for r in records if "different" in r) > 250


def test_histories_are_what_the_store_holds(served: Path, domain: Domain, tmp_path: Path) -> None:
    from rayapp.publish import log_manifest

    store = LmdbStore(tmp_path / "again", domain.vocabulary, 4, map_bytes=1 << 24)
    store.append([make_event(**event) for event in events_of_test()])  # type: ignore[arg-type]
    for user in [f"u{k}" for k in range(7)]:
        histories = read_histories(served, bucket_of(user, 4), log_manifest(served / "events")[1], domain, {})
        one = np.array([hash64(user)], np.uint64)
        start, end = histories.ranges(one, np.array([NOW]))
        found = histories.as_stored(int(start[0]), int(end[0]), NOW, NO_WATERMARK, domain.vocabulary)
        expected = store.lookup(user).history
        assert found.event_hash_E.tolist() == expected.event_hash_E.tolist()
        middle = T0 + 50_000
        start, end = histories.ranges(one, np.array([middle]))
        early = histories.as_stored(int(start[0]), int(end[0]), middle, NO_WATERMARK, domain.vocabulary)
        seen = (expected.timestamp_ms_E < middle) & (expected.received_at_ms_E <= middle)
        assert early.event_hash_E.tolist() == expected.event_hash_E[seen].tolist()
    store.close()


# ---- a full disk -----------------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_no_half_part_and_the_next_run_makes_it_whole(served: Path, tmp_path: Path) -> None:
    asked = job(served, kind=Kind.REQUESTS, model_version=None, as_of_ms=None)
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
