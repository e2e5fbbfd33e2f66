"""The watch as metrics for node_exporter's textfile collector. Pure: whoever calls writes the file."""

from collections.abc import Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Gauge

from rayapp.loop.run_state import RunState

SCALARS = ("requests", "users", "shown", "events")


def watch_metrics(rows: Sequence[Mapping[str, Any]], runs: Sequence[RunState]) -> CollectorRegistry:
    """The newest day's measures, whether each is within its threshold, the last retraining.

    `rows`: days as the watch gives them, oldest first.
    """
    registry = CollectorRegistry()

    def metric(name: str, words: str, values: Sequence[tuple[Mapping[str, str], float]]) -> None:
        if values:
            gauge = Gauge(f"rayapp_{name}", words, list(values[0][0]), registry=registry)
            for labels, value in values:
                (gauge.labels(**labels) if labels else gauge).set(value)

    if rows:
        day = rows[-1]
        metric("day_start_timestamp_seconds", "Start of the newest day that has ended.", [({}, day["day_ms"] / 1000)])
        metric("day_count", "Counts of that day.", [({"what": name}, day[name]) for name in SCALARS])
        asked = max(day["requests"], 1)
        metric(
            "day_action_rate", "Actions per request.", [({"action": a}, n / asked) for a, n in day["actions"].items()]
        )
        means = [({"head": h}, mean) for h, mean in day["predictions"].items()]
        metric("day_prediction_mean", "Mean logged probability.", means)
        if day["answers"]:
            metric("day_degraded_share", "Share of degraded answers.", [({}, day["degraded"] / day["answers"])])
        if day["parity"] is not None:
            metric("day_parity_share", "Share of sequences cut alike.", [({}, day["parity"])])
        age = [gate["value"] for gate in day["gates"] if gate["name"] == "champion age"]
        metric("champion_age_days", "Since the end of the champion's newest data.", [({}, value) for value in age])
        within = [({"measure": gate["name"]}, float(gate["passed"])) for gate in day["gates"]]
        metric("watch_within_threshold", "1 where a measure of that day is within its threshold.", within)
        labelled = next((row for row in reversed(rows) if row["labels"]), None)
        if labelled is not None:
            rates = [({"head": h}, n / max(labelled["shown"], 1)) for h, n in labelled["labels"].items()]
            metric("day_label_rate", "Labels per shown item, of the newest day whose labels are in.", rates)
    ended = [run for run in runs if run.finished_ms is not None]
    if ended:
        last = ended[-1]
        metric(
            "retraining_end_timestamp_seconds", "End of the last retraining.", [({}, (last.finished_ms or 0) / 1000)]
        )
        metric(
            "retraining_outcome", "1 for the outcome of the last retraining.", [({"outcome": str(last.outcome)}, 1.0)]
        )
    return registry
