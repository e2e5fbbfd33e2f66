"""The watch as a file for node_exporter's textfile collector. Pure but for the one atomic write."""

import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rayapp.loop.run_state import RunState

SCALARS = ("requests", "users", "shown", "events")


def exposition(rows: Sequence[Mapping[str, Any]], runs: Sequence[RunState]) -> str:
    """Prometheus' text format: the newest day's measures, whether each is within its threshold, the last retraining.

    `rows`: days as the watch gives them, oldest first.
    """
    lines: list[str] = []

    def metric(name: str, words: str, values: Sequence[tuple[Mapping[str, str], float]]) -> None:
        if values:
            lines.extend([f"# HELP rayapp_{name} {words}", f"# TYPE rayapp_{name} gauge"])
            lines.extend(f"rayapp_{name}{_labels(labels)} {value:g}" for labels, value in values)

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
    return "\n".join(lines) + "\n"


def _labels(labels: Mapping[str, str]) -> str:
    escaped = (
        f'{k}="{v.replace(chr(92), chr(92) * 2).replace(chr(34), chr(92) + chr(34))}"' for k, v in labels.items()
    )
    return "{" + ",".join(escaped) + "}" if labels else ""


def write_exposition(path: Path, text: str) -> None:
    """Replaces the file whole: the collector never reads half of it.

    Raises:
        OSError: it can't be written.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
