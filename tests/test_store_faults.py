"""Faults of an LMDB store's surroundings: killed processes, a full or read-only disk, damage, many writers. Each time a
clear answer, and nothing lost that was acknowledged."""

import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest

from rayapp.contracts.config import Domain
from rayapp.contracts.json_values import to_json
from rayapp.contracts.schema import bucket_of
from rayapp.store import StoreError
from rayapp.store.environment import DATA
from rayapp.store.lmdb import LmdbStore
from tests.conftest import T0, drained, forever, make_event

MAP = 1 << 26


WRITER = """
import sys
from pathlib import Path
from rayapp.contracts.config import Domain
from rayapp.contracts.json_values import from_json
from rayapp.root.publish import read_json
from rayapp.store.lmdb import LmdbStore
from tests.conftest import make_event
store = LmdbStore(Path(sys.argv[1]), from_json(Domain, read_json(Path(sys.argv[2]))).vocabulary, 4, map_bytes=1 << 26)
for n in range(100_000):
    store.append([make_event(n, user=f"u{n % 7}", at=1_767_225_600_000 + n)])
    print(n, flush=True)
"""


@pytest.mark.slow
def test_what_was_acknowledged_survives_a_kill(tmp_path: Path, domain: Domain) -> None:
    """A real process is killed while it writes; every event it had acknowledged is there exactly once."""
    from rayapp.root.publish import write_json

    write_json(tmp_path / "domain.json", to_json(domain))
    command = [sys.executable, "-c", WRITER, str(tmp_path / "s"), str(tmp_path / "domain.json")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
    assert process.stdout is not None
    acknowledged = [int(process.stdout.readline()) for _ in range(60)]
    os.kill(process.pid, signal.SIGKILL)
    acknowledged += [int(line) for line in process.stdout.read().splitlines()]
    process.wait()
    process.stdout.close()
    store = LmdbStore(tmp_path / "s", domain.vocabulary, 4, map_bytes=MAP)
    outbox = [row.value["event_id"] for bucket in range(4) for row in store.drain(bucket, 0, 100_000)]
    assert len(outbox) == len(set(outbox))
    assert {f"e{n}" for n in acknowledged} <= set(outbox)
    stored = sum(len(store.lookup(f"u{n}").history) for n in range(7))
    assert stored == len(outbox)
    store.close()


def test_two_processes_may_hold_the_store(tmp_path: Path, domain: Domain) -> None:
    """A second process reads what the first wrote after both had opened it."""
    store = LmdbStore(tmp_path / "s", domain.vocabulary, 4, map_bytes=MAP)
    program = (
        "import sys; from pathlib import Path; from rayapp.store.lmdb import LmdbStore\n"
        "from rayapp.contracts.json_values import from_json\n"
        "from rayapp.contracts.schema import Vocabulary; import json\n"
        "v = from_json(Vocabulary, json.loads(sys.argv[2]))\n"
        f"s = LmdbStore(Path(sys.argv[1]), v, 4, map_bytes={MAP}); print('open', flush=True); sys.stdin.readline()\n"
        "print(len(s.lookup('u1').history), flush=True)\n"
    )
    vocabulary = json.dumps(to_json(domain.vocabulary))
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "s"), vocabulary],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "open\n"
        store.append([make_event(1), make_event(2)])
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "2\n"
    store.close()


