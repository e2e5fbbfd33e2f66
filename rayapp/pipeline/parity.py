"""`rayapp parity`: cuts the sequences of logged requests again and compares them with what the server had read.

Serving logs with each answer the hash of the encoded sequence and the store's watermark. Cut from the event log, by the
function that training uses, the bytes must be the same: otherwise models are trained on something else than they see.

Shapes: E events and R requests of a bucket.
"""

import dataclasses
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayapp.contracts.config import Domain, ModelConfig
from rayapp.contracts.hashing import hash64_column
from rayapp.contracts.json_values import from_json, to_json
from rayapp.contracts.schema import REQUEST_SCHEMA, columns_of
from rayapp.features.sequence import History, Sequences, at_request, point_in_time
from rayapp.pipeline.export import exported
from rayapp.pipeline.histories import EVENT_COLUMNS, UserHistories
from rayapp.pipeline.labels import between
from rayapp.pipeline.log_view import LogView
from rayapp.pipeline.statistics_parity import StatisticsParity
from rayapp.pipeline.tasks import Told, quiet, run_tasks
from rayapp.root.erasure import erased_rows
from rayapp.root.facts import read_root
from rayapp.root.places import EVENTS, MODELS
from rayapp.root.publish import PublishError, read_json

COLUMNS: Final = columns_of(
    REQUEST_SCHEMA, "request_id", "user_id", "timestamp_ms", "model_version", "watermark", "sequence_hash"
)
SHOWN: Final = 5
"""Mismatches that are looked into, per bucket and in the report."""
CUT_ROWS: Final = 5_000_000
"""Event rows that one call cuts from: a bucket's requests come in parts of that size."""


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A request whose sequence is not what the log says."""

    request_id: str
    timestamp_ms: int
    model_version: str
    length: int
    """Of the sequence as the log has it."""
    served: str
    """What the server must have read, where that can be found out."""


@dataclass(frozen=True, slots=True)
class Parity:
    """What the comparison found. `left_out` counts requests that can't be compared, by reason."""

    compared: int
    equal: int
    left_out: dict[str, int]
    mismatches: tuple[Mismatch, ...]

    @property
    def share(self) -> float | None:
        """Of compared requests that are equal; None where there are none."""
        return self.equal / self.compared if self.compared else None


def parity(root: Path, since_ms: int | None = None, until_ms: int | None = None, told: Told = quiet) -> Parity:
    """Compares the requests of `[since, until)`, bucket by bucket.

    Raises:
        PublishError: a log can't be read.
    """
    domain, num_buckets = read_root(root)
    view = LogView.of(root)
    lengths = _history_lengths(root)

    def task(bucket: int) -> dict[str, Any]:
        return _compare(view, bucket, (since_ms, until_ms), domain, lengths)

    results = run_tasks(num_buckets, task, told)
    left_out: Counter[str] = Counter()
    for result in results:
        left_out.update(result["left_out"])
    found = sorted((m for result in results for m in result["mismatches"]), key=lambda m: m["timestamp_ms"])
    return Parity(
        compared=sum(result["compared"] for result in results),
        equal=sum(result["equal"] for result in results),
        left_out=dict(left_out),
        mismatches=tuple(Mismatch(**m) for m in found[:SHOWN]),
    )


def _history_lengths(root: Path) -> dict[str, int]:
    """Version -> actions that its model reads; versions that are gone or damaged are missing."""
    lengths = {}
    for path in (root / MODELS).glob("[!.]*/config.json"):
        try:
            lengths[path.parent.name] = from_json(ModelConfig, read_json(path)).history_length
        except (PublishError, TypeError, ValueError):
            continue
    return lengths


