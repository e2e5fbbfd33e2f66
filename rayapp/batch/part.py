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
from numpy.typing import NDArray

from rayapp.batch.as_of import BatchModel, Models, PastRates
from rayapp.batch.asked import Asked, asked_in, asked_of
from rayapp.batch.histories import BucketHistories, read_histories
from rayapp.batch.input_files import staged_rows
from rayapp.batch.job import Kind, Workspace
from rayapp.batch.output import PartFile, Scored
from rayapp.batch.scoring import Questions, probabilities, take_sequences
from rayapp.contracts.hashing import hash64_column
from rayapp.features.attributes import ABSENT
from rayapp.features.segments import CORE_ACTIONS
from rayapp.features.sequence import point_in_time
from rayapp.pipeline.log_view import LogView
from rayapp.root.facts import read_root
from rayapp.root.logs import log_schema
from rayapp.root.places import EVENTS, MODELS, REQUESTS
from rayapp.root.publish import read_json, write_json

Ints = NDArray[np.int64]
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
        self._view = LogView.of(work.root, numbers={EVENTS: work.state.events, REQUESTS: work.state.requests})
        catalogue = pq.read_table(work.directory / "catalogue.parquet", partitioning=None)
        self._models = Models(work.root, self._domain, catalogue, device)
        self._rates = PastRates(work.root, self._domain, work.state.rates)
        self._bucket: tuple[int, BucketHistories] | None = None

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
            for asked, version, without_model in self._asked(part, bucket):
                duplicates += asked.duplicates
                skipped += without_model
                for piece in self._pieces(asked, version, bucket):
                    file.add(piece)
        record = file.record() | {
            "path": str(path) if file.counts["rows"] else None,
            "duplicates": duplicates,
            "skipped": skipped,
            "seconds": time.monotonic() - started,
        }
        write_json(self._work.record_path(part), record)
        return record

    def _asked(self, part: int, bucket: int) -> Iterator[tuple[Asked, str, int]]:
        """Requests of the part, those of one model together, and how many there is no model to score with."""
        job = self._work.job
        if job.kind is not Kind.REQUESTS:
            rows = staged_rows(self._work.staging, self._staged, part)
            if rows is not None:
                assert job.model_version is not None
                yield asked_of(rows, self._domain, job.as_of_ms), job.model_version, 0
            return
        requests = self._requests(part, bucket)
        if job.model_version is not None:
            yield asked_in(requests, self._domain), job.model_version, 0
            return
        served = requests["model_version"].fill_null("")
        for version in pc.unique(served).to_pylist():
            some = requests.filter(pc.equal(served, version))
            there = bool(version) and (self._work.root / MODELS / version).is_dir()
            yield asked_in(some if there else some.slice(0, 0), self._domain), version, 0 if there else some.num_rows

    def _requests(self, part: int, bucket: int) -> pa.Table:
        job = self._work.job
        requests = self._view.requests(bucket, log_schema(REQUESTS, self._domain))
        time_R = requests["timestamp_ms"].to_numpy()
        mine = hash64_column(requests["user_id"]) % np.uint64(self._staged["partitions"]) == part
        first, last = job.since_ms or 0, job.until_ms or (1 << 62)
        return requests.filter(pa.array(mine & (time_R >= first) & (time_R < last)))

    def _histories(self, bucket: int) -> BucketHistories:
        if self._bucket is None or self._bucket[0] != bucket:
            self._bucket = None  # not two buckets at a time
            read = read_histories(self._view, bucket, self._domain)
            self._bucket = (bucket, read)
        return self._bucket[1]

    def _pieces(self, asked: Asked, version: str, bucket: int) -> Iterator[Scored]:
        if not len(asked):
            return
        model, histories = self._models.get(version), self._histories(bucket)
        start_R, end_R = histories.ranges(asked.user_hash_R, asked.timestamp_ms_R)
        size_R = np.diff(asked.offset_R) if asked.has_items else np.full(len(asked), self._work.job.num_candidates)
        for piece in cuts(size_R, end_R - start_R):
            yield self._score(asked.part(piece), model, histories, bucket, start_R[piece], end_R[piece])

    def _score(
        self, asked: Asked, model: BatchModel, histories: BucketHistories, bucket: int, start_R: Ints, end_R: Ints
    ) -> Scored:
        known = point_in_time(
            histories.history,
            start_R,
            end_R,
            timestamp_ms_R=asked.timestamp_ms_R,
            watermark_R=asked.watermark_R,
            mask_ms_R=np.zeros(len(asked), np.int64),
            length=max(model.scorer.history_length, CORE_ACTIONS),
            vocabulary=self._domain.vocabulary,
        )
        if not asked.has_items:
            asked = self._with_candidates(asked, model, histories, start_R, end_R)
        request_N = np.repeat(np.arange(len(asked)), np.diff(asked.offset_R))
        item_hash_N = hash64_column(asked.rows["item_id"])
        day_R = self._rates.days_of(asked.rate_snapshot_R, asked.timestamp_ms_R)
        user_rate_RK, item_rate_NK = self._rates.features(bucket, day_R, asked.user_hash_R, item_hash_N, request_N)
        sequences = take_sequences(known, np.arange(len(asked)), model.scorer.history_length)
        questions = Questions(
            asked.user_hash_R,
            asked.timestamp_ms_R,
            asked.context,
            sequences,
            asked.offset_R,
            item_hash_N,
            user_rate_RK,
            item_rate_NK,
        )
        probability_NH = probabilities(model.scorer, questions, len(self._domain.heads))
        known_item_N = model.scorer.inputs.table.rows_of(item_hash_N) != ABSENT
        return Scored(asked, model.version, day_R, probability_NH, known_item_N, sequences, known.length_R)

    def _with_candidates(
        self, asked: Asked, model: BatchModel, histories: BucketHistories, start_R: Ints, end_R: Ints
    ) -> Asked:
        item_ids: list[str] = []
        sources: list[str] = []
        ends = [0]
        for start, end, time_ms, watermark in zip(
            start_R.tolist(), end_R.tolist(), asked.timestamp_ms_R.tolist(), asked.watermark_R.tolist(), strict=True
        ):
            vocabulary = self._domain.vocabulary
            history = histories.as_stored(start, end, time_ms, watermark, vocabulary)
            job = self._work.job
            found = model.candidates(history, vocabulary, job.num_candidates, time_ms, job.top_k or 1)
            item_ids += found[0]
            sources += found[1]
            ends.append(len(item_ids))
        return asked.with_items(item_ids, sources, np.array(ends))


def cuts(size_R: Ints, events_R: Ints) -> Iterator[slice]:
    """Neighbouring requests, as many as hold about CHUNK_ITEMS candidates and CHUNK_EVENTS events."""
    load_R = np.cumsum(size_R / CHUNK_ITEMS + events_R / CHUNK_EVENTS)
    first = 0
    while first < len(size_R):
        done = load_R[first - 1] if first else 0.0
        last = max(int(np.searchsorted(load_R, done + 1.0, side="right")), first + 1)
        yield slice(first, last)
        first = last