def test_a_store_that_is_cut_off_is_refused_in_words(tmp_path: Path, domain: Domain) -> None:
    """Reading behind the end of the file would end the whole process with SIGBUS."""
    store = LmdbStore(tmp_path / "s", domain.vocabulary, 4, map_bytes=MAP)
    store.append([make_event(n, user=f"u{n}") for n in range(2_000)])
    store.close()
    data = tmp_path / "s" / DATA
    os.truncate(data, data.stat().st_size // 2)
    with pytest.raises(StoreError, match=r"cut off.*rayapp store rebuild"):
        LmdbStore(tmp_path / "s", domain.vocabulary, 4, map_bytes=MAP)


def test_a_store_that_is_overwritten_is_refused_in_words(tmp_path: Path, domain: Domain) -> None:
    LmdbStore(tmp_path / "s", domain.vocabulary, 4, map_bytes=MAP).close()
    data = tmp_path / "s" / DATA
    data.write_bytes(b"\xff" * data.stat().st_size)
    with pytest.raises(StoreError, match=r"can't be opened.*rayapp store rebuild"):
        LmdbStore(tmp_path / "s", domain.vocabulary, 4, map_bytes=MAP)


@pytest.mark.slow
def test_the_map_grows_under_readers_and_other_processes_follow(tmp_path: Path, domain: Domain) -> None:
    store = LmdbStore(tmp_path / "s", domain.vocabulary, 4, map_bytes=1 << 18)
    program = (
        "import sys, json; from pathlib import Path; from rayapp.store.lmdb import LmdbStore\n"
        "from rayapp.contracts.json_values import from_json\n"
        "from rayapp.contracts.schema import Vocabulary; from tests.conftest import make_event\n"
        "v = from_json(Vocabulary, json.loads(sys.argv[2]))\n"
        "s = LmdbStore(Path(sys.argv[1]), v, 4, map_bytes=1 << 18); print('open', flush=True); sys.stdin.readline()\n"
        "print(len(s.lookup('u1999').history), s.append([make_event(9999, user='u1999')])[0], flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "s"), json.dumps(to_json(domain.vocabulary))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "open\n"
        store.append([make_event(n, user=f"u{n}") for n in range(2_000)])
        assert (tmp_path / "s" / DATA).stat().st_size > 1 << 18
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "1 accepted\n"
    assert len(store.lookup("u1999").history) == 2
    store.close()


def test_a_path_that_is_no_directory_is_refused_in_words(tmp_path: Path, domain: Domain) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="can't be opened"):
        LmdbStore(tmp_path / "file", domain.vocabulary, 4, map_bytes=MAP)


@pytest.fixture
def here(tmp_path: Path, domain: Domain) -> Iterator[LmdbStore]:
    opened = LmdbStore(tmp_path / "s", domain.vocabulary, 4, map_bytes=MAP)
    yield opened
    opened.close()


def test_a_full_disk_is_told_and_nothing_acknowledged_is_lost(tmp_path: Path, domain: Domain, here: LmdbStore) -> None:
    """The limit on a file's size stands for the disk's; when it is gone the same store goes on."""
    acknowledged: list[str] = []

    def append(number: int) -> None:
        events = [make_event(1_000 * number + k, user=f"u{number}-{k}", at=T0 + number) for k in range(100)]
        here.append(events)
        acknowledged.extend(e.event_id for e in events)

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, hard))
    try:
        with pytest.raises(StoreError, match="nothing of this was taken"):
            forever(append)
        assert len(acknowledged) > 100
        assert len(here.lookup("u0-0").history) == 1, "reading goes on"
        refused = len(acknowledged) // 100
        with pytest.raises(StoreError):
            append(refused)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    append(refused)
    here.close()
    again = LmdbStore(tmp_path / "s", domain.vocabulary, 4, map_bytes=MAP)
    assert sorted(drained(again)) == sorted(acknowledged)
    again.close()


def test_a_store_that_may_not_be_written_is_refused_in_words(tmp_path: Path, domain: Domain) -> None:
    LmdbStore(tmp_path / "s", domain.vocabulary, 4, map_bytes=MAP).close()
    for path in (tmp_path / "s").iterdir():
        path.chmod(0o444)
    (tmp_path / "s").chmod(0o555)
    mine = os.geteuid()
    if mine == 0:
        os.seteuid(65534)  # root may write everywhere
    try:
        with pytest.raises(StoreError, match=r"Permission denied.*writable") as error:
            LmdbStore(tmp_path / "s", domain.vocabulary, 4, map_bytes=MAP)
    finally:
        os.seteuid(mine)
        (tmp_path / "s").chmod(0o755)
    assert "rebuild" not in str(error.value), "there is nothing wrong with the store"


def test_a_damaged_sequence_is_told_in_words(tmp_path: Path, domain: Domain, here: LmdbStore) -> None:
    here.append([make_event(1), make_event(2, user="u2")])
    here.close()
    with lmdb.open(str(tmp_path / "s"), max_dbs=8, map_size=MAP) as env:
        sequences = env.open_db(b"sequences")
        with env.begin(write=True) as txn:
            txn.put(b"u1", b"\x02\x00\x09garbage", db=sequences)
    again = LmdbStore(tmp_path / "s", domain.vocabulary, 4, map_bytes=MAP)
    with pytest.raises(StoreError, match="damaged"):
        again.lookup("u1")
    with pytest.raises(StoreError, match="damaged"):
        again.append([make_event(3)])
    assert len(again.lookup("u2").history) == 1
    again.close()


