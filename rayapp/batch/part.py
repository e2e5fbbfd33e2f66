"""One part of a job, from its rows to its finished file: what an actor of the pool does, without Ray.

A part's file and then its record appear by a rename each, so whatever is killed leaves a part finished or untouched.

Shapes: R requests, N candidates of all of them, L history rows, H heads.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from rayapp.batch.as_of import BatchModel, Models, as_stored, settled_mix
from rayapp.batch.grouped_rows import GroupedRows, group_logged, group_rows
from rayapp.batch.input_files import staged_rows
from rayapp.batch.job import InputKind, Workspace
from rayapp.batch.output import PartFile, ScoredRows
from rayapp.batch.scoring import probabilities
from rayapp.contracts.hashing import hash64_column
from rayapp.features.attributes import ABSENT
from rayapp.features.requests import Requests, offsets
from rayapp.features.seen import Seen
from rayapp.features.segments import CORE_ACTIONS
from rayapp.features.sequence import Ints, point_in_time
from rayapp.pipeline.histories import EVENT_COLUMNS, UserHistories
from rayapp.retrieval.candidates import Candidates, Query, fetch
from rayapp.root.facts import read_root
from rayapp.root.logs import log_schema
from rayapp.root.places import MODELS, REQUESTS
from rayapp.root.publish import read_json, write_json
from rayapp.statistics.known import load_base

CHUNK_ITEMS: Final = 20_000
CHUNK_EVENTS: Final = 1_000_000
"""A part is scored in pieces of about these sizes: they bound what an actor holds beside a bucket's histories."""


