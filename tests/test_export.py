"""The way from the outbox into the logs: exactly once, whenever it is killed, and back again when the store is lost."""

import contextlib
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayapp.contracts.config import Domain
from rayapp.contracts.schema import bucket_of, deleted_item, item_schema
from rayapp.model.item_table import ItemTable
from rayapp.model.tower import LinearTower
from rayapp.pipeline import export as exporting
from rayapp.pipeline.export import Exported, export
from rayapp.pipeline.restore import restore_store, seed_store
from rayapp.registry.item_tables import load_table, publish_table
from rayapp.root.agreed_steps import AgreedSteps, agreed_steps
from rayapp.root.catalogue import read_catalogue, read_deleted, read_users
from rayapp.root.catalogue_writer import merge
from rayapp.root.erasure import erase_user
from rayapp.root.logs import coded, log_schema, read_bucket, read_log, write_file
from rayapp.root.places import AGREED_STEPS, EVENTS, ITEMS, REQUESTS
from rayapp.root.publish import PublishError, commit_log, log_manifest
from rayapp.store import OutboxKind, Store
from rayapp.store.lmdb import LmdbStore
from rayapp.store.opening import open_store
from tests.conftest import T0, make_event

NOW = T0 + 10_000


def logged(root: Path) -> list[str]:
    return sorted(read_log(root, EVENTS, ["event_id"])["event_id"].to_pylist())


def fill(store: Store, first: int, number: int) -> list[str]:
    events = [make_event(n, user=f"u{n % 9}", at=T0 + n) for n in range(first, first + number)]
    store.append(events)
    return [e.event_id for e in events]


def export_all(root: Path, store: Store) -> Exported:
    return exporting.export_all(root, store, NOW)


