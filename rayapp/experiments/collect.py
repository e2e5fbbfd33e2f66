"""Counts an experiment's users from the request log and the event log, bucket by bucket.

Labels are those of training (`pipeline.labels`). A day counts once its attribution time is over, so that no arm is
judged by actions that had no time yet to come.

Shapes: R requests, U users, P periods (days, cut further where a model was retrained), A arms, K steps, H heads.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import PlainSerializer, PlainValidator

from rayapp.contracts.config import DAY_MS, Domain
from rayapp.contracts.hashing import hash64_column
from rayapp.contracts.json_values import from_json, to_json
from rayapp.contracts.schema import REQUEST_SCHEMA, columns_of
from rayapp.experiments.assignment import Running, slots_of
from rayapp.experiments.moments import Moments
from rayapp.pipeline.labels import LabelledRequests
from rayapp.pipeline.log_view import LogView
from rayapp.pipeline.tasks import run_tasks
from rayapp.root.facts import read_root
from rayapp.root.places import REQUESTS
from rayapp.root.publish import log_manifest

Counts = Annotated[
    NDArray[np.int64],
    PlainValidator(lambda values: np.array(values, np.int64)),
    PlainSerializer(lambda counts: counts.tolist()),
]
NO_ARM: Final = -1
PART_USERS: Final = 4_096
COLUMNS: Final = columns_of(
    REQUEST_SCHEMA,
    "request_id",
    "user_id",
    "timestamp_ms",
    "item_ids",
    "labels",
    "model_version",
    "experiment",
    "fallback_reason",
)


@dataclass(frozen=True, slots=True)
class Tally:
    """Everything a report is made from. Tallies of buckets add up."""

    per_item: list[Moments]
    """Of each arm: n is shown items, x those with the label."""
    per_request: list[Moments]
    """n is requests, x those in which any item has the label."""
    users_KA: Counts
    """Users by the step of growth that gave their slot, and by arm."""
    misplaced: int
    """Users seen in an arm that their slot does not give."""
    fallbacks: list[int]
    """Requests of each arm that were answered without its model's ranking."""
    versions: list[dict[str, int]]
    """Of each arm: model version -> requests."""
    others_P: list[int]
    """Requests of users outside the experiment."""

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            [a + b for a, b in zip(self.per_item, other.per_item, strict=True)],
            [a + b for a, b in zip(self.per_request, other.per_request, strict=True)],
            self.users_KA + other.users_KA,
            self.misplaced + other.misplaced,
            [a + b for a, b in zip(self.fallbacks, other.fallbacks, strict=True)],
            [dict(Counter(a) + Counter(b)) for a, b in zip(self.versions, other.versions, strict=True)],
            [a + b for a, b in zip(self.others_P, other.others_P, strict=True)],
        )


