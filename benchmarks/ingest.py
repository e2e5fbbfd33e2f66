"""Bench `ingest`: durable events a second over HTTP while feeds are read; how soon feeds and statistics know them."""

import itertools
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final, cast

from benchmarks.live import GraphProcess, items_of, make_root
from benchmarks.load import Acknowledged, Load, Poster, verify
from rayapp.record import Bars, say, tell
from rayapp.root.facts import read_root
from rayapp.serving.background import POLL_S
from rayapp.serving.rows_since import RowsSince
from rayapp.statistics.known import Base
from rayapp.store import OutboxKind, Store, Tail
from rayapp.store.opening import open_store

BATCH, USERS = 100, 20_000
FEEDS_PER_S: Final = 5.0
WARM_UP_S: Final = 5.0
GIVE_UP_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Seen:
    """One feed that showed an event."""

    acknowledged_to_answer_s: float
    posted_to_answer_s: float
    feed_s: float
    looks: int
    """Feeds asked until one showed it."""


@dataclass(slots=True)
class Reader:
    """Reads feeds at a steady rate, each of a user whose event was just acknowledged, and waits until it is shown."""

    port: int
    load: Load
    seen: list[Seen] = field(default_factory=list)
    missed: int = 0
    """Events that no feed showed in time."""
    degraded: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self, offset_s: float, period_s: float) -> None:
        poster, due = Poster(self.port), time.monotonic() + offset_s
        for number in itertools.count():
            if self._stop.wait(due - time.monotonic()):
                break
            due += period_s
            if self.load.acknowledged:
                batch = self.load.acknowledged[-1]
                self._read(poster, batch, batch.user_ids[number % len(batch.user_ids)])
        poster.close()

    def _read(self, poster: Poster, batch: Acknowledged, user_id: str) -> None:
        looks = 0
        while time.monotonic() - batch.answered < GIVE_UP_S:
            looks, asked = looks + 1, time.monotonic()
            answer = poster.post("/v1/recommendations", {"user_id": user_id, "num_results": 20})
            now = time.monotonic()
            if answer is None:
                continue
            self.degraded += bool(answer["degraded"])
            last = answer["sequence"]["last_event_at"]
            if last is not None and datetime.fromisoformat(last).timestamp() * 1000 >= batch.timestamp_ms - 0.5:
                self.seen.append(Seen(now - batch.answered, now - batch.posted, now - asked, looks))
                return
        self.missed += 1

    def stop(self) -> None:
        self._stop.set()


class Noted:
    """A store that notes when the events were posted that a reader of its outbox sees."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.posted_ms: list[int] = []

    def read(self, after: Sequence[int], limit: int) -> list[Tail]:
        tails = self._store.read(after, limit)
        rows = [row for tail in tails for row in tail.rows if row.kind is OutboxKind.EVENT]
        self.posted_ms += [row.value["timestamp_ms"] for row in rows]
        return tails

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


class Follower:
    """Reads the rows that statistics count, as a ranker does, in a process beside the graph's."""

    def __init__(self, root: Path, store_url: str | None) -> None:
        self._root, self._store_url, self._stop = root, store_url, threading.Event()
        self.delay_s: list[float] = []
        """From posted to known, of each event since the first look."""

    def run(self) -> None:
        store = Noted(open_store(self._root, self._store_url))
        domain, _ = read_root(self._root)
        since = RowsSince(self._root, domain, cast(Store, store), Base.nothing(domain))
        for look in itertools.count():
            while since.read():
                pass
            known_ms = time.time_ns() / 1_000_000
            if look:
                self.delay_s += [(known_ms - posted_ms) / 1000 for posted_ms in store.posted_ms]
            store.posted_ms.clear()
            if self._stop.wait(POLL_S):
                break
        store.close()

    def stop(self) -> None:
        self._stop.set()


def run_ingest(
    seconds: float, rate: float, clients: int, store_url: str | None, as_json: bool, write: Path | None
) -> bool:
    """Whether nothing was lost or repeated."""
    with tempfile.TemporaryDirectory(prefix="rayapp-ingest-") as directory:
        say("training a small model")
        root = make_root(Path(directory) / "root")
        result = measure(root, store_url, seconds, rate, clients)
    series = {
        "batch posted to acknowledged": [result["ack_p50_ms"], result["ack_p99_ms"]],
        "acknowledged to shown in a feed": [result["freshness_p50_ms"], result["freshness_p99_ms"]],
    }
    bars = Bars("milliseconds", ["p50", "p99"], series)
    tell(result, _table(result), "Events in, feeds out", bars, as_json=as_json, write=write)
    return not (result["lost"] or result["duplicated"] or result["wrong_sequences"] or result["missed"])


