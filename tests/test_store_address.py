"""The root remembers which store its events are in: no command opens an empty one beside it; no password is kept."""

import asyncio
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from deployments.sequences import SequencesDeployment
from rayapp.cli.main import cli
from rayapp.loop.steps import open_store as open_for_retraining
from rayapp.root.logs import read_log
from rayapp.serving.sequence_stage import SequenceStage
from rayapp.store import StoreError
from rayapp.store.address import address_of, in_use, resolve
from rayapp.store.opening import open_store
from tests.conftest import make_event
from tests.redis_server import free_port, start, stop

SECRET = "s3cret"


@pytest.fixture(autouse=True)
def _no_store_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAYAPP_STORE", "RAYAPP_STORE_FILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def redis_port(tmp_path: Path) -> Iterator[int]:
    """A server that wants a password."""
    port = free_port()
    server: subprocess.Popen[bytes] = start(tmp_path / "redis", port, "--requirepass", SECRET)
    yield port
    stop(server)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments])


def serve(root: Path, url: str | None) -> None:
    """What the graph does with its store when it starts, and an event that it takes."""
    stage = sequences(root, url)
    stage._store.append([make_event(1)])
    stage.close()


def sequences(root: Path, url: str | None) -> SequenceStage:
    kind = SequencesDeployment.func_or_class
    stage: SequenceStage = kind.__new__(kind)
    asyncio.run(stage.__init__(str(root), url))  # type: ignore[misc]
    return stage


def test_commands_find_the_store_that_the_graph_uses(
    root: Path, redis_port: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The literal `rayapp export`, and the export of a retraining, on a cluster with Redis."""
    url = f"redis://:{SECRET}@127.0.0.1:{redis_port}/0"
    plain = f"redis://127.0.0.1:{redis_port}/0"
    monkeypatch.setenv("RAYAPP_STORE", url)
    serve(root, plain)  # as in the YAML, without a password
    assert json.loads((root / "store.json").read_text()) == {"address": plain}
    done = run("export", "--root", root)
    assert "1 events" in done.output, done.exception
    assert read_log(root, "events", ["event_id"])["event_id"].to_pylist() == ["e1"]
    assert not (root / "store").exists(), "no second store"
    monkeypatch.delenv("RAYAPP_STORE")
    with pytest.raises(StoreError, match=r"Redis wants a password.*RAYAPP_STORE_FILE"):
        open_store(root)
    secret = tmp_path / "secret"
    secret.write_text(f"{url}\n")
    monkeypatch.setenv("RAYAPP_STORE_FILE", str(secret))
    store = open_for_retraining(root, None)
    assert store.lookup("u1").item_ids == ("i1",)
    store.close()
    assert not (root / "store").exists()
    for path in root.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path


def test_another_store_is_refused_in_words_and_a_move_is_asked_for(root: Path, redis_port: int, tmp_path: Path) -> None:
    url = f"redis://:{SECRET}@127.0.0.1:{redis_port}/0"
    serve(root, None)
    assert in_use(root) == "lmdb"
    for command in (["export"], ["erase", "u1"]):
        done = run(*command, "--root", root, "--store", url)
        assert isinstance(done.exception, StoreError)
        assert "rayapp store use" in str(done.exception)
        assert SECRET not in str(done.exception)
    done = run("store", "use", url, "--root", root)
    assert isinstance(done.exception, StoreError), "an event waits in the old one"
    assert "1 rows" in str(done.exception)
    assert run("export", "--root", root).exit_code == 0
    done = run("store", "use", url, "--root", root)
    assert (done.exit_code, SECRET in done.output) == (0, False), done.exception
    with pytest.raises(StoreError, match="leave --store"):
        open_store(root, f"lmdb://{root / 'store'}")
    with pytest.raises(StoreError, match="leave --store"):
        sequences(root, f"lmdb://{tmp_path / 'elsewhere'}")


def test_a_graph_does_not_leave_events_of_an_older_release_behind(root: Path, redis_port: int) -> None:
    """Whose roots hold no address yet."""
    url = f"redis://:{SECRET}@127.0.0.1:{redis_port}/0"
    store = open_store(root)
    store.append([make_event(1)])
    store.close()
    assert in_use(root) is None, "a command alone takes nothing into use"
    with pytest.raises(StoreError, match="1 rows that nobody has exported"):
        sequences(root, url)
    assert run("export", "--root", root).exit_code == 0
    serve(root, url)
    assert in_use(root) == f"redis://127.0.0.1:{redis_port}/0"


def test_a_store_that_is_gone_can_be_left(root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "store.json").write_text(json.dumps({"address": "redis://127.0.0.1:1/0"}))
    done = run("store", "use", f"lmdb://{root / 'store'}", "--root", root)
    assert done.exit_code == 0, done.exception
    assert "is left as it is: Redis does not answer" in caplog.text
    assert in_use(root) == "lmdb"


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://:pw@Host/0", "redis://host:6379/0"),
        ("redis://user:p%40w@host:7000", "redis://host:7000/0"),
        ("rediss://host:7000/1?cluster=true", "rediss://host:7000/1?cluster=true"),
        ("lmdb:///ROOT/store", "lmdb"),
        ("lmdb:///elsewhere", "lmdb:///elsewhere"),
    ],
)
def test_equal_places_have_one_address(root: Path, url: str, address: str) -> None:
    assert address_of(root, url.replace("/ROOT", str(root))) == address


def test_what_a_url_lacks_comes_from_the_environment_for_that_address_alone(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = "rediss://reader:p%40w@host:7000/1"
    monkeypatch.setenv("RAYAPP_STORE", whole)
    assert resolve(root, "rediss://host:7000/1") == whole
    assert resolve(root, None) == whole
    assert resolve(root, "rediss://other:7000/1") == "rediss://other:7000/1"


def test_the_default_lmdb_moves_with_its_root(root: Path, tmp_path: Path) -> None:
    serve(root, None)
    moved = root.rename(tmp_path / "moved")
    assert resolve(moved, None) == f"lmdb://{moved / 'store'}"
    store = open_store(moved)
    assert store.lookup("u1").item_ids == ("i1",)
    store.close()
