"""The order of system calls: what was appended is synced to the disk before it is acknowledged.

A process that is killed leaves the system's cache whole, so a kill can't show this. `strace` can: a write to the data
that no later sync covers, followed by the answer, is a promise that a power cut breaks. The same check must find that
where syncing is switched off.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from rayapp.contracts.config import Domain
from rayapp.contracts.json_values import to_json
from rayapp.store.redis import RedisStore
from tests.conftest import make_event
from tests.redis_server import MISSING, free_port, wait_until_answers

TRACED = "openat,write,writev,pwrite64,pwritev,fsync,fdatasync,msync,sendto,sendmsg"
CALL = re.compile(r"(?P<name>\w+)\((?P<fd>\d+)<(?P<path>[^>]*)>(?P<rest>.*)\) += (?P<result>\d+)")
OPENED = re.compile(r"openat\(.*O_DSYNC.*\) = (?P<fd>\d+)<")
APPENDER = """
import json, os, sys
from pathlib import Path
from rayapp.contracts.json_values import from_json
from rayapp.contracts.schema import Vocabulary
from rayapp.store.lmdb import LmdbStore
from tests.conftest import make_event
vocabulary = from_json(Vocabulary, json.loads(sys.argv[2]))
store = LmdbStore(Path(sys.argv[1]), vocabulary, 4, map_bytes=1 << 24, sync=sys.argv[3] == "sync")
for n in range(5):
    store.append([make_event(10 * n + k, user=f"u{k}") for k in range(10)])
    os.write(1, b"answer")
"""

EXPORTER = """
import json, sys
from pathlib import Path
from rayapp.contracts.config import Domain
from rayapp.contracts.json_values import from_json
from rayapp.pipeline.export import export
from rayapp.root.facts import make_root
from rayapp.store.opening import open_store
from tests.conftest import make_event
root = Path(sys.argv[1])
make_root(root, from_json(Domain, json.loads(sys.argv[2])), 4)
store = open_store(root)
store.append([make_event(n, user=f"u{n}") for n in range(20)])
export(root, store, 1_767_225_600_000)
"""


@pytest.fixture(autouse=True)
def needs_strace() -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed (apt-get install strace): NOTHING about the order of syncs is tested")


def unsynced_answers(trace: Path, data: str, answer: str) -> tuple[int, int]:
    """`(answers before which a write to the data was not synced, all answers)`.

    `data` and `answer` stand in the paths of the files that hold the data, and that the answer is written to.
    """
    synced_by_itself: set[str] = set()  # opened with O_DSYNC: a write returns when it is on the disk
    dirty, written, bad, answers = False, False, 0, 0
    for line in trace.read_text().splitlines():
        if opened := OPENED.search(line):
            synced_by_itself.add(opened["fd"])
        call = CALL.search(line)
        if call is None:
            continue
        if data in call["path"]:
            if call["name"] in ("fsync", "fdatasync", "msync"):
                dirty = False
            elif call["fd"] not in synced_by_itself:
                dirty = written = True
        elif answer in call["path"] and call["name"] in ("write", "writev", "sendto", "sendmsg") and written:
            answers += 1
            bad += dirty
            written = False
    return bad, answers


@pytest.mark.slow
@pytest.mark.parametrize("sync", ["sync", "no sync"])
def test_lmdb_syncs_before_the_answer(tmp_path: Path, domain: Domain, sync: str) -> None:
    trace = tmp_path / "trace"
    vocabulary = json.dumps(to_json(domain.vocabulary))
    command = ["strace", "-f", "-yy", "-e", f"trace={TRACED}", "-o", str(trace)]
    command += [sys.executable, "-c", APPENDER, str(tmp_path / "s"), vocabulary, sync]
    subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1])
    bad, answers = unsynced_answers(trace, "data.mdb", "pipe:")
    assert answers == 5
    assert bad == (0 if sync == "sync" else 5)


@pytest.mark.slow
def test_an_export_syncs_its_files_before_a_manifest_names_them(tmp_path: Path, domain: Domain) -> None:
    """The next round frees what this one has exported."""
    trace = tmp_path / "trace"
    command = ["strace", "-f", "-y", "-e", f"trace={TRACED}", "-o", str(trace)]
    command += [sys.executable, "-c", EXPORTER, str(tmp_path / "root"), json.dumps(to_json(domain))]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[1])
    bad, manifests = unsynced_answers(trace, "/bucket=", "/events/manifests/")
    assert (bad, manifests) == (0, 1)


@pytest.mark.parametrize("appendfsync", ["always", "everysec"])
def test_redis_syncs_before_the_answer(tmp_path: Path, domain: Domain, appendfsync: str) -> None:
    if shutil.which("redis-server") is None:
        pytest.skip(MISSING)
    port, trace = free_port(), tmp_path / "trace"
    command = ["strace", "-f", "-yy", "-e", f"trace={TRACED}", "-o", str(trace), "redis-server", "--port", str(port)]
    command += ["--bind", "127.0.0.1", "--dir", str(tmp_path), "--save", ""]
    command += ["--appendonly", "yes", "--appendfsync", appendfsync]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    wait_until_answers(port)
    store = RedisStore(f"redis://127.0.0.1:{port}/0", domain.vocabulary, 1)
    for n in range(5):
        store.append([make_event(n)])
    store.close()
    with redis.Redis(port=port) as client:
        client.shutdown(nosave=True)  # and strace ends with it
    server.wait(30)
    bad, answers = unsynced_answers(trace, "appendonlydir", "TCP:")
    assert answers >= 5
    if appendfsync == "always":
        assert bad == 0
    else:
        assert bad >= 3, "syncing once a second, most answers come before it"
