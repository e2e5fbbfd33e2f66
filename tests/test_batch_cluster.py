"""Batch jobs with Ray on a trained world: three inputs, point in time, and processes really killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from rayapp.batch.as_of import settled_mix
from rayapp.contracts.hashing import hash64
from rayapp.contracts.schema import Event
from rayapp.features.requests import Requests, context_row
from rayapp.features.sequence import NO_WATERMARK, at_request
from rayapp.launch.ports import free_port
from rayapp.loop.artifacts import Prepared
from rayapp.registry.aliases import CHAMPION, read_aliases
from rayapp.registry.models import load_model
from rayapp.retrieval.candidates import Query, fetch
from rayapp.retrieval.index import CandidateIndex
from rayapp.retrieval.orders import Positives
from rayapp.root.facts import read_root
from rayapp.root.logs import read_log
from rayapp.root.places import EVENTS
from rayapp.statistics.known import load_newest
from rayapp.store.lmdb import LmdbStore
from tests.conftest import RAYAPP, Command, until

pytestmark = pytest.mark.cluster
DAY = "2025-01-17"
DAY_MS = 1_737_072_000_000
AS_OF = ["--as-of", DAY]


@pytest.fixture(scope="module")
def trained_root(trained_world: tuple[Path, Prepared]) -> Path:
    return trained_world[0]


def command(root: Path, out: Path, *arguments: object) -> list[str]:
    return [RAYAPP, "batch-score", "--root", str(root), "--out", str(out), *map(str, arguments)]


def run(rayapp_here: Command, root: Path, out: Path, *arguments: object) -> dict[str, object]:
    done = rayapp_here(*command(root, out, *arguments)[1:], "--workers", "2", "--json")
    assert done.exit_code == 0, done.output
    manifest: dict[str, object] = json.loads(done.stdout)
    return manifest


@pytest.fixture(scope="module")
def pairs(trained_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12,000 distinct pairs of everyone in three files, with labels and a column of the caller's."""
    events = read_log(trained_root, EVENTS, ["user_id", "item_id"])
    users = sorted(pc.unique(events["user_id"]).to_pylist())
    items = sorted(pc.unique(events["item_id"]).to_pylist())
    rng = np.random.default_rng(0)
    place = rng.permutation(len(users) * len(items))[:12_000]
    table = pa.table(
        {
            "user_id": [users[p % len(users)] for p in place],
            "item_id": [items[p // len(users)] for p in place],
            "campaign": pa.array(rng.integers(5, size=len(place))),
            "save": pa.array((rng.random(len(place)) < 0.3).astype(np.float32)),
        }
    )
    directory = tmp_path_factory.mktemp("pairs")
    for part in range(3):
        pq.write_table(table.slice(part * 4_000, 4_000), directory / f"{part}.parquet")
    return directory


def pairs_in(table: pa.Table) -> list[tuple[str, str]]:
    return sorted(zip(table["user_id"].to_pylist(), table["item_id"].to_pylist(), strict=True))


def by_hand(root: Path, store: LmdbStore, user: str, items: list[str]) -> np.ndarray:
    """What the live graph would have answered at DAY, its store holding only what had arrived by then."""
    domain, _ = read_root(root)
    model = load_model(root, read_aliases(root)[CHAMPION], domain)
    sequences = at_request(
        store.lookup(user).history,
        timestamp_ms=DAY_MS,
        watermark=NO_WATERMARK,
        length=model.config.history_length,
        vocabulary=domain.vocabulary,
    )
    statistics, step = load_newest(root, domain), DAY_MS // domain.statistics_step_ms
    user_hash = np.array([hash64(user)], np.uint64)
    item_hash = np.array([hash64(i) for i in items], np.uint64)
    request = Requests.of_one(
        hash64(user),
        DAY_MS,
        context_row(domain.context_attributes, DAY_MS, {}),
        sequences,
        item_hash,
        statistics.users(user_hash, np.array([step]))[0],
        statistics.items(item_hash, np.full(len(items), step)),
    )
    return model.scorer.score(request)[0]


@pytest.fixture(scope="module")
def store_of_day(trained_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LmdbStore]:
    """A store that knows nothing of DAY and later, nor what came late."""
    domain, num_buckets = read_root(trained_root)
    store = LmdbStore(tmp_path_factory.mktemp("store"), domain.vocabulary, num_buckets, map_bytes=1 << 26)
    names = ["event_id", "user_id", "item_id", "action", "timestamp_ms", "received_at_ms"]
    rows = read_log(trained_root, EVENTS, names).to_pylist()
    known = [row for row in rows if row["timestamp_ms"] < DAY_MS and row["received_at_ms"] <= DAY_MS]
    assert 0 < len(known) < len(rows)
    store.append([Event(**row) for row in known])
    yield store
    store.close()


def test_pairs_are_scored_as_of_the_moment_and_nothing_later_is_seen(
    trained_root: Path,
    pairs: Path,
    store_of_day: LmdbStore,
    rayapp_here: Command,
    on_our_ray: dict[str, str],
    tmp_path: Path,
) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    some = pq.read_table(pairs / "0.parquet").slice(0, 1)
    odd = pa.concat_tables([some, some, some.set_column(0, "user_id", pa.array(["nobody"]))])
    pq.write_table(
        odd.set_column(1, "item_id", pa.array([some["item_id"][0].as_py(), "gone", "gone"])), bad / "a.parquet"
    )
    (bad / "b.parquet").write_bytes((pairs / "0.parquet").read_bytes()[:2_000])
    out = tmp_path / "out"
    manifest = run(rayapp_here, trained_root, out, "--pairs", pairs, "--pairs", bad, *AS_OF)
    assert (manifest["rows"], manifest["duplicates"], manifest["quarantined"]) == (12_002, 1, 1)
    assert (manifest["cold_requests"], manifest["unknown_items"]) == (_cold(store_of_day, pairs) + 1, 2)
    assert "b.parquet" in (out / "quarantine.ndjson").read_text()
    table = pq.read_table(out / "scores")
    assert len(set(pairs_in(table))) == table.num_rows == 12_002
    heads = [f"probability_{head}" for head in read_root(trained_root)[0].head_names]
    for user in sorted(set(table["user_id"].to_pylist()))[::25]:
        mine = table.filter(pc.equal(table["user_id"], user))
        expected = by_hand(trained_root, store_of_day, user, mine["item_id"].to_pylist())
        np.testing.assert_allclose(np.stack([mine[h].to_numpy() for h in heads], axis=1), expected, atol=1e-5)
        assert mine["rank"].to_pylist() == list(range(1, mine.num_rows + 1))
        assert (np.diff(mine["utility"].to_numpy()) <= 0).all()
    assert set(table["statistics_at_ms"].to_pylist()) == {DAY_MS}
    joined = dict(zip(pairs_in(pq.read_table(pairs)), range(12_000), strict=True))
    assert len(joined) == 12_000
    assert table["campaign"].null_count == 0
    of_everyone = manifest["metrics"]["save"]["all"]  # type: ignore[index]
    assert of_everyone["rows"] == 12_002
    again = rayapp_here(*command(trained_root, out, "--pairs", pairs, "--pairs", bad, *AS_OF)[1:])
    assert "finished already" in again.stdout, again.output
    other = subprocess.run(
        command(trained_root, out, "--pairs", pairs, *AS_OF),
        env=on_our_ray, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert other.returncode == 1
    assert "--overwrite" in other.stderr
    strict = rayapp_here(*command(trained_root, tmp_path / "strict", "--pairs", bad, *AS_OF, "--strict")[1:])
    assert strict.exit_code == 3, strict.output
    assert not (tmp_path / "strict").exists()


def _cold(store: LmdbStore, pairs: Path) -> int:
    users = set(pq.read_table(pairs)["user_id"].to_pylist())
    return sum(len(store.lookup(user).history) == 0 for user in users)


def test_every_user_gets_the_best_of_the_candidates_that_the_graph_would_fetch(
    trained_root: Path, store_of_day: LmdbStore, rayapp_here: Command, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(rayapp_here, trained_root, out, "--all-users", *AS_OF, "--candidates", 40, "--top-k", 7)
    table = pq.read_table(out / "scores")
    domain, _ = read_root(trained_root)
    statistics, step = load_newest(trained_root, domain), DAY_MS // domain.statistics_step_ms
    positives = Positives.of(statistics.grid, *statistics.all_positives(step))
    index = CandidateIndex(load_model(trained_root, read_aliases(trained_root)[CHAMPION], domain).table, positives)
    users = sorted(set(table["user_id"].to_pylist()))
    assert len(users) > 90
    for user in users[::25]:
        mine = table.filter(pc.equal(table["user_id"], user))
        query = Query(40, now_ms=DAY_MS, mix=settled_mix())
        there = fetch(index, store_of_day.lookup(user).history, domain.vocabulary, query).item_ids
        utility = by_hand(trained_root, store_of_day, user, there) @ np.array(domain.utilities, np.float32)
        assert mine.num_rows == 7
        assert set(mine["item_id"].to_pylist()) <= set(there)
        np.testing.assert_allclose(mine["utility"].to_numpy(), np.sort(utility)[::-1][:7], atol=1e-5)
    asked = tmp_path / "users.csv"
    asked.write_text("user_id,mail\n" + "".join(f"{u},{u}@x\n" for u in [*users[:5], "nobody"]))
    run(rayapp_here, trained_root, tmp_path / "some", "--users", asked, *AS_OF, "--candidates", 40, "--top-k", 7)
    some = pq.read_table(tmp_path / "some" / "scores")
    assert some.num_rows == 42
    assert set(some["mail"].to_pylist()) == {f"{u}@x" for u in [*users[:5], "nobody"]}
    assert set(some.filter(pc.equal(some["user_id"], "nobody"))["known_user"].to_pylist()) == {False}


def processes(pid: int, named: str) -> list[int]:
    """Processes below `pid` whose command line holds the name."""
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
            if named in names[child]:
                found.append(child)
    return found


def test_killed_drivers_and_actors_cost_the_parts_in_flight_and_no_row(
    trained_root: Path, pairs: Path, on_our_ray: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    whole = command(trained_root, out, "--pairs", pairs, *AS_OF, "--workers", 2, "--rows-per-part", 1_000)
    running = subprocess.Popen(whole, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)

    def done() -> dict[Path, int]:
        return {p: p.stat().st_mtime_ns for p in tmp_path.glob(".out.job-*/done/[!.]*.json")}

    until(lambda: len(done()) >= 8, 120)  # of 16
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    assert not out.exists(), "nothing half is published"
    until(lambda: not processes_of_dead(running.pid), 120)
    before = done()
    (workspace,) = tmp_path.glob(".out.job-*")
    parts = {p: p.stat().st_mtime_ns for p in (workspace / "result").rglob("*.parquet")}

    again = [*whole, "--json"]
    running = subprocess.Popen(again, env=on_our_ray, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until(lambda: len(done()) > len(before) or running.poll() is not None, 120)
    kept = {p: m for p, m in done().items() if p in before}
    assert kept == before, "finished parts are not scored again"
    for actor in processes(os.getpid(), "MapBatches(_Actor)")[:1]:
        os.kill(actor, signal.SIGKILL)
    stdout, stderr = running.communicate(timeout=240)
    assert running.returncode == 0, stderr
    redone = [p for p, m in parts.items() if (out / p.relative_to(workspace / "result")).stat().st_mtime_ns != m]
    assert len(redone) <= 2, "at most the parts in flight"
    table = pq.read_table(out / "scores")
    assert pairs_in(table) == pairs_in(pq.read_table(pairs))
    assert json.loads(stdout)["rows"] == 12_000
    assert list(tmp_path.glob(".out.*")) == []


def processes_of_dead(group: int) -> list[int]:
    """Processes of a killed command's session that still live."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == group and fields[0] != "Z":
                found.append(int(entry.name))
    return found


@pytest.mark.extended
def test_a_ray_job_scores_on_the_cluster_it_was_submitted_to(trained_root: Path, pairs: Path, tmp_path: Path) -> None:
    """`ray job submit` as docs/batch.md shows it, with its runtime environment, against a head of our own."""
    port, temp = free_port(), Path("/tmp") / f"rb{os.getpid()}"
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": str(temp)}
    environment.pop("RAY_ADDRESS", None)
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    ray = str(Path(sys.executable).with_name("ray"))
    head = subprocess.Popen(
        [ray, "start", "--head", "--block", f"--port={free_port()}", "--num-cpus=2", "--include-dashboard=true",
         "--dashboard-host=127.0.0.1", f"--dashboard-port={port}", f"--temp-dir={temp}",
         f"--ray-client-server-port={free_port()}", f"--dashboard-agent-listen-port={free_port()}",
         f"--metrics-export-port={free_port()}", "--object-store-memory=100000000"],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        until(lambda: _answers(address), 120)
        out = tmp_path / "out"
        example = Path(__file__).parents[1] / "docs" / "examples" / "batch-runtime-env.yaml"
        score = command(trained_root, out, "--pairs", pairs, *AS_OF)
        done = subprocess.run(
            [ray, "job", "submit", "--address", address, "--runtime-env", str(example), "--", *score],
            env=environment, capture_output=True, text=True, check=False, timeout=240,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert "12,000 rows" in done.stdout
        assert pq.read_table(out / "scores").num_rows == 12_000
    finally:
        os.killpg(head.pid, signal.SIGKILL)
        head.wait()
        until(lambda: not processes_of_dead(head.pid), 120)
        shutil.rmtree(temp, ignore_errors=True)


def _answers(address: str) -> bool:
    import httpx

    try:
        return httpx.get(f"{address}/api/version", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False
