"""Imports with Ray on real files: counts, repetition, skew, erasure and compaction, and processes really killed."""

import dataclasses
import json
import os
import signal
import subprocess
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from rayapp.contracts.config import HOUR_MS
from rayapp.contracts.hashing import hash64
from rayapp.importing.domains import load_domain
from rayapp.importing.domains.layout import DomainFile
from rayapp.importing.importer import Inputs, import_files
from rayapp.importing.log_counts import Summary
from rayapp.pipeline.compact import compact
from rayapp.pipeline.statistics import count_statistics
from rayapp.pipeline.tasks import run_tasks
from rayapp.pipeline.window_loader import WindowReader
from rayapp.pipeline.windows import Window, build
from rayapp.root.agreed_steps import add_agreed_steps, agreed_steps
from rayapp.root.erasure import erase_user
from rayapp.root.logs import read_log
from rayapp.root.publish import PublishError, log_manifest, read_manifest
from rayapp.sources.synthetic import World, files_in, write_chunk, write_items
from rayapp.statistics.known import EVERYTHING, load_base, load_newest, newest_name
from tests.conftest import RAYAPP, Command, until

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_session")]
WORLD = World(num_users=250, num_items=150, num_days=5)
NOW_MS = WORLD.start_ms + 100 * 86_400_000
DOMAIN = load_domain("synthetic")
NOW = np.array([NOW_MS // DOMAIN.domain.statistics_step_ms])
"""The step of the grid."""


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("raw")
    write_items(WORLD, directory)
    write_chunk(WORLD, directory, 0)
    return directory


def inputs(raw: Path, **changed: list[Path]) -> Inputs:
    files = files_in(raw)
    assert files.users is not None
    return dataclasses.replace(Inputs([files.events], [files.requests], [files.items], [files.users]), **changed)


def bring(root: Path, given: Inputs, domain: DomainFile = DOMAIN) -> Summary:
    return import_files(root, domain, given, now_ms=NOW_MS, num_buckets=4)


def tree(root: Path) -> dict[str, int]:
    return {str(p.relative_to(root)): p.stat().st_mtime_ns for p in sorted(root.rglob("*")) if p.is_file()}


def test_an_import_repeats_without_a_trace_and_adds_only_what_is_new(raw: Path, tmp_path: Path) -> None:
    root, events = tmp_path / "root", pq.read_table(raw / "events", partitioning=None)
    half = tmp_path / "half.parquet"
    pq.write_table(events.slice(0, 500), half)
    first = bring(root, inputs(raw, events=[half]))
    assert (first.events.read, first.events.accepted, first.quarantined) == (500, 500, 0)
    second = bring(root, inputs(raw))
    assert (second.events.accepted, second.events.duplicates) == (events.num_rows - 500, 500)
    assert second.requests.accepted == 0
    assert second.entities["catalogue"]["total"] == WORLD.num_items
    before = tree(root)
    third = bring(root, inputs(raw))
    assert (third.events.accepted, third.events.duplicates) == (0, events.num_rows)
    assert tree(root) == before
    stored = read_log(root, "events", ["event_id"])["event_id"].to_pylist()
    assert sorted(stored) == sorted(events["event_id"].to_pylist())


def test_bad_files_and_rows_go_to_the_quarantine_and_good_ones_are_taken(raw: Path, tmp_path: Path) -> None:
    events = pq.read_table(raw / "events", partitioning=None).slice(0, 100)
    directory = tmp_path / "events"
    directory.mkdir()
    pq.write_table(events.slice(0, 50), directory / "a.parquet")
    numbers = events.slice(50, 50).to_pandas()
    numbers.loc[3, "item_id"] = "x" * 200
    numbers.loc[4, "item_id"] = "nobody-knows"
    numbers.loc[5, "event_id"] = events["event_id"][0].as_py()
    numbers.to_csv(directory / "b.csv.gz", index=False)
    (directory / "c.parquet").write_bytes((directory / "a.parquet").read_bytes()[:100])
    (directory / "d.ndjson").write_text("")
    summary = bring(tmp_path / "root", inputs(raw, events=[directory], requests=[]))
    assert (summary.events.read, summary.events.accepted, summary.events.unknown_items) == (100, 98, 1)
    assert summary.quarantine is not None
    told = [json.loads(line) for line in summary.quarantine.read_text().splitlines()]
    found = {(Path(t["file"]).name, t.get("row"), t.get("field")) for t in told}
    assert found == {
        ("b.csv.gz", 4, "item_id"),
        ("b.csv.gz", 6, "event_id"),
        ("c.parquet", None, None),
        ("d.ndjson", None, None),
    }
    assert summary.quarantined == 4


def test_nothing_usable_is_an_error_that_says_why(raw: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.parquet"
    pq.write_table(pq.read_table(raw / "events", partitioning=None).slice(0, 0), empty)
    with pytest.raises(PublishError, match="--events files hold no usable row"):
        bring(tmp_path / "root", inputs(raw, events=[empty]))
    with pytest.raises(PublishError, match="does not exist"):
        bring(tmp_path / "root2", inputs(raw, events=[tmp_path / "nowhere.csv"]))


def test_one_user_with_a_fifth_of_all_events_is_no_trouble(raw: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    n = 40_000
    users = np.where(rng.random(n) < 0.2, "hot", np.char.add("u", rng.integers(800, size=n).astype(str)))
    frame = pd.DataFrame(
        {
            "event_id": [f"e{k}" for k in range(n)],
            "user_id": users,
            "item_id": np.char.add("i", rng.integers(150, size=n).astype(str)),
            "timestamp_ms": WORLD.start_ms + rng.integers(5 * 86_400_000, size=n),
            "action": "save",
            "request_id": None,
            "position": 0,
        }
    ).astype({"request_id": "string"})
    frame["received_at_ms"] = frame["timestamp_ms"]
    path = tmp_path / "skewed.parquet"
    frame.to_parquet(path)
    summary = bring(tmp_path / "root", inputs(raw, events=[path]))
    assert summary.events.accepted == n
    window = Window(WORLD.start_ms, WORLD.start_ms + 5 * 86_400_000, 100)
    manifest = build(tmp_path / "root", "w", window, DOMAIN.domain)
    assert sum(b["requests"] for b in manifest["buckets"]) == summary.requests.accepted


def test_statistics_are_counted_once_and_hold_the_whole_log(raw: Path, tmp_path: Path) -> None:
    bring(tmp_path, inputs(raw))
    domain = DOMAIN.domain
    name, counted = count_statistics(tmp_path, domain)
    assert counted
    assert count_statistics(tmp_path, domain) == (name, False)
    assert newest_name(tmp_path, domain) == name
    assert not (tmp_path / ".statistics-staging").exists()
    assert [path.name for path in (tmp_path / "statistics").glob("[!.]*")] == [name]
    base = load_base(tmp_path, name, domain)
    (parts,) = base.statistics.counted
    expected_A = slow_totals(tmp_path)
    assert expected_A.all()
    for part in (parts.items, parts.users):
        assert (np.diff(part.key_K.astype(object)) > 0).all()
        assert (np.diff(part.place_E) > 0).all()
        total_A = part.at(part.key_K, np.repeat(NOW, len(part.key_K)))[:, -1].sum(axis=0)
        assert total_A.tolist() == expected_A.tolist()
    assert parts.everything.at(EVERYTHING, NOW)[0, -1].tolist() == expected_A.tolist()
    assert 0 < len(parts.items.key_K) <= WORLD.num_items
    assert 0 < len(parts.users.key_K) <= WORLD.num_users
    reader = WindowReader(tmp_path, [build_window(tmp_path)], domain, 8, statistics=base.statistics)
    batches = list(reader.in_order(64))
    for batch in batches:
        again = base.statistics.of_requests(batch.requests)
        assert np.array_equal(batch.requests.item_statistic_NK, again.item_statistic_NK)
    assert any(batch.requests.item_statistic_NK.any() for batch in batches), "the window's batches carry them"
    assert any(batch.requests.user_statistic_RK.any() for batch in batches)
    bare = WindowReader(tmp_path, ["w"], domain, 8)
    assert not any(batch.requests.user_statistic_RK.any() for batch in bare.in_order(64))


def slow_totals(root: Path) -> np.ndarray:
    """Impressions, then each head's actions: a user's with an item once a step of the grid."""
    step_ms = DOMAIN.domain.statistics_step_ms
    shown = read_log(root, "requests", ["user_id", "timestamp_ms", "item_ids"]).to_pandas().explode("item_ids")
    events = read_log(root, "events", ["user_id", "item_id", "action", "received_at_ms"]).to_pandas()
    totals = [len(set(zip(shown["user_id"], shown["item_ids"], shown["timestamp_ms"] // step_ms, strict=True)))]
    for head in DOMAIN.domain.heads:
        mine = events[events["action"].isin(head.actions)]
        totals.append(len(set(zip(mine["user_id"], mine["item_id"], mine["received_at_ms"] // step_ms, strict=True))))
    return np.array(totals)


def test_statistics_of_other_half_lives_are_refused_and_old_ones_go(raw: Path, tmp_path: Path) -> None:
    events = pq.read_table(raw / "events", partitioning=None)
    names = []
    for part in range(4):
        path = tmp_path / f"{part}.parquet"
        pq.write_table(events.slice(part * 500, 500), path)
        bring(tmp_path / "root", inputs(raw, events=[path]))
        names.append(count_statistics(tmp_path / "root", DOMAIN.domain)[0])
    assert names == sorted(set(names)), "later ones have greater names"
    kept = {path.name for path in (tmp_path / "root" / "statistics").glob("[!.]*")}
    assert kept == set(names[-3:])
    other = dataclasses.replace(DOMAIN.domain, half_lives_ms=(2 * HOUR_MS,))
    with pytest.raises(PublishError, match="was counted for other heads or half-lives; count anew: `rayapp windows`"):
        load_base(tmp_path / "root", names[-1], other)
    name, counted = count_statistics(tmp_path / "root", other)
    assert counted
    assert load_base(tmp_path / "root", name, other).statistics.columns.num_half_lives == 1
    (tmp_path / "root" / "statistics" / name / "users" / "place_E.npy").unlink()
    with pytest.raises(PublishError, match=r"is damaged .*; remove it and count anew: `rayapp windows`"):
        load_base(tmp_path / "root", name, other)


def build_window(root: Path) -> str:
    build(root, "w", Window(WORLD.start_ms, WORLD.start_ms + 5 * 86_400_000, 100), DOMAIN.domain)
    return "w"


def test_erasure_hides_at_once_and_compaction_removes(raw: Path, tmp_path: Path) -> None:
    events = pq.read_table(raw / "events", partitioning=None)
    for part in (0, 1):
        path = tmp_path / f"{part}.parquet"
        pq.write_table(events.slice(part * 1000, 1000), path)
        bring(tmp_path / "root", inputs(raw, events=[path]))
    root, user = tmp_path / "root", events["user_id"][0].as_py()
    window = Window(WORLD.start_ms, WORLD.start_ms + 5 * 86_400_000, 100)
    before = build(root, "before", window, DOMAIN.domain)
    name, _ = count_statistics(root, DOMAIN.domain)
    (known,) = load_newest(root, DOMAIN.domain).counted
    one = np.array([hash64(user)], np.uint64)
    of_all, was_K = known.everything.at(EVERYTHING, NOW), np.array(known.users.key_K)
    assert known.users.at(one, NOW).any()
    erase_user(root, user, NOW_MS)
    after = build(root, "after", window, DOMAIN.domain)
    assert sum(b["requests"] for b in after["buckets"]) < sum(b["requests"] for b in before["buckets"])
    assert mentions(root, user)
    num_rows = read_log(root, "events", ["user_id"]).num_rows
    add_agreed_steps(root, "a", {1: (0, 1, 2, 3)})
    done = compact(root)
    assert agreed_steps(root) == {("a", 1): (0, 1, 2, 3)}
    assert done.files_after == 8  # one a bucket and log
    assert done.rows_erased > 0
    assert not mentions(root, user)
    blanked = load_base(root, name, DOMAIN.domain).statistics.counted[0]
    assert not blanked.users.at(one, NOW).any()
    assert (np.diff(blanked.users.key_K.astype(object)) > 0).all()
    assert np.isin(np.setdiff1d(was_K, one), blanked.users.key_K).all(), "the others are still found"
    assert np.array_equal(blanked.everything.at(EVERYTHING, NOW), of_all), "what items gained names nobody"
    newer, counted = count_statistics(root, DOMAIN.domain)
    assert counted
    fresh = load_base(root, newer, DOMAIN.domain).statistics.counted[0]
    assert not fresh.users.at(one, NOW).any()
    assert (fresh.everything.at(EVERYTHING, NOW)[0, -1] <= of_all[0, -1]).all()
    assert (fresh.everything.at(EVERYTHING, NOW)[0, -1] < of_all[0, -1]).any()
    assert not mentions(root, user)
    assert num_rows > read_log(root, "events", ["user_id"]).num_rows > 0
    assert bring(root, inputs(raw, events=[tmp_path / "0.parquet"])).events.accepted == 0, "old files bring nobody back"
    assert compact(root).rows_erased == 0


def mentions(root: Path, user: str) -> bool:
    tables = [pq.read_table(p, partitioning=None) for p in root.rglob("*.parquet")]
    raw_hash = hash64(user).to_bytes(8, "little")
    return any("user_id" in t.column_names and user in t["user_id"].to_pylist() for t in tables) or any(
        raw_hash in path.read_bytes() for path in (root / "statistics").rglob("*.npy")
    )


def test_a_killed_worker_costs_a_retry(tmp_path: Path) -> None:
    def task(number: int) -> dict[str, int]:
        marker = tmp_path / f"died-{number}"
        if number == 3 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        (tmp_path / f"{number}").write_text("done")
        return {"number": number}

    assert [r["number"] for r in run_tasks(8, task)] == list(range(8))
    assert (tmp_path / "died-3").exists()


def workers_of(pid: int) -> list[int]:
    """Ray workers below a process that are running one of our tasks."""
    children: dict[int, list[int]] = {}
    names: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                names[int(entry.name)] = (entry / "cmdline").read_text()
            except (OSError, IndexError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    below, found = [pid], []
    while below:
        for child in children.get(below.pop(), []):
            below.append(child)
            if names[child].startswith("ray::") and "IDLE" not in names[child] and "Map" in names[child]:
                found.append(child)
    return found


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough rows that an import takes seconds: time to kill something."""
    directory = tmp_path_factory.mktemp("large")
    write_items(WORLD, directory)
    write_chunk(WORLD, directory, 0)
    events = pq.read_table(directory / "events", partitioning=None)
    for copy in range(12):
        part = events.set_column(
            0, "event_id", pa.array([f"{copy}-{e}" for e in events["event_id"].to_pylist()])
        ).set_column(1, "user_id", pa.array([f"{copy}-{u}" for u in events["user_id"].to_pylist()]))
        with pa.output_stream(str(directory / "events" / f"more-{copy}.ndjson.gz"), compression="gzip") as out:
            out.write("".join(json.dumps(row) + "\n" for row in part.to_pylist()).encode())
    return directory


def command(root: Path, raw: Path) -> list[str]:
    files = files_in(raw)
    arguments = ["--domain", "synthetic", "--events", str(files.events), "--requests", str(files.requests)]
    return [RAYAPP, "import", "--root", str(root), *arguments, "--items", str(files.items), "--buckets", "4"]


def test_a_worker_killed_in_an_import_and_a_driver_killed_in_the_next_cost_no_row(
    large: Path, rayapp_here: Command, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    running = subprocess.Popen(command(root, large), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until(lambda: bool(list((root / ".staging").glob("*"))) and bool(workers_of(running.pid)), 90)
    os.kill(workers_of(running.pid)[0], signal.SIGKILL)
    out, err = running.communicate(timeout=180)
    assert running.returncode == 0, err
    rows = read_log(root, "events", ["event_id"])["event_id"].to_pylist()
    events = pq.read_table(large / "events" / "part-00000.parquet", partitioning=None).num_rows
    assert len(rows) == len(set(rows)) == 13 * events, out

    number, manifest = log_manifest(root / "events")
    more = tmp_path / "more" / "events"
    more.mkdir(parents=True)
    for file in (large / "events").glob("*.ndjson.gz"):
        text = pa.input_stream(str(file), compression="gzip").read().decode().replace('"event_id": "', '"event_id": "n')
        (more / file.name.removesuffix(".gz")).write_text(text)
    again = [a if a != str(large / "events") else str(more) for a in command(root, large)]
    running = subprocess.Popen(again, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    until(lambda: bool(list((root / ".staging").glob("*.arrow"))), 90)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    assert log_manifest(root / "events") == (number, manifest), "what was published stays"
    assert len(read_log(root, "events", ["event_id"])) == 13 * events
    done = rayapp_here(*again[1:])
    assert done.exit_code == 0, done.output
    assert len(read_log(root, "events", ["event_id"])) == 25 * events
    assert not (root / ".staging").exists()


@pytest.mark.extended
def test_a_worker_killed_in_a_window_build_costs_a_retry(large: Path, rayapp_here: Command, tmp_path: Path) -> None:
    root = tmp_path / "root"
    files = files_in(large)
    bring(root, Inputs([files.events], [files.requests], [files.items]))
    days = ["--since", "2025-01-01", "--until", "2025-01-06"]
    until(lambda: not workers_of(os.getpid()), 30)
    killed: list[int] = []

    def kill() -> None:
        until(lambda: bool(workers_of(os.getpid())), 90)
        killed.append(workers_of(os.getpid())[0])
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    done = rayapp_here("windows", "--root", root, *days)
    killer.join()
    assert killed
    assert done.exit_code == 0, done.output
    window = read_manifest(root / "windows" / "2025-01-01_2025-01-06")
    assert sum(b["requests"] for b in window["buckets"]) == read_log(root, "requests", ["request_id"]).num_rows
    assert ray.is_initialized()


def test_strict_tells_by_its_exit_code(raw: Path, rayapp_here: Command, tmp_path: Path) -> None:
    events = pq.read_table(raw / "events", partitioning=None).slice(0, 5).to_pandas()
    events.loc[2, "user_id"] = ""
    path = tmp_path / "events.csv"
    events.to_csv(path, index=False)
    arguments = ["--domain", "synthetic", "--events", str(path), "--items", str(files_in(raw).items), "--strict"]
    done = rayapp_here("import", "--root", tmp_path / "root", *arguments)
    assert done.exit_code == 3, done.output
    assert "user_id is missing" in done.stdout
    assert "quarantined: 1" in done.stdout
