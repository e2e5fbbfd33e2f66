"""The rows that came since statistics were counted, from the outbox and, where an export was quicker, from the logs.

When a step of the grid is over, all replicas of all nodes agree on the rows that count for it (`store.Agreements`), so
their numbers are the same, and nothing is lost or counted twice when one is killed: what it knew is read again.

Shapes: E rows of a bucket.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rayapp.contracts.config import Domain
from rayapp.contracts.schema import EVENT_SCHEMA, REQUEST_SCHEMA, columns_of
from rayapp.features.item_values import ItemValues
from rayapp.features.statistics import Grid, Ints
from rayapp.root.facts import read_root
from rayapp.root.logs import read_bucket
from rayapp.root.publish import log_manifest
from rayapp.statistics.agreement import Agreement
from rayapp.statistics.known import Base, Counted, users_left_out
from rayapp.statistics.observations import Observations, acted, shown
from rayapp.store import LOG_OF, OutboxKind, Store

ROWS_AT_ONCE: Final = 2_000
"""Of a bucket's outbox."""
COLUMNS: Final = {
    OutboxKind.EVENT: columns_of(EVENT_SCHEMA, "user_id", "item_id", "action", "received_at_ms", "commit_seq"),
    OutboxKind.REQUEST: columns_of(REQUEST_SCHEMA, "user_id", "timestamp_ms", "item_ids", "labels", "commit_seq"),
}


@dataclass(frozen=True, slots=True)
class Waiting:
    """Rows of one bucket that no step which is over counts yet."""

    bucket: int
    commit_seq_E: Ints
    observations: Observations

    def take(self, rows: NDArray[np.bool_]) -> "Waiting":
        return Waiting(self.bucket, self.commit_seq_E[rows], self.observations.take(rows))


class RowsSince:
    """Since one base. Used by one thread."""

    def __init__(self, root: Path, domain: Domain, store: Store, base: Base) -> None:
        self.base, self._root, self._domain, self._store, self._grid = base, root, domain, store, Grid.of(domain)
        self._num_kinds = len(domain.heads) + 1
        self._num_buckets = read_root(root)[1]
        self._first = {
            kind: [base.cursor(log, b, store.identity) for b in range(self._num_buckets)]
            for kind, log in LOG_OF.items()
        }
        self._cursors = [min(of_kinds) for of_kinds in zip(*self._first.values(), strict=True)]
        self._agreed: dict[int, Sequence[int]] = dict(store.agreed())
        self._left_out_X = users_left_out(root, domain)
        self._waiting: list[Waiting] = []
        self.counted = Counted.nothing(self._grid, self._num_kinds)
        """As of `step`."""
        self.step = -1
        """The last that was closed."""

    def read(self) -> bool:
        """Reads some rows of each bucket; whether there may be more.

        Raises:
            StoreError: the store does not answer.
            PublishError: a log can't be read.
        """
        more = False
        for bucket, tail in enumerate(self._store.read(self._cursors, ROWS_AT_ONCE)):
            if (until := tail.missing_until) is not None:
                self._read_logs(bucket, tail.after, until)
            for kind in COLUMNS:
                rows = [row for row in tail.rows if row.kind is kind]
                values = [{**row.value, "commit_seq": row.commit_seq} for row in rows]
                if rows:
                    self._add(kind, bucket, pa.Table.from_pylist(values, schema=COLUMNS[kind]))
            last = tail.rows[-1].commit_seq if tail.rows else tail.missing_until
            self._cursors[bucket] = self._cursors[bucket] if last is None else last
            more |= len(tail.rows) == ROWS_AT_ONCE
        return more

    def close(self, step: int, item_values: ItemValues) -> bool:
        """Counts what all replicas count for a step that is over; False where some of it is not read yet."""
        self._agreed |= self._store.agreed(max(self._agreed, default=-1))
        if step not in self._agreed:
            self._agreed[step] = self._store.agree(step, self._cursors)
        if any(own < agreed for own, agreed in zip(self._cursors, self._agreed[step], strict=True)):
            return False
        agreed, counts, waits = Agreement.of(self._agreed, self._num_buckets), list[Observations](), list[Waiting]()
        for rows in self._waiting:
            step_E = agreed.counted_in(rows.observations.step_E, rows.commit_seq_E, rows.bucket)
            over_E = step_E < step
            counts.append(dataclasses.replace(rows.observations, step_E=step_E).take(over_E))
            waits.append(rows.take(~over_E))
        found = Observations.concatenate(counts).once().not_in(self.base.last_steps_X).without(self._left_out_X)
        items, users = found.of_items(self._num_kinds), found.of_users(self._num_kinds)
        self.step, self.counted = step, self.counted.advanced(step, items, users, item_values)
        self._waiting = [rows for rows in waits if len(rows.observations)]
        return True

    def _add(self, kind: OutboxKind, bucket: int, table: pa.Table) -> None:
        table = table.filter(pc.greater(table["commit_seq"], self._first[kind][bucket]))
        observe = acted if kind is OutboxKind.EVENT else shown
        row_E, observations = observe(table, self._domain, self._grid)
        observations = observations.take(live_E := observations.kind_E < self._num_kinds)
        commit_seq_E = table["commit_seq"].to_numpy()[row_E[live_E]]
        self._waiting.append(Waiting(bucket, commit_seq_E, observations))

    def _read_logs(self, bucket: int, after: int, until: int) -> None:
        """Rows that left the outbox before this replica had read them."""
        for kind, schema in COLUMNS.items():
            manifest: dict[str, Any] = log_manifest(self._root / LOG_OF[kind])[1]
            for table in read_bucket(self._root, LOG_OF[kind], bucket, manifest, schema):
                seq = table["commit_seq"]
                mine = table.filter(pc.and_(pc.greater(seq, after), pc.less_equal(seq, until)))
                if mine.num_rows:
                    self._add(kind, bucket, mine)
