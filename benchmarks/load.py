"""Clients that post events over HTTP until each batch is acknowledged, and the count of what became of the events."""

import http.client
import json
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.processes import wait_until
from rayapp.client.session import SessionError
from rayapp.contracts.hashing import hash64
from rayapp.pipeline.export import export_all
from rayapp.root.logs import read_log
from rayapp.root.places import EVENTS, EXPORTS
from rayapp.root.publish import exclusive
from rayapp.store import DEFAULT_CAP
from rayapp.store.opening import open_store

RETRY_S: Final = 0.05
TIMEOUT_S: Final = 30.0
ZIPF: Final = 1.0
NUM_BATCHES: Final = 500
"""Drawn before the start and used in turn: drawing is not what is measured."""


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """One batch that the server has called durable."""

    user_ids: list[str]
    event_ids: list[str]
    timestamp_ms: int
    posted: float
    """`time.monotonic()` of the first try."""
    answered: float
    tries: int


@dataclass(slots=True)
class Load:
    """`num_clients` threads that post batches of `batch` events of as many users, each batch until it is acknowledged.

    Use as a context manager: at its end every batch that was begun is acknowledged.
    """

    port: int
    num_clients: int
    batch: int
    num_users: int
    items: list[str]
    events_per_s: float | None = None
    """Offered in all; None: as much as is acknowledged."""
    acknowledged: list[Acknowledged] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> "Load":
        run = uuid.uuid4().hex[:6]
        weight = 1.0 / np.arange(1, self.num_users + 1) ** ZIPF
        for n in range(self.num_clients):
            rng = np.random.default_rng(n)
            users = [
                rng.choice(self.num_users, self.batch, replace=False, p=weight / weight.sum())
                for _ in range(NUM_BATCHES)
            ]
            self._threads.append(threading.Thread(target=self._run, args=(f"{run}-{n}", users), daemon=True))
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        if self.errors:
            raise self.errors[0]

    def _run(self, name: str, users: list[np.ndarray[Any, Any]]) -> None:
        poster = Poster(self.port)
        pause_s = self.batch * self.num_clients / self.events_per_s if self.events_per_s else 0.0
        due = time.monotonic()
        number = 0
        try:
            while not self._stop.is_set():
                self._post(poster, name, number, [f"bench-{u}" for u in users[number % NUM_BATCHES]])
                number += 1
                due = max(due + pause_s, time.monotonic() - 1)  # what was missed is made up, but not for ever
                self._stop.wait(due - time.monotonic())
        except Exception as error:  # told at the end by whoever started this thread
            self.errors.append(error)
        poster.close()

    def _post(self, poster: "Poster", name: str, number: int, user_ids: list[str]) -> None:
        at_ms = time.time_ns() // 1_000_000
        event_ids = [f"{name}-{number}-{n}" for n in range(self.batch)]
        body = [
            {
                "event_id": event_id,
                "user_id": user_id,
                "item_id": self.items[(number + n) % len(self.items)],
                "action": "save",
                "timestamp_ms": at_ms,
            }
            for n, (event_id, user_id) in enumerate(zip(event_ids, user_ids, strict=True))
        ]
        posted, tries = time.monotonic(), 1
        while (answer := poster.post("/v1/events", body)) is None:
            time.sleep(RETRY_S)
            tries += 1
        if answer["accepted"] + answer["duplicates"] != self.batch:
            raise SessionError(f"a good batch was not taken whole: {answer}")
        self.acknowledged.append(Acknowledged(user_ids, event_ids, at_ms, posted, time.monotonic(), tries))

    def wait_for_more(self, batches: int) -> float:
        """Until so many more batches are acknowledged; the seconds it took."""
        wanted = len(self.acknowledged) + batches

        def there() -> bool:
            if self.errors:
                raise self.errors[0]
            return len(self.acknowledged) >= wanted

        return wait_until(there, f"{batches} more acknowledged batches")


class Poster:
    """One kept connection. An answer is None where the server could not be reached or says "later"."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)

    def post(self, path: str, value: Any) -> dict[str, Any] | None:
        """Raises:
        SessionError: the server refuses it for good.
        """
        try:
            self._connection.request("POST", path, json.dumps(value), {"Content-Type": "application/json"})
            answer = self._connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException):
            self._connection.close()  # the next request opens it again
            return None
        if answer.status == 200:
            result: dict[str, Any] = json.loads(text)
            return result
        starting = answer.status == 404 and answer.getheader("Content-Type") != "application/problem+json"
        if answer.status == 429 or answer.status >= 500 or starting:  # Serve's own 404: it has no routes yet
            return None
        raise SessionError(f"POST {path} answered {answer.status}: {text.decode(errors='replace')[:500]}")

    def close(self) -> None:
        self._connection.close()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the store and the exported log say about the acknowledged events."""

    acknowledged: int
    lost: int
    """Acknowledged, and not in the log."""
    duplicated: int
    """In the log more than once."""
    wrong_sequences: int
    """Users whose stored events are not the newest of the log, in order."""
    users: int

    @property
    def clean(self) -> bool:
        return not (self.lost or self.duplicated or self.wrong_sequences)


def export_now(root: Path, store_url: str | None) -> None:
    """What `rayapp export` does."""
    store = open_store(root, store_url)
    try:
        with exclusive(root / EXPORTS, "an export"):
            export_all(root, store, time.time_ns() // 1_000_000)
    finally:
        store.close()


def verify(root: Path, store_url: str | None, load: Load) -> Verdict:
    """Exports what is left and counts every acknowledged event."""
    export_now(root, store_url)
    acknowledged = [event_id for batch in load.acknowledged for event_id in batch.event_ids]
    log = read_log(root, EVENTS, ["event_id", "user_id", "timestamp_ms"])
    copies: Counter[str] = Counter()
    of_user: dict[str, set[tuple[int, int]]] = defaultdict(set)
    for event_id, user_id, timestamp_ms in _rows(log):
        if user_id.startswith("bench-"):
            copies[event_id] += 1
            of_user[user_id].add((timestamp_ms, hash64(event_id)))
    store = open_store(root, store_url)
    wrong = 0
    for user_id, events in of_user.items():
        history = store.lookup(user_id).history
        stored = list(zip(history.timestamp_ms_E.tolist(), history.event_hash_E.tolist(), strict=True))
        wrong += stored != sorted(events, reverse=True)[:DEFAULT_CAP]
    store.close()
    return Verdict(
        acknowledged=len(acknowledged),
        lost=sum(copies[event_id] == 0 for event_id in acknowledged),
        duplicated=sum(number > 1 for number in copies.values()),
        wrong_sequences=wrong,
        users=len(of_user),
    )


def _rows(table: Any) -> Iterator[tuple[str, str, int]]:
    yield from zip(*(column.to_pylist() for column in table.columns), strict=True)
