"""Counts the days that the watch judges, bucket by bucket with Ray Data, from the logs alone.

Shapes: R requests of a bucket, M shown items, H heads, A events.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rayapp.contracts.config import DAY_MS, HOUR_MS, Domain
from rayapp.contracts.schema import REQUEST_SCHEMA, columns_of
from rayapp.features.requests import known_columns
from rayapp.loop.watch import DayFacts
from rayapp.pipeline.labels import LabelledRequests, between
from rayapp.pipeline.log_view import LogView
from rayapp.pipeline.made_lists import lacks_lists
from rayapp.pipeline.tasks import Told, quiet, run_tasks
from rayapp.root.facts import read_root
from rayapp.root.places import EVENTS, REQUESTS

NOT_DEGRADED: Final = "unknown_user"
"""A fallback that is nobody's failure."""
COLUMNS: Final = columns_of(
    REQUEST_SCHEMA,
    "request_id",
    "user_id",
    "timestamp_ms",
    "item_ids",
    "labels",
    "probabilities",
    "model_version",
    "fallback_reason",
)


def days_with_requests(root: Path, until_ms: int) -> list[int]:
    """Starts of the UTC days before `until_ms` that hold a request, oldest first; or an action, where lists are made of
    actions."""
    _, num_buckets = read_root(root)
    view = LogView.of(root)
    kinds = [REQUESTS, EVENTS] if lacks_lists(root) else [REQUESTS]
    schema = columns_of(REQUEST_SCHEMA, "user_id", "timestamp_ms")

    def task(bucket: int) -> dict[str, Any]:
        tables = [table for kind in kinds for table in view.stored(kind, bucket, schema)]
        days = [table["timestamp_ms"].to_numpy() // DAY_MS for table in tables]
        return {"days": np.unique(np.concatenate(days)).tolist() if days else []}

    found = {day * DAY_MS for result in run_tasks(num_buckets, task) for day in result["days"]}
    return sorted(day for day in found if day < until_ms)


def count_days(root: Path, days: Sequence[int], domain: Domain, *, now_ms: int, told: Told = quiet) -> list[DayFacts]:
    """The facts of each day. Labels are counted once the attribution time of the day's last request is over."""
    if not days:
        return []
    _, num_buckets = read_root(root)
    view = LogView.of(root, (min(days), max(days) + DAY_MS + domain.attribution_ms))

    def task(bucket: int) -> dict[str, Any]:
        labelled = view.labelled(bucket, COLUMNS, domain, (min(days), max(days) + DAY_MS))
        return {str(day): count_bucket(labelled, day, domain) for day in days}

    total: dict[int, Counter[str]] = {day: Counter() for day in days}
    hours: dict[int, set[int]] = {day: set() for day in days}
    top: dict[int, int] = dict.fromkeys(days, 0)
    for result in run_tasks(num_buckets, task, told):
        for day in days:
            counted = result[str(day)]
            hours[day] |= set(counted.pop("hours"))
            top[day] = max(top[day], counted.pop("top_user_events"))
            total[day].update(counted)
    return [_facts(day, total[day], hours[day], top[day], domain, now_ms) for day in days]


def _facts(day: int, total: Counter[str], hours: set[int], top: int, domain: Domain, now_ms: int) -> DayFacts:
    matured = day + DAY_MS + domain.attribution_ms <= now_ms
    logged = total["logged"]
    return DayFacts(
        day_ms=day,
        **{name: total[name] for name in ("requests", "users", "shown", "events", "logged", "answers", "degraded")},
        hours=len(hours),
        top_user_events=top,
        actions={name: total[f"action {name}"] for name in domain.vocabulary.names if total[f"action {name}"]},
        labels={head: total[f"label {head}"] for head in domain.head_names} if matured else {},
        predictions={
            head: total[f"sum {head}"] / known
            for head in domain.head_names
            if (known := logged - total[f"without {head}"]) > 0
        },
    )


def count_bucket(labelled: LabelledRequests, day: int, domain: Domain) -> dict[str, Any]:
    """One bucket's share of a day, as sums (and `hours`, `top_user_events`). Pure."""
    of_day = labelled.between(day, day + DAY_MS)
    own, acted = of_day.requests, of_day.events.filter(pa.array(between(of_day.events, day, day + DAY_MS)))
    counts: Counter[str] = Counter()
    counts["requests"], counts["events"] = own.num_rows, acted.num_rows
    counts["users"] = len(pc.unique(own["user_id"]))
    answers = own.filter(pc.is_valid(own["model_version"]))
    reason = pc.fill_null(answers["fallback_reason"], NOT_DEGRADED)
    counts["answers"], counts["degraded"] = answers.num_rows, pc.sum(pc.not_equal(reason, NOT_DEGRADED)).as_py() or 0
    for row in pc.value_counts(acted["action"].cast(pa.string())).to_pylist():
        counts[f"action {row['values']}"] = row["counts"]
    per_user = pc.value_counts(acted["user_id"].cast(pa.string())).field("counts") if acted.num_rows else []
    if own.num_rows:
        label_MH = of_day.matrix()
        counts["shown"] = len(label_MH)
        counts.update(dict(zip((f"label {h}" for h in domain.head_names), _ints(label_MH), strict=True)))
        counts.update(_predictions(own, domain))
    hours = np.unique((own["timestamp_ms"].to_numpy() - day) // HOUR_MS).tolist()
    return {**counts, "hours": hours, "top_user_events": max((int(n.as_py()) for n in per_user), default=0)}


def _predictions(own: pa.Table, domain: Domain) -> dict[str, float]:
    """How many shown items have logged probabilities, and each head's sum of them; of a head that was appended in the
    meantime, of those models that know it."""
    logged = own.filter(pc.is_valid(own["probabilities"]))
    values, lists = logged["probabilities"].combine_chunks(), logged["item_ids"].combine_chunks()
    size_R, length_R = (
        pc.list_value_length(x).to_numpy(zero_copy_only=False).astype(np.int64) for x in (lists, values)
    )
    width_R = length_R // np.maximum(size_R, 1)
    p_MH = known_columns(pc.list_flatten(values).to_numpy(), width_R, size_R, len(domain.heads)).astype(np.float64)
    sums = {f"sum {head}": float(np.nansum(p_MH[:, h])) for h, head in enumerate(domain.head_names)}
    lack_H = np.isnan(p_MH).sum(axis=0).tolist()
    without = {f"without {head}": n for head, n in zip(domain.head_names, lack_H, strict=True) if n}
    return {"logged": len(p_MH), **sums, **without}


def _ints(label_MH: NDArray[np.float32]) -> list[int]:
    return [int(n) for n in label_MH.sum(axis=0)]