class PartScorer:
    """Scores the parts of one job, whichever it is asked for. Keeps the last bucket's histories: parts of one bucket
    follow one another."""

    def __init__(self, work: Workspace, device: torch.device) -> None:
        self._work = work
        self._domain, self._num_buckets = read_root(work.root)
        self._staged: dict[str, Any] = read_json(work.directory / "staged.json")
        self._view = work.log_view()
        catalogue = pq.read_table(work.directory / "catalogue.parquet", partitioning=None)
        self._statistics = load_base(work.root, work.state.statistics, self._domain).statistics
        self._models = Models(work.root, self._domain, catalogue, self._statistics, device)
        self._bucket: tuple[int, UserHistories] | None = None

    def score(self, part: int) -> dict[str, Any]:
        """Writes the part and returns its record, which is kept beside the result.

        Raises:
            PublishError: something of the root can't be read.
            OSError: the disk is full.
        """
        started = time.monotonic()
        bucket = part % self._num_buckets
        path = Path("scores") / f"bucket={bucket:04d}" / f"part-{part // self._num_buckets:04d}.parquet"
        target = self._work.result / path
        target.parent.mkdir(parents=True, exist_ok=True)
        duplicates = skipped = 0
        with PartFile(target, self._domain, self._work.job.top_k) as file:
            for grouped, version, without_model in self._requests(part, bucket):
                duplicates += grouped.duplicates
                skipped += without_model
                for piece in self._pieces(grouped, version, bucket):
                    file.add(piece)
        record = file.record() | {
            "path": str(path) if file.counts["rows"] else None,
            "duplicates": duplicates,
            "skipped": skipped,
            "seconds": time.monotonic() - started,
        }
        write_json(self._work.record_path(part), record)
        return record

    def _requests(self, part: int, bucket: int) -> Iterator[tuple[GroupedRows, str, int]]:
        """Requests of the part, those of one model together, and how many there is no model to score with."""
        job = self._work.job
        if job.kind is not InputKind.REQUESTS:
            rows = staged_rows(self._work.staging, self._staged, part)
            if rows is not None:
                assert job.model_version is not None
                yield group_rows(rows, self._domain, job.as_of_ms), job.model_version, 0
            return
        logged = self._logged(part, bucket)
        if job.model_version is not None:
            yield group_logged(logged, self._domain), job.model_version, 0
            return
        served = logged["model_version"].fill_null("")
        for version in pc.unique(served).to_pylist():
            some = logged.filter(pc.equal(served, version))
            there = bool(version) and (self._work.root / MODELS / version).is_dir()
            yield (
                group_logged(some if there else some.slice(0, 0), self._domain),
                version,
                0 if there else some.num_rows,
            )

    def _logged(self, part: int, bucket: int) -> pa.Table:
        job = self._work.job
        requests = self._view.requests(bucket, log_schema(REQUESTS, self._domain))
        time_R = requests["timestamp_ms"].to_numpy()
        mine = hash64_column(requests["user_id"]) % np.uint64(self._staged["partitions"]) == part
        first, last = job.since_ms or 0, job.until_ms or (1 << 62)
        return requests.filter(pa.array(mine & (time_R >= first) & (time_R < last)))

    def _histories(self, bucket: int) -> UserHistories:
        if self._bucket is None or self._bucket[0] != bucket:
            self._bucket = None  # not two buckets at a time
            self._bucket = (bucket, UserHistories.of(self._view.events(bucket, EVENT_COLUMNS), self._domain))
        return self._bucket[1]

    def _pieces(self, grouped: GroupedRows, version: str, bucket: int) -> Iterator[ScoredRows]:
        if not len(grouped):
            return
        model, histories = self._models.get(version), self._histories(bucket)
        start_R, end_R = histories.ranges(grouped.user_hash_R, grouped.timestamp_ms_R)
        fetched = self._work.job.num_candidates
        size_R = np.diff(grouped.offset_R) if grouped.has_items else np.full(len(grouped), fetched)
        for piece in cuts(size_R, end_R - start_R):
            yield self._score(grouped.cut(piece), model, histories, start_R[piece], end_R[piece])

    def _score(
        self, grouped: GroupedRows, model: BatchModel, histories: UserHistories, start_R: Ints, end_R: Ints
    ) -> ScoredRows:
        known = point_in_time(
            histories.history,
            start_R,
            end_R,
            timestamp_ms_R=grouped.timestamp_ms_R,
            watermark_R=grouped.watermark_R,
            mask_ms_R=np.zeros(len(grouped), np.int64),
            length=max(model.scorer.history_length, CORE_ACTIONS),
            vocabulary=self._domain.vocabulary,
        )
        if fetched := not grouped.has_items:
            grouped = self._with_candidates(grouped, model, histories, start_R, end_R)
        item_hash_N = hash64_column(grouped.rows["item_id"])
        step_R = model.statistics.grid.step(grouped.statistics_at_ms_R)
        sequences = known.of_length(model.scorer.history_length)
        requests = Requests(
            grouped.user_hash_R,
            grouped.timestamp_ms_R,
            grouped.context,
            sequences,
            grouped.offset_R,
            item_hash_N,
            model.statistics.users(grouped.user_hash_R, step_R),
            model.statistics.items(item_hash_N, step_R[grouped.request_of_row()]),
        )
        probability_NH = probabilities(model.scorer, requests, len(self._domain.heads))
        table = model.scorer.inputs.table
        row_N = table.rows_of(item_hash_N)
        known_item_N = (row_N != ABSENT) & ~table.blank(row_N)
        values: dict[str, list[tuple[str, ...]]] = {}
        if fetched:
            items = [table.item(row) for row in row_N.tolist()]
            values = {name: [tuple(item.get(name) or ()) for item in items] for name in self._domain.caps}
        return ScoredRows(grouped, model.version, probability_NH, known_item_N, sequences, known.length_R, values)

    def _with_candidates(
        self, grouped: GroupedRows, model: BatchModel, histories: UserHistories, start_R: Ints, end_R: Ints
    ) -> GroupedRows:
        """As the live graph would have fetched them; items that appeared only later are left out."""
        job, vocabulary, seen = self._work.job, self._domain.vocabulary, Seen.of(self._domain)
        step_R = model.statistics.grid.step(grouped.statistics_at_ms_R)
        found: dict[int, Candidates] = {}
        for r in np.argsort(step_R, kind="stable").tolist():  # items are ordered once for all requests of a step
            time_ms = int(grouped.timestamp_ms_R[r])
            events = histories.history.take(slice(start_R[r], end_R[r]))
            history = as_stored(events, time_ms, int(grouped.watermark_R[r]), vocabulary)
            query = Query(job.num_candidates, time_ms, settled_mix(self._domain.mix), fewest=job.top_k or 1)
            found[r] = fetch(model.index_at(int(step_R[r])), history, vocabulary, query, seen=seen)
        in_order = [found[r] for r in range(len(grouped))]
        item_ids = [item_id for one in in_order for item_id in one.item_ids]
        sources = [source for one in in_order for source in one.sources]
        return grouped.with_items(item_ids, sources, offsets(np.array([len(one.item_ids) for one in in_order])))


def cuts(size_R: Ints, events_R: Ints) -> Iterator[slice]:
    """Neighbouring requests, as many as hold about CHUNK_ITEMS candidates and CHUNK_EVENTS events."""
    load_R = np.cumsum(size_R / CHUNK_ITEMS + events_R / CHUNK_EVENTS)
    first = 0
    while first < len(size_R):
        done = load_R[first - 1] if first else 0.0
        last = max(int(np.searchsorted(load_R, done + 1.0, side="right")), first + 1)
        yield slice(first, last)
        first = last
