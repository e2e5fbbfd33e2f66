"""Batch scoring without Ray: sums that merge, rows that become requests, input files, workspaces."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayapp.batch.accumulators import Accumulators, Sums
from rayapp.batch.as_of import changed_items
from rayapp.batch.grouped_rows import group_logged, group_rows
from rayapp.batch.input_files import check_rows, num_partitions, plan_files
from rayapp.batch.job import InputKind, Job, RootState, Workspace, finished_output, publish, workspace
from rayapp.batch.part import cuts
from rayapp.batch.scoring import batches
from rayapp.contracts.config import Domain
from rayapp.contracts.hashing import hash64
from rayapp.contracts.schema import Attribute, AttributeKind, bucket_of, request_schema
from rayapp.features.sequence import NO_WATERMARK
from rayapp.pipeline.export import export_all
from rayapp.pipeline.statistics import count_statistics
from rayapp.root.publish import PublishError, read_json, write_json
from rayapp.statistics.known import newest_name
from rayapp.store import Store
from rayapp.training import metrics
from tests.conftest import T0, make_event
from tests.tiny_models import item_table

NOW = T0 + 10 * 86_400_000


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
    asked = group_rows(rows_of(["b", "a", "b", "a", "b"], ["1", "2", "3", "2", "1"], n=[0, 1, 2, 3, 4]), domain, 50)
    assert asked.rows.to_pylist() == [
        {"user_id": "a", "item_id": "2", "n": 1},
        {"user_id": "b", "item_id": "1", "n": 0},
        {"user_id": "b", "item_id": "3", "n": 2},
    ]
    assert asked.offset_R.tolist() == [0, 1, 3]
    assert asked.duplicates == 2
    assert asked.timestamp_ms_R.tolist() == [50, 50]
    assert asked.watermark_R.tolist() == [NO_WATERMARK] * 2
    assert asked.statistics_at_ms_R.tolist() == [50, 50]
    assert asked.user_hash_R.tolist() == [hash64("a"), hash64("b")]


def test_times_watermarks_requests_and_context_part_the_rows_of_a_user(domain: Domain) -> None:
    domain = dataclasses.replace(domain, context_attributes=(Attribute("tab", AttributeKind.CATEGORIES),))
    asked = group_rows(
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
    planned = plan_files(sorted(tmp_path.iterdir()), InputKind.PAIRS, domain)
    told = {Path(r.file).name: r.reason for r in planned.rejected}
    assert told.keys() == {"b.parquet", "c.parquet", "d.parquet", "e.csv", "f.csv"}
    assert told["c.parquet"] == "the column user_id is missing; the file has campaign, item_id, user"
    assert "rank; rename yours" in told["d.parquet"]
    assert "campaign" in told["e.csv"]
    assert planned.schema.names == ["user_id", "item_id", "campaign", "more"]
    users = plan_files([tmp_path / "a.parquet"], InputKind.USERS, domain)
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


@pytest.fixture
def root(root: Path, store: Store, domain: Domain, without_ray: None) -> Path:
    """With an item and statistics of nothing."""
    store.put_item({"item_id": "i1", "created_at_ms": T0, "title": "one", "genres": ["g"]})
    export_all(root, store, T0)
    count_statistics(root, domain)
    return root


def job(root: Path, **changed: object) -> Job:
    return dataclasses.replace(Job(root=str(root), kind=InputKind.PAIRS, model_version="a", as_of_ms=T0), **changed)


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


def test_a_job_reads_the_root_as_it_stood_when_it_began(
    root: Path, store: Store, domain: Domain, tmp_path: Path
) -> None:
    with workspace(tmp_path / "out", job(root), overwrite=False) as work:
        began = work.state
    assert began == RootState(1, 1, newest_name(root, domain))
    store.append([make_event(1)])
    export_all(root, store, NOW)
    newer, counted = count_statistics(root, domain)
    assert counted
    with workspace(tmp_path / "out", job(root), overwrite=False) as work:
        assert work.state == began
        assert Workspace.read(work.directory).state == began
    assert RootState.of(root) == RootState(2, 2, newer)


def test_a_job_of_a_root_without_statistics_says_what_counts_them(root: Path, tmp_path: Path) -> None:
    shutil.rmtree(root / "statistics")
    with (
        pytest.raises(PublishError, match="has no statistics yet; `rayapp train` counts them, or `rayapp windows`"),
        workspace(tmp_path / "out", job(root), overwrite=False),
    ):
        pass


# ---- what a request may know -----------------------------------------------------------------------------------------


def test_a_request_reads_the_statistics_of_its_time_unless_it_names_another(domain: Domain) -> None:
    asked = group_rows(
        rows_of(["a"] * 5, ["1"] * 5, timestamp_ms=[T0, T0, T0, None, T0], statistics_at_ms=[None, T0 - 9, T0, 7, 8]),
        domain,
        T0 + 1,
    )
    found = sorted(zip(asked.timestamp_ms_R.tolist(), asked.statistics_at_ms_R.tolist(), strict=True))
    assert found == [(T0, 8), (T0, T0 - 9), (T0, T0), (T0 + 1, 7)]
    assert asked.duplicates == 1, "no other time than its own is its own"


def test_a_logged_request_reads_the_statistics_that_it_was_answered_with(domain: Domain) -> None:
    rows = [
        {"request_id": f"r{n}", "user_id": "u", "timestamp_ms": T0 + n, "item_ids": ["i"], "statistics_at_ms": at_ms}
        for n, at_ms in enumerate((None, T0 - 600_000, T0))
    ]
    asked = group_logged(pa.Table.from_pylist(rows, schema=request_schema(())), domain)
    assert asked.statistics_at_ms_R.tolist() == [T0, T0 - 600_000, T0]


def test_items_that_changed_since_the_table_was_made_are_found(domain: Domain) -> None:
    table = item_table(domain, 4)
    items = [dict(item) for item in table.items]
    items[2]["year"] = 1.0
    items.append({"item_id": "new", "created_at_ms": 9, "title": None, "genres": ["g1"], "year": None})
    assert [item["item_id"] for item in changed_items(pa.Table.from_pylist(items), table)] == ["i2", "new"]
