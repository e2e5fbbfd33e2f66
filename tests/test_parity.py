"""A replayed day: what the server read, cut again from the exported log, gives the same bytes; and what does not is
found."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayapp.contracts.config import Domain
from rayapp.contracts.presets import nano
from rayapp.contracts.schema import Event
from rayapp.features.sequence import at_request
from rayapp.pipeline import parity as module
from rayapp.pipeline.export import export
from rayapp.pipeline.parity import Parity, parity
from rayapp.pipeline.restore import restore_store
from rayapp.root.erasure import erase_user
from rayapp.root.logs import read_log
from rayapp.root.places import REQUESTS
from rayapp.root.publish import write_json
from rayapp.store import Store
from rayapp.store.opening import open_store
from tests.conftest import T0, Command, make_event

LENGTH = 20
NOW = T0 + 86_400_000
VERSION = "m1"


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Tasks in this process, but where Ray is the point."""
    if "cluster" not in request.keywords:
        monkeypatch.setattr(module, "run_tasks", lambda count, task, told: [task(n) for n in range(count)])


@pytest.fixture
def root(root: Path) -> Path:
    write_model(root, VERSION, LENGTH)
    return root


def write_model(root: Path, version: str, length: int) -> None:
    (root / "models" / version).mkdir(parents=True)
    config = dataclasses.replace(nano().model, history_length=length)
    write_json(root / "models" / version / "config.json", dataclasses.asdict(config))


class Server:
    """Answers as the graph does: look up, cut, hash, log."""

    def __init__(self, store: Store, domain: Domain) -> None:
        self.store, self.domain, self.served = store, domain, 0

    def feed(self, user: str, at_ms: int, *, version: str = VERSION, length: int = LENGTH, tamper: int = 0) -> None:
        found = self.store.lookup(user)
        sequences = at_request(
            found.history,
            timestamp_ms=at_ms,
            watermark=found.watermark,
            length=length,
            vocabulary=self.domain.vocabulary,
        )
        row: dict[str, Any] = {
            "request_id": f"r{self.served}",
            "user_id": user,
            "timestamp_ms": at_ms,
            "item_ids": ["a"],
            "model_version": version,
            "watermark": found.watermark,
            "sequence_hash": sequences.hash_of(0) ^ tamper,
        }
        self.store.log_requests([row])
        self.served += 1


def replay(server: Server, rng: np.random.Generator, hours: int = 24) -> None:
    """A day in order of arrival: events up to two hours late, several in one millisecond, sent twice; feeds between
    them; exports now and then."""
    actions = ["click", "save", "hide", "impression"]
    sent: list[Event] = []
    for hour in range(hours):
        for _ in range(12):
            now = T0 + hour * 3_600_000 + int(rng.integers(3_600_000))
            batch = []
            for _ in range(int(rng.integers(1, 8))):
                # Few distinct moments, so that ties happen: on one item, and on several.
                late = int(rng.choice([0, 0, 0, 60_000, 7_200_000]))
                at = (now - late) // 500_000 * 500_000
                batch.append(
                    Event(
                        event_id=f"e{len(sent) + len(batch)}",
                        user_id=f"u{rng.integers(9)}",
                        item_id=f"i{rng.integers(6)}",
                        action=str(rng.choice(actions)),
                        timestamp_ms=at,
                        received_at_ms=now,
                    )
                )
            sent += batch
            again = [sent[n] for n in rng.integers(0, len(sent), 2)]
            server.store.append([*batch, *again])
            server.feed(f"u{rng.integers(11)}", now)


def export_all(root: Path, store: Store) -> None:
    while export(root, store, NOW):
        pass


def test_a_replayed_day_is_equal_to_the_last_byte(
    root: Path, store: Store, domain: Domain, rng: np.random.Generator
) -> None:
    server = Server(store, domain)
    replay(server, rng, 12)
    export_all(root, store)
    replay_rest = np.random.default_rng(8)
    for n in range(40):
        server.feed(f"u{replay_rest.integers(11)}", NOW + n)
    export_all(root, store)
    found = parity(root)
    assert (found.compared, found.equal, found.share) == (server.served, server.served, 1.0)
    assert found.left_out == {}
    hashes = read_log(root, REQUESTS, ["sequence_hash"])["sequence_hash"].to_pylist()
    assert len(set(hashes)) > server.served / 4, "the sequences differ, so equality says something"