def complete_days(running: Running, newest_ms: int, domain: Domain) -> int:
    """Whole days of the experiment whose attribution time is over when the newest row of the log is this old."""
    until_ms = min(running.until_ms, newest_ms - domain.attribution_ms)
    return max(0, (until_ms - running.experiment.starts_ms) // DAY_MS)


def newest_request_ms(root: Path) -> int:
    """The time of the newest logged request: up to here the log is known. 0 where there is none."""
    return max((int(file["max_ms"]) for file in log_manifest(root / REQUESTS)[1]["files"]), default=0)


def collect(root: Path, running: Running, bounds_ms: list[int]) -> Tally:
    """Counts all buckets with Ray Data; period p is `[bounds_ms[p], bounds_ms[p + 1])`.

    Raises:
        PublishError: a file of the log is damaged or gone.
    """
    domain, num_buckets = read_root(root)
    view = LogView.of(root, (bounds_ms[0], bounds_ms[-1] + domain.attribution_ms))

    def task(bucket: int) -> dict[str, Any]:
        labelled = view.labelled(bucket, COLUMNS, domain, (bounds_ms[0], bounds_ms[-1]))
        values: dict[str, Any] = to_json(tally_bucket(labelled, running, bounds_ms, domain))
        return values

    total, *rest = [from_json(Tally, values) for values in run_tasks(num_buckets, task)]
    for tally in rest:
        total += tally
    return total


def tally_bucket(labelled: LabelledRequests, running: Running, bounds_ms: list[int], domain: Domain) -> Tally:
    """Counts one bucket's requests of the periods. Pure."""
    requests, size_R = labelled.requests, np.diff(labelled.offset_R)
    positives_RH = np.zeros((requests.num_rows, len(domain.heads)), np.int64)
    np.add.at(positives_RH, labelled.request_of_item(), labelled.matrix().astype(np.int64))

    period_R = np.searchsorted(np.array(bounds_ms), requests["timestamp_ms"].to_numpy(), side="right") - 1
    num_periods = len(bounds_ms) - 1
    arm_R = _arms(requests, running)
    user_R = hash64_column(requests["user_id"])
    per_item, per_request = [], []
    for a in range(len(running.arm_names)):
        rows = np.flatnonzero(arm_R == a)
        shape = (num_periods, len(domain.heads))
        items, lists = Moments.zero(*shape), Moments.zero(*shape)
        for part in _parts(rows, user_R):
            items += _moments(user_R[part], period_R[part], size_R[part], positives_RH[part], num_periods)
            lists += _moments(user_R[part], period_R[part], np.ones(len(part)), positives_RH[part] > 0, num_periods)
        per_item.append(items)
        per_request.append(lists)
    mine, arms_of_mine = requests.filter(pa.array(arm_R != NO_ARM)), arm_R[arm_R != NO_ARM]
    users_KA, misplaced = _users(mine, arms_of_mine, running)
    fallback = pc.is_valid(mine["fallback_reason"]).to_numpy()
    version = pc.fill_null(mine["model_version"], "none").to_numpy(zero_copy_only=False)
    others = np.bincount(period_R[arm_R == NO_ARM], minlength=num_periods)
    every = range(len(running.arm_names))
    return Tally(
        per_item,
        per_request,
        users_KA,
        misplaced,
        [int(fallback[arms_of_mine == a].sum()) for a in every],
        [dict(Counter(version[arms_of_mine == a].tolist())) for a in every],
        others.tolist(),
    )


def _arms(requests: pa.Table, running: Running) -> NDArray[np.int64]:
    """`arm_R` as logged; NO_ARM for requests without an arm of this experiment."""
    names = pa.array([f"{running.experiment.name}/{arm}" for arm in running.arm_names], pa.string())
    place = pc.fill_null(pc.index_in(requests["experiment"], value_set=names), NO_ARM)
    return np.asarray(place.to_numpy(), np.int64)


def _parts(rows: NDArray[np.int64], user_R: NDArray[np.uint64]) -> Iterator[NDArray[np.int64]]:
    """The rows of some users at a time, so that a bucket of any size fits."""
    rows = rows[np.argsort(user_R[rows], kind="stable")]
    begins = np.flatnonzero(np.r_[True, np.diff(user_R[rows]) != 0]) if len(rows) else np.zeros(0, np.int64)
    cuts = begins[::PART_USERS].tolist()
    for begin, end in zip(cuts, [*cuts[1:], len(rows)], strict=True):
        yield rows[begin:end]


def _moments(
    user_R: NDArray[np.uint64], period_R: NDArray[np.int64], n_R: Any, x_RH: NDArray[Any], num_periods: int
) -> Moments:
    users, place_R = np.unique(user_R, return_inverse=True)
    n_UP = np.zeros((len(users), num_periods))
    x_UPH = np.zeros((len(users), num_periods, x_RH.shape[1]))
    np.add.at(n_UP, (place_R, period_R), n_R)
    np.add.at(x_UPH, (place_R, period_R), x_RH)
    return Moments.of_users(n_UP, x_UPH)


def _users(requests: pa.Table, arm_R: NDArray[np.int64], running: Running) -> tuple[NDArray[np.int64], int]:
    """`(users_KA, misplaced)`: a user counts for the arm that was logged and the step of the slot."""
    pairs = pd.DataFrame({"user": requests["user_id"].to_numpy(zero_copy_only=False), "arm": arm_R}).drop_duplicates()
    slot_U = slots_of(running.experiment.salt, pa.array(pairs["user"], pa.string()))
    arm_U, layout = pairs["arm"].to_numpy(np.int64), running.layout
    right_U = layout.arm_S[slot_U] == arm_U
    users_KA = np.zeros((running.num_steps, len(running.arm_names)), np.int64)
    np.add.at(users_KA, (layout.step_S[slot_U[right_U]], arm_U[right_U]), 1)
    return users_KA, int((~right_U).sum())
