"""The bucket reader: batches of requests from windows, in an order fixed by (seed, epoch), sequences cut on the way.

Batch k is a function of (seed, epoch, k) and a rank takes every world-th request of it, so any number of workers
sees the same batches, each takes as many steps as the others, and a resumed run goes on where it stopped: its place is
(epoch, k).

Shapes: R requests of a bucket, B of a batch, N candidates of all of either, L history rows (newest first), H heads,
E history rows of a bucket.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rayapp.contracts.config import Domain
from rayapp.contracts.hashing import hash64_column
from rayapp.features.requests import Requests, offsets
from rayapp.features.sequence import NO_WATERMARK, History, Sequences, point_in_time
from rayapp.features.statistic_columns import Columns
from rayapp.pipeline.histories import HISTORY_COLUMNS, history_of
from rayapp.root.places import WINDOWS
from rayapp.root.publish import PublishError, read_manifest
from rayapp.statistics.known import Statistics

MASK, NEGATIVES = 0, 1
"""What a random number is for: draws for different purposes are independent."""
GROUP_REQUESTS = 200_000
"""Requests shuffled together: as many whole buckets as it takes to reach this."""


@dataclass(frozen=True, slots=True)
class RequestBatch:
    """Some requests of a window, and what happened after them."""

    request_id_B: NDArray[np.object_]
    requests: Requests
    label_NH: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.request_id_B)


@dataclass(frozen=True, slots=True)
class _Bucket:
    """One bucket, or several laid end to end, in memory."""

    history: History
    request_id_R: NDArray[np.object_]
    request_hash_R: NDArray[np.uint64]
    requests: Requests
    """Their sequences are not cut yet."""
    watermark_R: NDArray[np.int64]
    start_R: NDArray[np.int64]
    end_R: NDArray[np.int64]
    label_NH: NDArray[np.float32]

    @staticmethod
    def concatenate(buckets: "list[_Bucket]") -> "_Bucket":
        if len(buckets) == 1:
            return buckets[0]
        first_row = offsets(np.array([len(b.history) for b in buckets]))
        return _Bucket(
            History.concatenate([b.history for b in buckets]),
            np.concatenate([b.request_id_R for b in buckets]),
            np.concatenate([b.request_hash_R for b in buckets]),
            Requests.concatenate([b.requests for b in buckets]),
            np.concatenate([b.watermark_R for b in buckets]),
            np.concatenate([b.start_R + row for b, row in zip(buckets, first_row, strict=False)]),
            np.concatenate([b.end_R + row for b, row in zip(buckets, first_row, strict=False)]),
            np.concatenate([b.label_NH for b in buckets]),
        )


class WindowReader:
    """Reads the named windows of a root for one domain and one history length."""

    def __init__(
        self,
        root: Path,
        windows: Sequence[str],
        domain: Domain,
        history_length: int,
        *,
        negative_rate: float = 1.0,
        statistics: Statistics | None = None,
        time_mask_ms: int | None = None,
    ) -> None:
        """`statistics`: what was known of users and items at each request comes with its batch; without, zeros.
        `time_mask_ms` takes the place of the domain's.

        `negative_rate`: the share of shown items without any label that training batches keep. Whoever reads
        probabilities off a model so trained must know it: it is part of the model's training settings.
        """
        if not 0 < negative_rate <= 1:
            raise ValueError(f"negative_rate must be above 0 and at most 1, not {negative_rate}")
        self.domain = domain
        self._statistics, self._widths = statistics, Columns.of(domain).widths
        self._mask_ms = domain.time_mask_ms if time_mask_ms is None else time_mask_ms
        self.history_length = history_length
        self.negative_rate = negative_rate
        self._buckets: list[tuple[Path, int, int]] = []
        for name in windows:
            directory = root / WINDOWS / name
            manifest = read_manifest(directory)
            if manifest["history_length"] < history_length:
                raise PublishError(
                    f"window {name} keeps {manifest['history_length']} actions a user; the model asks for "
                    f"{history_length}. Build the window again with a longer history."
                )
            if manifest["heads"] != list(domain.head_names):
                raise PublishError(
                    f"window {name} has labels for {manifest['heads']}, the domain for "
                    f"{list(domain.head_names)}. Build the window again."
                )
            self._buckets += [(directory, b["bucket"], b["requests"]) for b in manifest["buckets"] if b["requests"]]

    @property
    def num_requests(self) -> int:
        return sum(requests for _, _, requests in self._buckets)

    def num_batches(self, batch_requests: int, *, seed: int, epoch: int) -> int:
        """Batches in an epoch, from the manifests alone."""
        groups = self._groups(seed, epoch)
        return sum(-(-sum(r for _, _, r in group) // batch_requests) for group in groups)

    def batches(
        self, batch_requests: int, *, seed: int, epoch: int, first: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[RequestBatch]:
        """Shuffled training batches from the `first`-th on; this rank's share of each.

        Raises:
            PublishError: there are fewer requests than workers.
        """
        k = 0
        for number, group in enumerate(self._groups(seed, epoch)):
            size = sum(requests for _, _, requests in group)
            count = -(-size // batch_requests)
            if k + count <= first:
                k += count
                continue
            bucket = _Bucket.concatenate([self._load(*b[:2]) for b in group])
            order = np.random.default_rng([seed, epoch, number]).permutation(size)
            if size < world:
                raise PublishError(
                    f"{size} requests are too few for {world} workers; take fewer workers or a longer window"
                )
            # Parts of nearly one size, so that no batch is too small to give every rank a request.
            for rows in np.array_split(order, count):
                if k >= first:
                    yield self._collate(bucket, rows[rank::world], seed, epoch, training=True)
                k += 1

    def in_order(self, batch_requests: int) -> Iterator[RequestBatch]:
        """Every request once, unmasked, for evaluation."""
        for directory, number, size in self._buckets:
            bucket = self._load(directory, number)
            for at in range(0, size, batch_requests):
                rows = np.arange(at, min(at + batch_requests, size))
                yield self._collate(bucket, rows, 0, 0, training=False)

    def _groups(self, seed: int, epoch: int) -> list[list[tuple[Path, int, int]]]:
        order = np.random.default_rng([seed, epoch]).permutation(len(self._buckets))
        groups: list[list[tuple[Path, int, int]]] = [[]]
        size = 0
        for i in order:
            if size >= GROUP_REQUESTS:
                groups.append([])
                size = 0
            groups[-1].append(self._buckets[i])
            size += self._buckets[i][2]
        return groups

    def _load(self, directory: Path, bucket: int) -> _Bucket:
        file = f"bucket={bucket:04d}.parquet"
        flat = _flat_history(pq.read_table(directory / "histories" / file, partitioning=None))
        history = history_of(flat, self.domain)
        requests = pq.read_table(directory / "requests" / file, partitioning=None)
        items = requests["item_ids"].combine_chunks()
        labels = pc.list_flatten(requests["labels"]).to_numpy()
        offset_R = items.offsets.to_numpy().astype(np.int64)
        offset_R -= offset_R[0]
        user_hash_R = hash64_column(requests["user_id"])
        candidate_hash_N = hash64_column(pc.list_flatten(items))
        time_R = requests["timestamp_ms"].to_numpy()
        return _Bucket(
            history,
            requests["request_id"].to_numpy(zero_copy_only=False),
            hash64_column(requests["request_id"]),
            Requests(
                user_hash_R,
                time_R,
                requests.select(["timestamp_ms", *(a.name for a in self.domain.context_attributes)]),
                Sequences.not_cut(requests.num_rows),
                offset_R,
                candidate_hash_N,
                np.zeros((requests.num_rows, 0), np.float32),
                np.zeros((len(candidate_hash_N), 0), np.float32),
            ),
            pc.fill_null(requests["watermark"], NO_WATERMARK).to_numpy(),
            requests["start"].to_numpy(),
            requests["end"].to_numpy(),
            labels.reshape(-1, len(self.domain.heads)),
        )

    def _collate(
        self, bucket: _Bucket, rows: NDArray[np.int64], seed: int, epoch: int, *, training: bool
    ) -> RequestBatch:
        mask_ms = np.zeros(len(rows), np.int64)
        if training and self._mask_ms:
            mask_ms = (_uniform(bucket.request_hash_R[rows], seed, epoch, MASK) * self._mask_ms).astype(np.int64)
        sequences = point_in_time(
            bucket.history,
            bucket.start_R[rows],
            bucket.end_R[rows],
            timestamp_ms_R=bucket.requests.timestamp_ms_R[rows],
            watermark_R=bucket.watermark_R[rows],
            mask_ms_R=mask_ms,
            length=self.history_length,
            vocabulary=self.domain.vocabulary,
        )
        requests = dataclasses.replace(bucket.requests.take(rows), sequences=sequences)
        label_NH = bucket.label_NH[bucket.requests.places(rows)]
        if training and self.negative_rate < 1:
            with np.errstate(over="ignore"):
                key_N = np.repeat(bucket.request_hash_R[rows], requests.sizes) + requests.candidate_hash_N
            keep_N = label_NH.any(axis=1) | (_uniform(key_N, seed, epoch, NEGATIVES) < self.negative_rate)
            requests, label_NH = requests.with_candidates(keep_N), label_NH[keep_N]
        if self._statistics is None:
            requests = requests.without_statistics(*self._widths)
        else:
            requests = self._statistics.of_requests(requests)
        return RequestBatch(bucket.request_id_R[rows], requests, label_NH)


def _flat_history(table: pa.Table) -> dict[str, pa.Array]:
    return {name: pc.list_flatten(table[name]).combine_chunks() for name in HISTORY_COLUMNS}


def _uniform(request_hash: NDArray[np.uint64], seed: int, epoch: int, purpose: int) -> NDArray[np.float64]:
    """A number in [0, 1) for each hash, keyed by (seed, epoch, purpose, hash): splitmix64 of them."""
    key = np.random.SeedSequence([seed, epoch, purpose]).generate_state(1, np.uint64)[0]
    with np.errstate(over="ignore"):
        z = request_hash ^ key
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    uniform: NDArray[np.float64] = (z >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return uniform
