"""From scores to the rows of the output: a part's Parquet file, its counts, and its comparison with what was logged.

Shapes: R requests, N candidates of all of them, H heads.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rayapp.batch.accumulators import Accumulators
from rayapp.batch.grouped_rows import GroupedRows
from rayapp.contracts.config import Domain
from rayapp.features.sequence import Sequences
from rayapp.retrieval.candidates import SEEN_AGAIN
from rayapp.retrieval.caps import Places, Values, capped_by_tier

TOLERANCE: Final = 1e-5
"""Probabilities that differ by less were computed from the same by the same."""
MAX_DIFFERENCE: Final = "max_difference"


@dataclass(frozen=True, slots=True)
class ScoredRows:
    """Requests with their answers."""

    grouped: GroupedRows
    model_version: str
    probability_NH: NDArray[np.float32]
    known_item_N: NDArray[np.bool_]
    sequences: Sequences
    """What the model read."""
    activity_R: NDArray[np.int64]
    """Actions known of the user, up to CORE_ACTIONS or the model's length."""
    values: Values
    """Of capped attributes, where the items were fetched as for a feed; else none."""

    def logged_difference(self) -> NDArray[np.float32] | None:
        """Largest difference to the logged probabilities over the heads; NaN where none were logged, None where there
        is nothing to compare with."""
        logged = self.grouped.logged
        if logged is None:
            return None
        lists = logged["probabilities"].combine_chunks()
        size_R = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
        num_heads = int((~np.isnan(self.probability_NH)).any(axis=0).sum())  # the model has the first of them
        told_R = size_R == np.diff(self.grouped.offset_R) * num_heads
        told_N = told_R[self.grouped.request_of_row()]
        flat = pc.list_flatten(lists.filter(pa.array(told_R))).to_numpy().reshape(-1, num_heads)
        difference_N = np.full(len(told_N), np.nan, np.float32)
        difference_N[told_N] = np.abs(self.probability_NH[told_N, :num_heads] - flat).max(axis=1, initial=0.0)
        return difference_N

    def equal_hashes(self) -> tuple[int, int]:
        """`(requests whose sequence has the hash that was logged, requests with a logged hash)`."""
        if self.grouped.logged is None:
            return 0, 0
        logged = self.grouped.logged["sequence_hash"].to_pylist()
        told = [r for r, value in enumerate(logged) if value is not None]
        return sum(self.sequences.hash_of(r) == logged[r] for r in told), len(told)


def as_table(scored: ScoredRows, domain: Domain, top_k: int, difference_N: NDArray[np.float32] | None) -> pa.Table:
    """The caller's columns and ours; each request's rows by rank, at most `top_k` of them unless that is 0."""
    grouped, request_N, probability_NH = scored.grouped, scored.grouped.request_of_row(), scored.probability_NH
    utility_N = np.nan_to_num(probability_NH) @ np.asarray(domain.utilities, np.float32)
    again_N = np.zeros(len(utility_N), bool)
    if "source" in grouped.rows.column_names:
        again_N = pc.equal(grouped.rows["source"], SEEN_AGAIN).to_numpy()
    # What was seen before stands below what is new, and what the model does not know below what it knows, as live; ties
    # keep the order of the candidates.
    tier_N = 2 * again_N.astype(np.int64) + ~scored.known_item_N
    order = np.lexsort((np.arange(len(utility_N)), -utility_N, tier_N, request_N))
    if scored.values:
        order = _under_caps(order, tier_N, scored, domain, top_k)
    rank = np.arange(len(order)) - grouped.offset_R[request_N[order]] + 1
    if top_k:
        order, rank = order[rank <= top_k], rank[rank <= top_k]
    request = request_N[order]
    table = grouped.rows.take(pa.array(order))
    source = table["source"] if "source" in table.column_names else None
    if source is not None:
        table = table.drop_columns(["source"])
    added = {
        "as_of_ms": pa.array(grouped.timestamp_ms_R[request]),
        "model_version": pa.repeat(pa.scalar(scored.model_version), len(order)),
        "statistics_at_ms": pa.array(grouped.statistics_at_ms_R[request]),
        **{
            f"probability_{head}": pa.array(probability_NH[order, h], from_pandas=True)
            for h, head in enumerate(domain.head_names)
        },
        "utility": pa.array(utility_N[order]),
        "rank": pa.array(rank.astype(np.int32)),
        "known_user": pa.array(scored.activity_R[request] > 0),
        "known_item": pa.array(scored.known_item_N[order]),
    }
    if source is not None:
        added["source"] = source
    if difference_N is not None:
        added["logged_difference"] = pa.array(difference_N[order], from_pandas=True)
    for name, column in added.items():
        if name not in table.column_names:  # what the caller gave stays in its place
            table = table.append_column(name, column)
    return table