def test_an_export_ends_beside_clients_that_never_rest(
    root: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it frees what it has exported, also where a bucket holds more than a round takes."""
    monkeypatch.setattr(exporting, "CHUNK_ROWS", 3)
    ids, real = fill(store, 0, 40), exporting.commit_log

    def commit(log: Path, number: int, manifest: dict[str, object]) -> None:
        real(log, number, manifest)
        if log.name == EVENTS and len(ids) < 100:
            ids.extend(fill(store, len(ids), 1))

    monkeypatch.setattr(exporting, "commit_log", commit)
    assert 40 <= export_all(root, store).events < 100
    assert store.stats().outbox_rows == len(ids) - len(logged(root))
    monkeypatch.undo()  # they rest
    export_all(root, store)
    assert logged(root) == sorted(ids)
    assert store.stats().outbox_rows == 0


def request(number: int, user: str) -> dict[str, object]:
    return {"request_id": f"r{number}", "user_id": user, "timestamp_ms": T0 + number, "item_ids": ["a", "b"]}


def test_every_row_is_exported_once(root: Path, store: Store) -> None:
    ids = fill(store, 0, 50)
    store.log_requests([request(n, f"u{n % 9}") for n in range(20)])
    store.put_item({"item_id": "new", "created_at_ms": T0})
    done = export(root, store, NOW)
    assert (done.events, done.requests, done.items) == (50, 20, 1)
    assert not export(root, store, NOW)
    assert store.stats().outbox_rows == 0
    ids += fill(store, 50, 5)
    assert export(root, store, NOW).events == 5
    assert logged(root) == sorted(ids)
    assert len(read_log(root, REQUESTS, ["request_id"])) == 20
    table = read_log(root, EVENTS, ["user_id", "timestamp_ms", "commit_seq", "event_hash"])
    assert min(table["commit_seq"].to_pylist()) == 1
    rows = table.to_pylist() + read_log(root, REQUESTS, ["user_id", "commit_seq"]).to_pylist()
    for bucket, tail in enumerate(store.read([0] * 4, 1)):
        numbers = sorted(row["commit_seq"] for row in rows if bucket_of(row["user_id"], 4) == bucket)
        assert numbers == list(range(1, tail.last + 1)), "events and requests share the numbers of their bucket"


def log_without(root: Path, domain: Domain, column: str) -> None:
    """A file of the request log from before there was such a column."""
    schema = log_schema(REQUESTS, domain)
    before = pa.schema([field for field in schema if field.name != column])
    user = next(u for u in (f"u{n}" for n in range(99)) if bucket_of(u, 4) == 0)
    table = pa.Table.from_pylist([request(n, user) for n in range(2)], schema=before)
    number, manifest = log_manifest(root / REQUESTS)
    manifest["files"].append(write_file(root / REQUESTS, "old", 0, "old", table))
    commit_log(root / REQUESTS, number, manifest)


def test_requests_of_an_older_release_have_no_number(root: Path, store: Store, domain: Domain) -> None:
    log_without(root, domain, "commit_seq")
    store.log_requests([request(5, "u1")])
    export(root, store, NOW)
    assert read_log(root, REQUESTS, ["commit_seq"])["commit_seq"].to_pylist().count(None) == 2
    found = read_log(root, REQUESTS, ["request_id", "commit_seq", "sources"]).to_pylist()
    assert {row["request_id"]: row["commit_seq"] for row in found} == {"r0": None, "r1": None, "r5": 1}
    schema = log_schema(REQUESTS, domain)
    everything = read_bucket(root, REQUESTS, 0, log_manifest(root / REQUESTS)[1], coded(schema, ["surface"]))
    assert everything[0].schema == coded(schema, ["surface"]), "as a compaction reads it"


@pytest.mark.parametrize("column", ["timestamp_ms", "item_ids"])
def test_a_log_file_without_a_column_that_must_have_values_is_told(root: Path, domain: Domain, column: str) -> None:
    log_without(root, domain, "surface")
    path = next((root / REQUESTS).glob("dt=*/*/*.parquet"))
    pq.write_table(pq.read_table(path, partitioning=None).drop_columns([column]), path)
    with pytest.raises(PublishError, match=f"lacks the column {column}; restore it"):
        read_log(root, REQUESTS, ["request_id", column])
    assert read_log(root, REQUESTS, ["surface"])["surface"].to_pylist() == [None, None]


def test_agreed_steps_outlive_their_store(root: Path, store: Store) -> None:
    assert agreed_steps(root) == {}
    export(root, store, NOW)
    assert not (root / AGREED_STEPS).exists()
    store.agree(7, [1, 2, 3, 4])
    assert not export(root, store, NOW), "they are no rows"
    store.agree(9, [5, 5, 5, 5])
    store.agree(8, [4, 4, 4, 4])  # late
    export_all(root, store)
    export_all(root, store)
    first = {(store.identity, 7): (1, 2, 3, 4), (store.identity, 8): (4,) * 4, (store.identity, 9): (5,) * 4}
    assert agreed_steps(root) == first
    assert len((root / AGREED_STEPS).read_text().splitlines()) == 3
    store.close()
    shutil.move(root / "store", root / "lost")
    again = open_store(root)
    again.agree(9, [0, 0, 0, 1])
    export_all(root, again)
    assert agreed_steps(root) == {**first, (again.identity, 9): (0, 0, 0, 1)}
    again.close()


def test_the_step_of_an_exported_request_is_in_the_root_before_it(
    root: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request names its step after it was agreed on. Here one comes while an export is under way."""
    store.log_requests([request(1, "u1")])
    real, seen = exporting.write_file, list[AgreedSteps]()

    def write(*args: Any) -> dict[str, Any]:
        store.agree(1, [1] * 4)
        return real(*args)

    def commit(*_: object) -> None:
        seen.append(agreed_steps(root))
        raise KeyboardInterrupt

    monkeypatch.setattr(exporting, "write_file", write)
    monkeypatch.setattr(exporting, "commit_log", commit)
    with pytest.raises(KeyboardInterrupt):
        export(root, store, NOW)
    assert seen == [{(store.identity, 1): (1,) * 4}]


def test_whether_an_item_is_available_goes_into_the_catalogue_and_into_tables(
    root: Path, store: Store, domain: Domain
) -> None:
    before = pa.schema([field for field in item_schema(domain.attributes) if field.name != "available"])
    old = pa.Table.from_pylist([{"item_id": "old", "created_at_ms": T0}], schema=before)
    path = root / ITEMS / "old.parquet"
    path.parent.mkdir()
    pq.write_table(old, path)  # a catalogue from before there was such a column
    commit_log(root / ITEMS, 0, {"files": [{"path": path.name, "rows": 1}]})
    for item_id, available in (("in", True), ("out", False)):
        store.put_item({"item_id": item_id, "available": available, "created_at_ms": NOW})
    export(root, store, NOW)
    items = read_catalogue(root).to_pylist()
    assert {item["item_id"]: item["available"] for item in items} == {"old": None, "in": True, "out": False}
    tower = LinearTower(np.ones((8, 4), np.float32), domain.attributes)
    table = ItemTable.make("table", tower, items, np.zeros(3, np.int64), tower.embed(items), 0)
    publish_table(root, table, {})
    assert load_table(root, "table").items == table.items


def test_a_deleted_item_leaves_the_catalogue_and_comes_back_without_its_old_vector(
    root: Path, store: Store, domain: Domain
) -> None:
    rows = [{"item_id": n, "created_at_ms": T0, "title": n, "vector": [1.0, 0.0]} for n in ("a", "b")]
    schema = item_schema(domain.attributes).append(pa.field("vector", pa.large_list(pa.float32())))
    merge(root, ITEMS, pa.Table.from_pylist(rows, schema=schema), domain)
    store.put_items([deleted_item("a"), deleted_item("never"), {"item_id": "c", "created_at_ms": T0}])
    assert export(root, store, NOW).items == 3
    assert [row["item_id"] for row in read_catalogue(root).to_pylist()] == ["b", "c"]
    assert not export(root, store, NOW)
    restore_store(root, f"lmdb://{root / 'another'}")  # a store that takes a lost one's place
    with contextlib.closing(open_store(root, f"lmdb://{root / 'another'}")) as again:
        assert again.items_since(0)[1] == [deleted_item("a")], "item tables may still hold it"
    store.put_item({"item_id": "a", "created_at_ms": NOW, "title": "new"})
    export(root, store, NOW)
    back = {row["item_id"]: (row["title"], row["vector"]) for row in read_catalogue(root).to_pylist()}
    assert back == {"a": ("new", None), "b": ("b", [1.0, 0.0]), "c": (None, None)}
    assert read_deleted(root) == []
    store.put_items([deleted_item(name) for name in "abc"])
    export(root, store, NOW)
    assert read_catalogue(root).num_rows == 0
    assert read_deleted(root) == ["a", "b", "c"]


@pytest.mark.parametrize("commits", [0, 1, 2])
def test_an_export_killed_between_its_commits_repeats_nothing(
    root: Path, store: Store, monkeypatch: pytest.MonkeyPatch, commits: int
) -> None:
    """Killed in front of the first commit, between the two, and in front of what comes behind them."""
    ids = fill(store, 0, 30)
    store.log_requests([request(n, f"u{n % 9}") for n in range(7)])
    left, real = [commits], exporting.commit_log

    def commit(log: Path, number: int, manifest: dict[str, object]) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        real(log, number, manifest)
        if not left[0] and commits == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(exporting, "commit_log", commit)
    with pytest.raises(KeyboardInterrupt):
        export(root, store, NOW)
    monkeypatch.undo()
    while export(root, store, NOW):
        pass
    assert logged(root) == sorted(ids)
    assert len(read_log(root, REQUESTS, ["request_id"])) == 7
    assert store.stats().outbox_rows == 0


def test_rows_come_in_rounds_where_a_bucket_holds_many(
    root: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "CHUNK_ROWS", 3)
    ids = fill(store, 0, 40)
    rounds = [export(root, store, NOW).events for _ in range(20)]
    assert rounds[-1] == 0
    assert sum(rounds) == 40
    assert logged(root) == sorted(ids)


def test_a_log_that_somebody_else_changed_is_told_and_the_next_export_goes_on(
    root: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = fill(store, 0, 5)
    real = exporting.log_manifest

    def stale(log: Path) -> tuple[int, dict[str, object]]:
        number, manifest = real(log)
        exporting.commit_log(log, number, manifest)
        return number, manifest

    monkeypatch.setattr(exporting, "log_manifest", stale)
    with pytest.raises(PublishError, match="changed by another process"):
        export(root, store, NOW)
    monkeypatch.undo()
    export(root, store, NOW)
    assert logged(root) == sorted(ids)


def test_a_lost_store_comes_back_from_the_log(root: Path, store: Store) -> None:
    fill(store, 0, 40)
    while export(root, store, NOW):
        pass
    before = {u: store.lookup(u).item_ids for u in (f"u{n}" for n in range(9))}
    erase_user(root, "u3", T0 + 100)
    store.close()
    (root / "store").rename(root / "away")
    assert restore_store(root) == 40 - len(before["u3"])
    assert seed_store(root) == (0, False)
    again = open_store(root)
    assert {u: again.lookup(u).item_ids for u in before} == {**before, "u3": ()}
    assert again.drain(0, 0, 10) == []
    again.close()


def test_what_a_new_store_takes_after_a_loss_is_exported(root: Path, store: Store) -> None:
    """It counts from 1 again, or behind the log when it was rebuilt first: neither may look exported already."""
    first = fill(store, 0, 40)
    export_all(root, store)
    store.close()
    shutil.move(root / "store", root / "lost")
    again = open_store(root)
    early = fill(again, 100, 10)  # a graph that nobody told of the loss
    again.close()
    restore_store(root)
    again = open_store(root)
    late = fill(again, 200, 10)
    again.put_item({"item_id": "after", "created_at_ms": T0})
    assert export_all(root, again).items == 1
    assert logged(root) == sorted(first + early + late)
    again.close()


def test_what_an_old_copy_of_a_store_takes_is_exported(root: Path, store: Store) -> None:
    """A backup brought back has numbers that the log has seen already under the same identity."""
    fill(store, 0, 20)
    store.close()
    shutil.copytree(root / "store", root / "backup")
    newer = open_store(root)
    fill(newer, 20, 20)
    export_all(root, newer)
    newer.close()
    shutil.rmtree(root / "store")
    (root / "backup").rename(root / "store")
    old = open_store(root)
    fill(old, 100, 3)
    export_all(root, old)
    old.close()
    assert {f"e{n}" for n in (*range(40), 100, 101, 102)} == set(logged(root))


def test_two_stores_of_one_root_have_cursors_of_their_own(root: Path, store: Store, domain: Domain) -> None:
    other = LmdbStore(root / "other", domain.vocabulary, 4)
    for n in range(3):
        fill(store, 100 * n, 10)
        fill(other, 100 * n + 50, 5)
        export(root, store, NOW)
        export(root, other, NOW)
    assert len(logged(root)) == len(set(logged(root))) == 45
    other.close()


def test_exporting_from_a_store_that_is_whole_leaves_it_whole(root: Path, store: Store) -> None:
    """The next start need not restore what came from the store itself."""
    store.set_restored_to(0)
    fill(store, 0, 5)
    export(root, store, NOW)
    assert store.restored_to() == 1


def test_users_land_in_the_table_of_users(root: Path, store: Store, domain: Domain) -> None:
    store.put_user({"user_id": "u1", "effective_at_ms": T0})
    store.put_user({"user_id": "u1", "effective_at_ms": T0 + 5})
    assert export(root, store, NOW).users == 2
    assert read_users(root, domain)["effective_at_ms"].to_pylist() == [T0, T0 + 5]
    assert not export(root, store, int(time.time() * 1000))
    assert OutboxKind.USER not in {row.kind for b in range(4) for row in store.drain(b, 0, 10)}
