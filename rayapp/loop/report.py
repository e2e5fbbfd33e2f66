"""The report of a run, for whoever is on call: what happened, why, what serves now, what to do. Markdown and JSON."""

import datetime
import uuid
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from rayapp.contracts.config import Domain, day_name
from rayapp.loop import run_state as states
from rayapp.loop.gates import Challenge
from rayapp.loop.results import EXPORT, GATES, JUDGE, LINES, PLAN, PROMOTE
from rayapp.loop.run_state import RunState
from rayapp.registry.aliases import read_aliases
from rayapp.root.publish import write_json

HEADLINES: Final = {
    states.PROMOTED: "promoted: new models are live",
    states.REFUSED: "not promoted: the live models stay",
    states.NO_NEW_DATA: "nothing to do: no new day",
    states.FAILED: "failed: the live models stay",
    states.ABANDONED: "stopped and not taken up again: the live models stay",
}


def write_report(state: RunState, domain: Domain) -> Path:
    """`report.md` and `report.json` in the run's directory; the path of the first.

    Raises:
        OSError: they can't be written.
    """
    live = read_aliases(state.root)
    write_json(state.directory / "report.json", {**state.to_json(), "live": live})
    path = state.directory / "report.md"
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        temporary.write_text(markdown(state, domain, live))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def markdown(state: RunState, domain: Domain, live: dict[str, str]) -> str:
    """The whole report."""
    parts = [f"# Retraining {state.id}: {HEADLINES[str(state.outcome)]}", _words(state), _facts(state, live)]
    parts += _days(state)
    for line in state.find(LINES) or ():
        if (challenge := state.find(GATES.of(line.alias))) is not None:
            parts += _line(line.alias, challenge, state.find(PROMOTE.of(line.alias)), live)
    parts += _watch(state, domain)
    parts.append("## Time\n\n" + _table(["step", "seconds"], [[n, f"{s:.1f}"] for n, s in state.seconds.items()]))
    return "\n\n".join(parts) + "\n"


def _words(state: RunState) -> str:
    why = state.why.strip()
    return f"```\n{why}\n```" if "Traceback" in why else "\n".join(f"- {part}" for part in why.split("; ") if part)


def _facts(state: RunState, live: dict[str, str]) -> str:
    rows = [
        ["started", _moment(state.started_ms) + (f", taken up again {state.resumed} times" if state.resumed else "")],
        ["as of", _moment(state.as_of_ms)],
        ["scope, start", f"{state.options['scope']}, {state.options['init']}"],
        *([f"live: {alias}", version] for alias, version in live.items()),
    ]
    if (plan := state.find(PLAN)) is not None:
        days = [day_name(day) for day in plan.train]
        rows.append(["trained on", f"{len(days)} days, {days[0]} to {days[-1]}"])
        rows.append(["validated, tested on", f"{day_name(plan.validation)}, {day_name(plan.test)}"])
    if (export := state.find(EXPORT)) is not None:
        rows.append(["exported", ", ".join(f"{name} {n}" for name, n in asdict(export).items())])
    return _table(["", ""], rows)


def _days(state: RunState) -> list[str]:
    judged = state.find(JUDGE)
    if judged is None or not judged.refused:
        return []
    lines = [f"- `{window}`: {'; '.join(reasons)}" for window, reasons in judged.refused.items()]
    again = "No run reads them until `rayapp retrain --accept-window NAME` says that they are right."
    return ["## Days that were refused", "\n".join(lines), again]


def _line(alias: str, challenge: Challenge, promoted: bool | None, live: Mapping[str, str]) -> list[str]:
    said = "promoted" if promoted else "not promoted" if promoted is False else "not reached"
    why = challenge.why_kept(alias, live.get(alias)) if promoted is False else challenge.why
    against = challenge.champion or "nothing: there was no model before"
    rows = [
        [("pass" if gate.passed else "**FAIL**"), gate.name, gate.words]
        for gate in sorted(challenge.gates, key=lambda gate: gate.passed)
    ]
    return [
        f"## {alias}: {challenge.version} {said}",
        f"Against {against}, on `{challenge.window}`." + (f" Not promoted because of: {why}." if why else ""),
        _table(["", "gate", "measured"], rows),
        challenge.tables,
    ]


def _watch(state: RunState, domain: Domain) -> list[str]:
    judged = state.find(JUDGE)
    return ["## Watch", watch_table(judged.watch, domain)] if judged is not None and judged.watch else []


def watch_table(rows: list[dict[str, Any]], domain: Domain) -> str:
    """A line a day, and below it what left its thresholds."""
    heads, actions = domain.head_names, sorted({name for row in rows for name in row["actions"]})
    head = ["day", "requests", "users", "events", *(f"{a} / request" for a in actions)]
    head += [*(f"{h} label" for h in heads), *(f"{h} predicted" for h in heads), "degraded", "parity"]
    body = []
    for row in rows:
        cells = [row["day"], *(f"{row[name]:,}" for name in ("requests", "users", "events"))]
        cells += [_number(row["actions"].get(a, 0), row["requests"]) for a in actions]
        cells += [_number(row["labels"].get(h), row["shown"]) for h in heads]
        cells += [_number(row["predictions"].get(h), 1) for h in heads]
        cells.append(_number(row["degraded"], row["answers"]))
        body.append([*cells, _number(row["parity"], 1)])
    left = [(row["day"], gate) for row in rows for gate in row["gates"] if not gate["passed"]]
    findings = [f"- {day}, {gate['name']}: {gate['words']}" for day, gate in left]
    return _table(head, body) + "\n\n" + ("\n".join(findings) or "Everything is within its thresholds.")


def _number(value: float | None, of: int) -> str:
    """A share; a dash where it is not known, or of nothing."""
    return "–" if value is None or not of else f"{value / of:.4f}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _moment(at_ms: int) -> str:
    return f"{datetime.datetime.fromtimestamp(at_ms / 1000, datetime.UTC):%Y-%m-%d %H:%M} UTC"