def measure(root: Path, store_url: str | None, seconds: float, rate: float, clients: int) -> dict[str, Any]:
    graph = GraphProcess(root, store_url)
    graph.start()
    try:
        with Load(graph.port, clients, BATCH, USERS, items_of(root), rate) as load:
            time.sleep(WARM_UP_S)
            first, started = len(load.acknowledged), time.monotonic()
            reader = Reader(graph.port, load)
            # Two in turn: a slow feed must not thin out the ones behind it.
            threads = [threading.Thread(target=reader.run, args=(n / FEEDS_PER_S, 2 / FEEDS_PER_S)) for n in range(2)]
            follower = Follower(root, store_url)
            threads.append(threading.Thread(target=follower.run))
            for thread in threads:
                thread.start()
            time.sleep(seconds)
            measured, passed = load.acknowledged[first:], time.monotonic() - started
            reader.stop()
            follower.stop()
            for thread in threads:
                thread.join()
    finally:
        graph.kill()
    verdict = verify(root, store_url, load)
    ack_s = [batch.answered - batch.posted for batch in measured]
    return {
        "bench": "ingest",
        "store": store_url.partition(":")[0] if store_url else "lmdb",
        "seconds": passed,
        "offered_per_s": rate,
        "clients": clients,
        "events_per_s": len(measured) * BATCH / passed,
        "ack_p50_ms": _percentile(ack_s, 50),
        "ack_p99_ms": _percentile(ack_s, 99),
        "feeds": len(reader.seen),
        "feeds_per_s": len(reader.seen) / passed,
        "feed_p50_ms": _percentile([s.feed_s for s in reader.seen], 50),
        "freshness_p50_ms": _percentile([s.acknowledged_to_answer_s for s in reader.seen], 50),
        "freshness_p99_ms": _percentile([s.acknowledged_to_answer_s for s in reader.seen], 99),
        "post_to_feed_p50_ms": _percentile([s.posted_to_answer_s for s in reader.seen], 50),
        "first_look_shows": sum(s.looks == 1 for s in reader.seen) / max(len(reader.seen), 1),
        "statistics_events": len(follower.delay_s),
        "statistics_p50_ms": _percentile(follower.delay_s, 50),
        "statistics_p99_ms": _percentile(follower.delay_s, 99),
        "missed": reader.missed,
        "degraded": reader.degraded,
        "batches_sent_again": sum(batch.tries > 1 for batch in load.acknowledged),
        "acknowledged": verdict.acknowledged,
        "lost": verdict.lost,
        "duplicated": verdict.duplicated,
        "wrong_sequences": verdict.wrong_sequences,
    }


def _percentile(seconds: Sequence[float], percent: int) -> float:
    """In milliseconds."""
    if len(seconds) < 2:
        return 1000 * sum(seconds)
    return 1000 * statistics.quantiles(seconds, n=100, method="inclusive")[percent - 1]


def _table(r: dict[str, Any]) -> str:
    rows = [
        ("durable events per second", f"{r['events_per_s']:,.0f} (offered {r['offered_per_s']:,.0f})", "≥ 3,000"),
        ("batch posted → acknowledged, p50 / p99", f"{r['ack_p50_ms']:.0f} / {r['ack_p99_ms']:.0f} ms", "–"),
        ("acknowledged → in a feed's answer, p50", f"{r['freshness_p50_ms']:.0f} ms", "≤ 100"),
        ("acknowledged → in a feed's answer, p99", f"{r['freshness_p99_ms']:.0f} ms", "≤ 1,000"),
        ("posted → in a feed's answer, p50", f"{r['post_to_feed_p50_ms']:.0f} ms", "–"),
        ("posted → known where statistics are counted, p50", f"{r['statistics_p50_ms']:.0f} ms", "–"),
        ("posted → known where statistics are counted, p99", f"{r['statistics_p99_ms']:.0f} ms", "≤ 2,000"),
        ("the first feed asked shows it", f"{r['first_look_shows']:.1%} of {r['feeds']}", "–"),
        ("feed, p50", f"{r['feed_p50_ms']:.0f} ms, {r['degraded']} degraded", "–"),
        ("acknowledged events that are lost", f"{r['lost']} of {r['acknowledged']:,}", "0"),
        ("events twice in the log", f"{r['duplicated']}", "0"),
        ("users whose stored sequence is not the log's", f"{r['wrong_sequences']}", "0"),
    ]
    lines = ["| | measured | wanted |", "|---|---:|---:|", *(f"| {a} | {b} | {c} |" for a, b, c in rows), ""]
    lines.append(
        f"{r['clients']} connections post batches of {BATCH} events of as many of {USERS:,} users (Zipf) over HTTP "
        f"to a graph over {r['store']}; {FEEDS_PER_S:g} feeds per second are read beside them, each of a user whose "
        f"event was just acknowledged, and the bench follows the outbox every {POLL_S:g} s as a ranker does for its "
        f"statistics. {r['seconds']:.0f} s after {WARM_UP_S:g} s of warm-up; clients and graph share "
        "the machine. Then the log is exported and every acknowledged event is counted."
    )
    return "\n".join(lines)
