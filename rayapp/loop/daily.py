"""A root's days: which a run could read, and the watch over the last ones, for `rayapp watch` and every run report."""

import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from rayapp.contracts.config import DAY_MS, Domain, day_name, day_start_ms
from rayapp.contracts.json_values import to_json
from rayapp.contracts.presets import COUNTS
from rayapp.loop.challenge import champion_over_counts
from rayapp.loop.day_counts import count_days, days_with_requests
from rayapp.loop.gates import Gate
from rayapp.loop.limits import GateLimits, read_limits
from rayapp.loop.plan import candidates, closed_days, day_window
from rayapp.loop.run_state import refused_windows
from rayapp.loop.watch import USUAL_DAYS, DayFacts, usual_days, watch_gates
from rayapp.pipeline.parity import parity
from rayapp.registry.aliases import CHAMPION, read_aliases
from rayapp.registry.models import model_manifest
from rayapp.root.places import REQUESTS, WINDOWS
from rayapp.root.publish import log_manifest, read_manifest


def ended_days(root: Path, since_ms: int, now_ms: int) -> list[int]:
    """Every UTC day that has ended, from the first with a request (or `since_ms`) on; days without any are among them:
    a feed that stopped is what a watch must see."""
    first_ms = min((file["min_ms"] for file in log_manifest(root / REQUESTS)[1]["files"]), default=now_ms)
    return list(range(max(day_start_ms(first_ms), since_ms), day_start_ms(now_ms), DAY_MS))


def tested_until_ms(root: Path, version: str | None) -> int:
    """The end of the newest data that a model knows, its test included; 0 for none."""
    if version is None:
        return 0
    window = model_manifest(root, version)["test_window"]
    return int(read_manifest(root / WINDOWS / window)["until_ms"])


def candidate_days(root: Path, domain: Domain, train_window_days: int, now_ms: int) -> list[int]:
    """The days that a run could read, oldest first: closed, and not refused. Ray must be initialised."""
    days = days_with_requests(root, now_ms)
    closed = closed_days(days, now_ms=now_ms, attribution_ms=domain.attribution_ms)
    return candidates(closed, refused_windows(root), train_window_days)


def watch_days(root: Path, domain: Domain, num_days: int, now_ms: int) -> list[dict[str, Any]]:
    """The last days that have ended, oldest first. Ray must be initialised.

    Raises:
        PublishError: `retrain.toml` is wrong, or the champion or a log is damaged.
    """
    limits = read_limits(root)
    days = ended_days(root, day_start_ms(now_ms) - (num_days + USUAL_DAYS) * DAY_MS, now_ms)
    facts = count_days(root, days, domain, now_ms=now_ms)
    refused = {day for day in days if day_window(day) in refused_windows(root)}
    age_days = champion_age_days(root, read_aliases(root).get(CHAMPION), now_ms)
    return watch_rows(root, facts, refused, limits, age_days, num_days)


def champion_age_days(root: Path, champion: str | None, now_ms: int) -> float | None:
    return None if champion is None else (now_ms - tested_until_ms(root, champion)) / DAY_MS


def watch_rows(
    root: Path,
    facts: Sequence[DayFacts],
    refused: Collection[int],
    limits: GateLimits,
    age_days: float | None,
    num_days: int,
) -> list[dict[str, Any]]:
    """Plain values of the last days, each with its gates; parity, the champion's age and whether it is above counts are
    the last day's."""
    rows = []
    facts = [*facts[:-1], *(_with_parity(root, one) for one in facts[-1:])]
    usable = [one.day_ms for one in facts if one.day_ms not in refused]
    over_counts = _champion_over_counts(root, usable, limits)
    for one in facts[-num_days:]:
        gates = watch_gates(one, usual_days(one, facts, refused), limits, age_days if one is facts[-1] else None)
        gates += over_counts if one is facts[-1] else []
        rows.append({"day": one.day, **to_json(one), "gates": [to_json(gate) for gate in gates]})
    return rows


def _with_parity(root: Path, facts: DayFacts) -> DayFacts:
    if not facts.answers:
        return facts
    return dataclasses.replace(facts, parity=parity(root, facts.day_ms, facts.day_ms + DAY_MS).share)


def _champion_over_counts(root: Path, days: Sequence[int], limits: GateLimits) -> list[Gate]:
    """On the last day that has a window and that neither was trained on; nothing where there is no such day, or counts
    are the champion."""
    aliases = read_aliases(root)
    versions = [aliases[alias] for alias in (CHAMPION, COUNTS) if alias in aliases]
    if len(set(versions)) < 2:
        return []
    known_ms = max(_tested_since_ms(root, version) for version in versions)
    for day_ms in sorted(days, reverse=True):
        if day_ms >= known_ms and (root / WINDOWS / day_window(day_ms)).exists():
            gate = champion_over_counts(root, day_window(day_ms), versions[0], versions[1], limits)
            return [dataclasses.replace(gate, words=f"{gate.words}, on {day_name(day_ms)}")]
    return []


def _tested_since_ms(root: Path, version: str) -> int:
    """From here on a model has been trained on nothing."""
    return int(read_manifest(root / WINDOWS / model_manifest(root, version)["test_window"])["since_ms"])