def test_threads_may_write_while_the_map_grows(tmp_path: Path, domain: Domain) -> None:
    """The graph's replica appends, puts items and reads, each in a thread of its own."""
    store = LmdbStore(tmp_path / "s", domain.vocabulary, 4, map_bytes=1 << 18, sync=False)
    errors: list[BaseException] = []

    def write(number: int) -> None:
        try:
            for n in range(60):
                store.append([make_event(number * 10_000 + n * 50 + k, user=f"u{number}-{n}-{k}") for k in range(50)])
                store.put_item({"item_id": f"i{number}-{n}"})
                assert len(store.lookup(f"u{number}-{n}-7").history) == 1
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(set(drained(store))) == 4 * 60 * 50
    assert (tmp_path / "s" / DATA).stat().st_size > 1 << 18
    store.close()


def test_a_store_may_be_opened_beside_threads_that_write(tmp_path: Path, domain: Domain, here: LmdbStore) -> None:
    """The binding waits for LMDB's lock without letting other threads run, and the thread that holds it may wait for
    just that."""
    stop = threading.Event()

    def write() -> None:
        for n in itertools.count():
            if stop.is_set():
                break
            here.append([make_event(n)])

    threads = [threading.Thread(target=write, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(30):
            LmdbStore(tmp_path / "s", domain.vocabulary, 4, map_bytes=MAP).close()
    finally:
        stop.set()
    for thread in threads:
        thread.join()


TWO = """
import json, os, sys
from pathlib import Path
from rayapp.contracts.json_values import from_json
from rayapp.contracts.schema import Vocabulary
from rayapp.store.lmdb import LmdbStore
from tests.conftest import make_event
store = LmdbStore(Path(sys.argv[1]), from_json(Vocabulary, json.loads(sys.argv[2])), 4, map_bytes=1 << 18)
first = int(sys.argv[3])
for n in range(100_000):
    store.append([make_event(first + n, user=f"u{n % 50}", at=1_767_225_600_000 + n)])
    print(first + n, flush=True)
"""


@pytest.mark.slow
def test_two_writers_at_once_and_one_of_them_killed(tmp_path: Path, domain: Domain) -> None:
    """The one that lives goes on past a lock whose holder died; both see the map grow."""
    command = [sys.executable, "-c", TWO, str(tmp_path / "s"), json.dumps(to_json(domain.vocabulary))]
    processes = [
        subprocess.Popen(
            [*command, str(n * 1_000_000)], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]
        )
        for n in range(2)
    ]
    acknowledged: list[int] = []
    for round_ in range(2):
        for process in processes[round_:]:
            assert process.stdout is not None
            acknowledged += [int(process.stdout.readline()) for _ in range(40)]
        os.kill(processes[round_].pid, signal.SIGKILL)
    for process in processes:
        assert process.stdout is not None
        acknowledged += [int(line) for line in process.stdout.read().splitlines()]
        process.stdout.close()
        process.wait()
    store = LmdbStore(tmp_path / "s", domain.vocabulary, 4, map_bytes=MAP)
    rows = [row for bucket in range(4) for row in store.drain(bucket, 0, 1_000_000)]
    assert len({row.value["event_id"] for row in rows}) == len(rows)
    assert {f"e{n}" for n in acknowledged} <= {row.value["event_id"] for row in rows}
    for bucket in range(4):
        numbers = [row.commit_seq for row in store.drain(bucket, 0, 1_000_000)]
        assert numbers == list(range(1, len(numbers) + 1)), "no number twice, none left out"
    store.close()


READER = """
import json, os, sys
from pathlib import Path
from rayapp.contracts.json_values import from_json
from rayapp.contracts.schema import Vocabulary
from rayapp.store.lmdb import LmdbStore
store = LmdbStore(Path(sys.argv[1]), from_json(Vocabulary, json.loads(sys.argv[2])), 4, map_bytes=1 << 26)
with store._reading() as txn:
    print("reading", flush=True)
    sys.stdin.readline()
"""


def test_a_reader_that_was_killed_does_not_make_the_file_grow(tmp_path: Path, domain: Domain, here: LmdbStore) -> None:
    """What it had read must not keep old pages from being used again, for ever."""
    here.append([make_event(0)])
    command = [sys.executable, "-c", READER, str(tmp_path / "s"), json.dumps(to_json(domain.vocabulary))]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "reading\n"
        process.kill()

    here.close()
    store = LmdbStore(tmp_path / "s", domain.vocabulary, 4, map_bytes=MAP, sync=False)
    before = (tmp_path / "s" / DATA).stat().st_size
    for n in range(1, 200):
        store.append([make_event(n)])
        store.erase("u1", T0 - 1)
        store.drain(bucket_of("u1", 4), n, 1)
    store.close()
    # 199 times three transactions, each of which writes several pages.
    assert (tmp_path / "s" / DATA).stat().st_size - before < 1 << 19