def _under_caps(
    order: NDArray[np.int64], tier_N: NDArray[np.int64], scored: ScoredRows, domain: Domain, top_k: int
) -> NDArray[np.int64]:
    """The rows of each request in the order of a feed under the domain's caps; behind the `top_k` as they were."""
    orders: list[NDArray[np.int64]] = []
    for start, end in pairwise(scored.grouped.offset_R.tolist()):
        best_first = order[start:end]
        places = Places(domain.caps, {name: values[start:end] for name, values in scored.values.items()})
        count = min(top_k or end - start, end - start)
        chosen = start + np.array(capped_by_tier(best_first - start, tier_N[start:end], count, places), np.int64)
        orders += [chosen, best_first[~np.isin(best_first, chosen)]]
    return np.concatenate([np.zeros(0, np.int64), *orders])


class PartFile:
    """Writes one part beside its name and gives it the name at the end; an empty part has no file."""

    def __init__(self, path: Path, domain: Domain, top_k: int) -> None:
        self._path, self._temporary = path, path.with_name(f".{path.name}.tmp")
        self._domain, self._top_k = domain, top_k
        self._writer: pq.ParquetWriter | None = None
        self.metrics = Accumulators()
        self.counts: Counter[str] = Counter(rows=0, scored=0, requests=0, cold_requests=0, unknown_items=0)
        """Of what was scored; of the comparison with the log the requests `compared`, `different`, with `hashes`, with
        `equal_hashes`."""
        self.max_difference = 0.0

    def record(self) -> dict[str, Any]:
        """What is kept of the part, for `total`."""
        return {**self.counts, MAX_DIFFERENCE: self.max_difference, "metrics": self.metrics.to_json()}

    def __enter__(self) -> "PartFile":
        return self

    def add(self, scored: ScoredRows) -> None:
        difference_N = scored.logged_difference()
        table = as_table(scored, self._domain, self._top_k, difference_N)
        if self._writer is None:
            self._temporary.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(self._temporary, table.schema, compression="zstd")
        self._writer.write_table(table)
        self.counts["rows"] += table.num_rows
        self.counts["scored"] += len(scored.known_item_N)
        self.counts["requests"] += len(scored.grouped)
        self.counts["cold_requests"] += int((scored.activity_R == 0).sum())
        self.counts["unknown_items"] += int((~scored.known_item_N).sum())
        self._compare(scored, difference_N)
        for h, head in enumerate(self._domain.head_names):
            if head in scored.grouped.rows.column_names:
                label_N = scored.grouped.rows[head].to_numpy(zero_copy_only=False).astype(np.float32)
                activity_N = scored.activity_R[scored.grouped.request_of_row()]
                self.metrics.add(head, scored.probability_NH[:, h], label_N, activity_N)

    def _compare(self, scored: ScoredRows, difference_N: NDArray[np.float32] | None) -> None:
        if difference_N is None or not len(difference_N):
            return
        filled_N = np.nan_to_num(difference_N)
        worst_R = np.maximum.reduceat(filled_N, scored.grouped.offset_R[:-1])
        told_R = ~np.isnan(difference_N[scored.grouped.offset_R[:-1]])
        equal, hashed = scored.equal_hashes()
        self.counts["compared"] += int(told_R.sum())
        self.counts["different"] += int((worst_R > TOLERANCE).sum())
        self.counts["hashes"] += hashed
        self.counts["equal_hashes"] += equal
        self.max_difference = max(self.max_difference, float(filled_N.max()))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._writer is not None:
                self._writer.close()
            if self._writer is not None and error is None:
                self._temporary.replace(self._path)
        finally:
            self._temporary.unlink(missing_ok=True)


def total(records: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Counts of all parts together, their metrics and their files."""
    counts: dict[str, Any] = {MAX_DIFFERENCE: 0.0}
    files: list[dict[str, Any]] = []
    metrics = Accumulators()
    for record in records:
        metrics.merge(Accumulators.from_json(record["metrics"]))
        if record["path"]:
            files.append({"path": record["path"], "rows": record["rows"]})
        for name, value in record.items():
            if name == MAX_DIFFERENCE:
                counts[name] = max(counts[name], value)
            elif name not in ("metrics", "path", "seconds"):
                counts[name] = counts.get(name, 0) + value
    return counts | {"metrics": metrics.result(), "files": files}