def test_parts_of_a_bucket_give_the_same_answer(
    root: Path, store: Store, domain: Domain, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(store, domain)
    replay(server, rng, 6)
    export_all(root, store)
    monkeypatch.setattr(module, "CUT_ROWS", 50)
    assert parity(root).share == 1.0


def test_a_tampered_row_is_found_and_named(root: Path, store: Store, domain: Domain) -> None:
    server = Server(store, domain)
    replay(server, np.random.default_rng(1), 6)
    server.feed("u1", NOW, tamper=1)
    export_all(root, store)
    found = parity(root)
    assert found.compared - found.equal == 1
    assert [(m.request_id, m.model_version) for m in found.mismatches] == [(f"r{server.served - 1}", VERSION)]
    assert "unknown" in found.mismatches[0].served
    assert parity(root, until_ms=NOW).share == 1.0
    assert parity(root, since_ms=NOW + 1) == Parity(0, 0, {}, ())


def stale(server: Server, change: Callable[[Any], Any]) -> None:
    """A feed whose server saw something else than the store's watermark says."""
    found = server.store.lookup("u1")
    sequences = at_request(
        change(found.history),
        timestamp_ms=NOW,
        watermark=found.watermark,
        length=LENGTH,
        vocabulary=server.domain.vocabulary,
    )
    row = {"request_id": "stale", "user_id": "u1", "timestamp_ms": NOW, "item_ids": ["a"], "model_version": VERSION}
    row |= {"watermark": found.watermark, "sequence_hash": sequences.hash_of(0)}
    server.store.log_requests([row])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda h: h.take(slice(0, 0)), "no events at all"),
        (lambda h: h.take(h.commit_seq_E < h.commit_seq_E.max()), "before commit_seq"),
        (lambda h: h.take(h.commit_seq_E != np.sort(h.commit_seq_E)[-2]), "all but the event"),
    ],
    ids=["nothing", "an older state", "one event short"],
)
def test_what_the_server_had_read_instead_is_told(
    root: Path, store: Store, domain: Domain, change: Callable[[Any], Any], words: str
) -> None:
    store.append([make_event(n, item=f"i{n}", action="save", at=T0 + n) for n in range(6)])
    stale(Server(store, domain), change)
    export_all(root, store)
    (mismatch,) = parity(root).mismatches
    assert words in mismatch.served
    assert mismatch.length == 6


def test_what_can_t_be_compared_is_counted_apart(root: Path, store: Store, domain: Domain) -> None:
    server = Server(store, domain)
    replay(server, np.random.default_rng(2), 3)
    write_model(root, "m2", 7)
    before = server.served
    server.feed("u1", NOW, version="m2", length=7)  # another model, which reads fewer
    server.feed("u2", NOW, version="gone")
    store.log_requests([{"request_id": "popular", "user_id": "u3", "timestamp_ms": NOW, "item_ids": ["a"]}])
    export_all(root, store)
    found = parity(root)
    assert (found.compared, found.share) == (before + 1, 1.0)
    assert sorted(found.left_out.values()) == [1, 1]
    users = read_log(root, REQUESTS, ["user_id"])["user_id"].to_pylist()
    erase_user(root, "u1", NOW)
    store.erase("u1", NOW)
    found = parity(root)
    assert found.left_out["of erased users"] == users.count("u1")
    assert found.share == 1.0


def test_requests_ahead_of_the_exported_events_wait(root: Path, store: Store, domain: Domain) -> None:
    server = Server(store, domain)
    replay(server, np.random.default_rng(3), 3)
    export_all(root, store)
    manifest = sorted((root / "events" / "manifests").glob("*.json"))[-1]
    values = json.loads(manifest.read_text())
    files = [file for file in values["files"] if file["bucket"] > 1]
    assert len(files) < len(values["files"])
    cursors = values["cursors"][store.identity] | {"0": 0, "1": 0}
    write_json(manifest, values | {"files": files, "cursors": {store.identity: cursors}})
    found = parity(root)
    waiting = found.left_out["whose events are not exported yet"]
    assert waiting > 0
    assert found.compared > 0, "of the other buckets"
    assert found.share == 1.0, "compared with the log as it is, those that wait would differ"


def test_parity_survives_the_loss_of_the_store(root: Path, store: Store, domain: Domain) -> None:
    """Numbers go on behind those of the log, so watermarks keep their order."""
    replay(Server(store, domain), np.random.default_rng(4), 4)
    export_all(root, store)
    store.close()
    (root / "store").rename(root / "lost")
    restore_store(root)
    again = open_store(root)
    server = Server(again, domain)
    server.served = 10_000
    more = [
        Event(event_id=f"x{n}", user_id=f"u{n % 9}", item_id="i9", action="save", timestamp_ms=NOW, received_at_ms=NOW)
        for n in range(40)
    ]
    for event in more:
        again.append([event])
        server.feed(event.user_id, NOW + 1)
    export_all(root, again)
    again.close()
    found = parity(root)
    assert (found.compared - found.equal, found.left_out) == (0, {})


@pytest.mark.cluster
def test_the_command_prints_the_share_and_fails_below_it(
    rayapp_here: Command, root: Path, store: Store, domain: Domain
) -> None:
    server = Server(store, domain)
    replay(server, np.random.default_rng(5), 2)
    export_all(root, store)
    done = rayapp_here("parity", "--root", root)
    assert done.exit_code == 0, done.output
    assert "(100.0000%)" in done.output
    server.feed("u1", NOW, tamper=1)
    export_all(root, store)
    done = rayapp_here("parity", "--root", root, "--json")
    assert done.exit_code == 1
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["compared"] - found["equal"] == 1
    assert found["mismatches"][0]["request_id"] == f"r{server.served - 1}"
    assert rayapp_here("parity", "--root", root, "--at-least", "0.5").exit_code == 0
