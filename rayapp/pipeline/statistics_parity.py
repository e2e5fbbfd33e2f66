"""Whether what rankers read of the statistics is what the log says: `rayapp parity` counts anew and compares.

Serving logs with each answer the numbers that the ranker read of the user and of the items shown, and as of when. They
are looked up again in statistics that are counted from the log, in the steps that the replicas agreed on.

Shapes: R requests, P items shown of one, M of all, K columns.
"""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rayapp.contracts.hashing import hash64_column
from rayapp.contracts.schema import REQUEST_SCHEMA, columns_of
from rayapp.pipeline.export import exported
from rayapp.pipeline.labels import between
from rayapp.pipeline.log_view import LogView
from rayapp.pipeline.statistics import count_statistics
from rayapp.pipeline.tasks import Told, quiet, run_tasks
from rayapp.root.facts import read_root, trained_domains
from rayapp.root.places import EVENTS, REQUESTS
from rayapp.statistics.agreement import Agreement
from rayapp.statistics.known import Statistics, load_base, reading_of
from rayapp.statistics.logged import unpack

COLUMNS: Final = columns_of(
    REQUEST_SCHEMA,
    *("request_id", "user_id", "timestamp_ms", "item_ids", "model_version", "statistics_at_ms", "statistics"),
)
TOLERANCE: Final = 4e-3
"""Half precision, relative to numbers above 1 in size."""
SHOWN: Final = 5
COUNTED: Final = ("compared", "equal", "left_out")


@dataclass(frozen=True, slots=True)
class StatisticsParity:
    """What the comparison found."""

    compared: int
    equal: int
    left_out: int
    """Requests whose step counts rows that are not in the logs yet, or of whose agreement the logs know nothing; and
    those of a model that is gone and read other statistics than today's."""
    different: tuple[str, ...]
    """Ids of some requests that are not equal."""

    @property
    def share(self) -> float | None:
        """Of compared requests that are equal; None where there are none."""
        return self.equal / self.compared if self.compared else None


def statistics_parity(
    root: Path, since_ms: int | None = None, until_ms: int | None = None, told: Told = quiet
) -> StatisticsParity:
    """Compares the requests of `[since, until)`. Ray must be initialised.

    Raises:
        PublishError: a log can't be read.
    """
    domain, num_buckets = read_root(root)
    view, read = LogView.of(root), trained_domains(root, domain)
    names = {reading_of(own): (count_statistics(root, own)[0], own) for own in [*read.values(), domain]}
    steps = _exported_steps(root, view, num_buckets)

    def task(bucket: int) -> dict[str, Any]:
        requests = view.requests(bucket, COLUMNS)
        requests = requests.filter(pc.is_valid(requests["statistics"]))
        requests = requests.filter(pa.array(between(requests, since_ms, until_ms)))
        version, totals = requests["model_version"].fill_null(""), Counter[str]()
        different = list[str]()
        for one in pc.unique(version).to_pylist():
            name, own = names[reading_of(read.get(one, domain))]
            some = requests.filter(pc.equal(version, one))
            result = _compare(some, load_base(root, name, own).statistics, steps)
            different += result.pop("different")
            totals.update(result)
        return {**dict.fromkeys(COUNTED, 0), **totals, "different": different[:SHOWN]}

    found = run_tasks(num_buckets, task, told)
    different = [request_id for row in found for request_id in row["different"]]
    totals = {key: sum(row[key] for row in found) for key in COUNTED}
    return StatisticsParity(**totals, different=tuple(different[:SHOWN]))


def _exported_steps(root: Path, view: LogView, num_buckets: int) -> frozenset[int]:
    """Agreed steps all of whose rows are in the logs."""
    seen = [exported(view.manifests[kind]) for kind in (EVENTS, REQUESTS)]
    upto_B = np.array([min(of_log.get(bucket, 0) for of_log in seen) for bucket in range(num_buckets)])
    agreement = Agreement.of_root(root, num_buckets)
    return frozenset(agreement.step_J[(agreement.cursor_JB <= upto_B).all(axis=1)].tolist())


def _compare(requests: pa.Table, statistics: Statistics, steps: Collection[int]) -> dict[str, Any]:
    step_R = statistics.grid.step(requests["statistics_at_ms"].to_numpy())
    there_R = np.isin(step_R, np.array(sorted(steps), np.int64))
    requests, step_R = requests.filter(pa.array(there_R)), step_R[there_R]
    lists = requests["item_ids"].combine_chunks()
    size_R = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
    item_MK = statistics.items(hash64_column(pc.list_flatten(lists)), np.repeat(step_R, size_R))
    user_RK = statistics.users(hash64_column(requests["user_id"]), step_R)
    different, end_R, other = list[str](), np.cumsum(size_R), 0
    for r, text in enumerate(requests["statistics"].to_pylist()):
        try:
            item_PK, user_K = unpack(text, int(size_R[r]), statistics.columns)
        except ValueError:
            other += 1
            continue
        if not (_alike(item_PK, item_MK[end_R[r] - size_R[r] : end_R[r]]) and _alike(user_K, user_RK[r])):
            different.append(requests["request_id"][r].as_py())
    return {
        "compared": requests.num_rows - other,
        "equal": requests.num_rows - other - len(different),
        "left_out": int((~there_R).sum()) + other,
        "different": different,
    }


def _alike(logged: NDArray[np.float32], counted: NDArray[np.float32]) -> bool:
    return bool((np.abs(logged - counted) <= TOLERANCE * np.maximum(np.abs(counted), 1)).all())