def _compare(
    view: LogView,
    bucket: int,
    span_ms: tuple[int | None, int | None],
    domain: Domain,
    lengths: dict[str, int],
) -> dict[str, Any]:
    requests = dataclasses.replace(view, erased={}).requests(bucket, COLUMNS)  # those of erased users are counted apart
    requests = requests.filter(pa.array(between(requests, *span_ms)))
    left_out: Counter[str] = Counter()

    def without(table: pa.Table, reason: str, out_R: Any) -> pa.Table:
        out = pc.fill_null(pa.array(out_R) if isinstance(out_R, np.ndarray) else out_R, True)
        left_out[reason] += pc.sum(out).as_py() or 0
        return table.filter(pc.invert(out))

    requests = without(requests, "of erased users", erased_rows(requests, view.erased))
    unserved = pc.or_(pc.is_null(requests["watermark"]), pc.is_null(requests["sequence_hash"]))
    requests = without(requests, "without a sequence (imported, or answered without the ranker)", unserved)
    gone = pc.invert(pc.is_in(requests["model_version"], pa.array(lengths, pa.string())))
    requests = without(requests, "of models that are gone", gone)
    cursor = exported(view.manifests[EVENTS]).get(bucket, 0)
    requests = without(requests, "whose events are not exported yet", pc.greater(requests["watermark"], cursor))
    equal, mismatches = 0, list[Mismatch]()
    if requests.num_rows:
        users = UserHistories.of(view.events(bucket, EVENT_COLUMNS), domain)
        for version in pc.unique(requests["model_version"]).to_pylist():
            some = requests.filter(pc.equal(requests["model_version"], version))
            matches, found = _compare_model(users, some, version, lengths[version], domain)
            equal += matches
            mismatches += found
    return {
        "compared": requests.num_rows,
        "equal": equal,
        "left_out": {reason: number for reason, number in left_out.items() if number},
        "mismatches": [to_json(m) for m in mismatches[:SHOWN]],
    }


def _compare_model(
    users: UserHistories, requests: pa.Table, version: str, length: int, domain: Domain
) -> tuple[int, list[Mismatch]]:
    timestamp_ms_R = requests["timestamp_ms"].to_numpy()
    watermark_R = requests["watermark"].to_numpy()
    start_R, end_R = users.ranges(hash64_column(requests["user_id"]), timestamp_ms_R)
    served_R = requests["sequence_hash"].to_numpy()
    part_R = np.cumsum(end_R - start_R) // CUT_ROWS

    def cut(rows: Any, history: History = users.history) -> Sequences:
        return point_in_time(
            history,
            start_R[rows],
            end_R[rows],
            timestamp_ms_R=timestamp_ms_R[rows],
            watermark_R=watermark_R[rows],
            mask_ms_R=np.zeros(len(rows), np.int64),
            length=length,
            vocabulary=domain.vocabulary,
        )

    equal, mismatches = 0, list[Mismatch]()
    for part in np.unique(part_R):
        rows = np.flatnonzero(part_R == part)
        sequences = cut(rows)
        for n, r in enumerate(rows.tolist()):
            if sequences.hash_of(n) == int(served_R[r]):
                equal += 1
            elif len(mismatches) < SHOWN:
                history = users.history.take(slice(start_R[r], end_R[r]))
                mismatches.append(
                    Mismatch(
                        request_id=requests["request_id"][r].as_py(),
                        timestamp_ms=int(timestamp_ms_R[r]),
                        model_version=version,
                        length=int(sequences.length_R[n]),
                        served=_explain(
                            history, int(timestamp_ms_R[r]), int(watermark_R[r]), length, domain, int(served_R[r])
                        ),
                    )
                )
    return equal, mismatches


def _explain(history: History, timestamp_ms: int, watermark: int, length: int, domain: Domain, served: int) -> str:
    """Which other reading gives the hash that was served: of nothing, without imported events, or an older one."""

    def is_it(some: History) -> bool:
        sequences = at_request(
            some, timestamp_ms=timestamp_ms, watermark=watermark, length=length, vocabulary=domain.vocabulary
        )
        return sequences.hash_of(0) == served

    if is_it(History.empty()):
        return "no events at all"
    live_E = history.commit_seq_E > 0
    if not live_E.all() and is_it(history.take(live_E)):
        return "no imported events (run `rayapp store rebuild`)"
    for seq in np.unique(history.commit_seq_E[live_E])[::-1][:length].tolist():
        if is_it(history.take(history.commit_seq_E < seq)):
            return f"the events before commit_seq {seq}, at a watermark of {watermark}"
        if is_it(history.take(history.commit_seq_E != seq)):
            return f"all but the event with commit_seq {seq}"
    return "unknown: no earlier state of the log gives these bytes"


def as_json(found: Parity, statistics: StatisticsParity) -> str:
    """One line, for a job that watches it."""
    numbers = {"share": statistics.share, **to_json(statistics)}
    return json.dumps({"share": found.share, **to_json(found), "statistics": numbers})
