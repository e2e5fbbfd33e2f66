"""The daily watch: what a day looked like against the usual day. Pure: counts in, gates with words out.

The same measures decide whether a day may be trained on (`day_gates`) and what the watch reports (`watch_gates`).
The usual is the median over the days before that were not refused; with fewer than MIN_DAYS of them only absolute
thresholds count.
"""

import math
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from rayapp.contracts.config import day_name
from rayapp.loop.gates import Gate, not_judged, within
from rayapp.loop.limits import GateLimits

MIN_DAYS: Final = 3
USUAL_DAYS: Final = 7
CLEAR_ERRORS: Final = 5.0
"""A rate that left its ratio must also be this many standard errors of a count away: small days scatter."""
PER: Final = {"actions": "requests", "labels": "shown"}
NONE: Final = 1e-9
"""A ratio that lies outside of every limit."""
DENSE_REQUESTS: Final = 20
"""Below so many usual requests an hour, an hour without any says nothing."""


@dataclass(frozen=True, slots=True)
class DayFacts:
    """Counts of one UTC day."""

    day_ms: int
    requests: int = 0
    users: int = 0
    shown: int = 0
    hours: int = 0
    """Hours of the day that saw a request."""
    events: int = 0
    actions: Mapping[str, int] = field(default_factory=dict)
    labels: Mapping[str, int] = field(default_factory=dict)
    """Shown items with the head's label; empty while actions may still come."""
    top_user_events: int = 0
    logged: int = 0
    """Shown items whose probabilities were logged: 0 on imported days."""
    predictions: Mapping[str, float] = field(default_factory=dict)
    """Mean logged probability per head."""
    answers: int = 0
    """Requests that a model of ours answered."""
    degraded: int = 0
    """Of these, the ones that a failing stage degraded."""
    parity: float | None = None
    """Share of logged sequences that the pipeline cuts alike."""

    @property
    def day(self) -> str:
        return day_name(self.day_ms)


def usual_days(facts: DayFacts, days: Sequence[DayFacts], refused: Collection[int] = ()) -> list[DayFacts]:
    """The last days before one, without those refused."""
    before = [d for d in days if d.day_ms < facts.day_ms and d.day_ms not in refused and d.requests]
    return sorted(before, key=lambda d: d.day_ms)[-USUAL_DAYS:]


def _usual(days: Sequence[DayFacts], value: Callable[[DayFacts], float]) -> float:
    return statistics.median(value(d) for d in days)


def day_gates(facts: DayFacts, usual: Sequence[DayFacts], limits: GateLimits) -> list[Gate]:
    """Whether the day may be trained on."""
    gates = [_requests(facts, usual, limits), _hours(facts, usual, limits), _one_user(facts, usual, limits)]
    actions = sorted({name for d in usual for name in d.actions} | set(facts.actions))
    gates += [_rate("actions", name, facts, usual, limits.max_action_ratio) for name in actions]
    gates += [_rate("labels", head, facts, usual, limits.max_label_ratio) for head in facts.labels]
    return gates


def made_up_day_gates(facts: DayFacts, num_lists: int, usual: Sequence[DayFacts], limits: GateLimits) -> list[Gate]:
    """`day_gates` of a day whose lists are made: there are no rates to look at."""
    least = limits.min_requests
    words = f"{num_lists:,} lists could be made, at least {least:,} are asked"
    return [Gate("lists", num_lists >= least, num_lists, least, words), _one_user(facts, usual, limits)]


def _requests(facts: DayFacts, usual: Sequence[DayFacts], limits: GateLimits) -> Gate:
    least: float = limits.min_requests
    if len(usual) >= MIN_DAYS:
        least = max(least, limits.min_requests_share * _usual(usual, lambda d: d.requests))
    words = f"{facts.requests:,} requests, at least {math.ceil(least):,} are asked"
    return Gate("requests", facts.requests >= least, facts.requests, least, words)


def _hours(facts: DayFacts, usual: Sequence[DayFacts], limits: GateLimits) -> Gate:
    normal = _usual(usual, lambda d: d.hours) if len(usual) >= MIN_DAYS else 0
    limit = limits.min_hours_share * normal
    if not normal or _usual(usual, lambda d: d.requests / max(d.hours, 1)) < DENSE_REQUESTS:
        return not_judged("hours", limit, "too few days or requests before it to know its usual hours")
    words = f"requests in {facts.hours} of 24 hours, usually in {normal:g}"
    words += ": a part of a day" if facts.hours < limit else ""
    return Gate("hours", facts.hours >= limit, facts.hours, limit, words)


def _one_user(facts: DayFacts, usual: Sequence[DayFacts], limits: GateLimits) -> Gate:
    share, top = facts.top_user_events / max(facts.events, 1), facts.top_user_events
    words = f"the most active user made {top:,} of {facts.events:,} events ({share:.1%})"
    bot = share > limits.max_user_share
    if len(usual) >= MIN_DAYS:
        normal = _usual(usual, lambda d: d.top_user_events)
        words += f", usually {normal:,.0f}"
        bot |= top > limits.max_user_ratio * normal
    bot &= top > limits.bot_events
    return Gate(
        "one user", not bot, share, limits.max_user_share, words + (": a bot or a broken client" if bot else "")
    )


def _rate(counts: str, key: str, facts: DayFacts, usual: Sequence[DayFacts], limit: float) -> Gate:
    """An action per request, or a label per shown item, against the usual; the ratio must be broken beyond chance."""
    per, title = PER[counts], f"{counts[:-1]} {key}"
    if len(usual) < MIN_DAYS:
        return not_judged(title, limit, f"only {len(usual)} days before it")

    def count(d: DayFacts) -> int:
        return int(getattr(d, counts).get(key, 0))

    def rate(d: DayFacts) -> float:
        return count(d) / max(int(getattr(d, per)), 1)

    # Days whose labels were not counted know nothing of their rate.
    normal, now = _usual([d for d in usual if getattr(d, counts)] or usual, rate), rate(facts)
    if normal == 0:
        return Gate(title, True, now, limit, f"{count(facts):,}, usually none")
    expected = normal * getattr(facts, per)
    # The usual rate is counted too; users come in clusters, which CLEAR_ERRORS leaves room for.
    error = math.sqrt(max(expected, 1.0) * (1 + 1 / len(usual)))
    clear = abs(count(facts) - expected) > CLEAR_ERRORS * error
    ratio = max(now / normal, NONE)
    words = f"{now:.4f} per {'request' if per == 'requests' else 'shown item'}, usually {normal:.4f} (x {ratio:.2f})"
    if count(facts) == 0:
        words = f"{key!r} vanished: none, usually {expected:,.0f} on such a day"
    return Gate(title, within(ratio, limit) or not clear, ratio, limit, words)


def watch_gates(facts: DayFacts, usual: Sequence[DayFacts], limits: GateLimits, age_days: float | None) -> list[Gate]:
    """Everything the watch looks at; `age_days` is the champion's."""
    gates = day_gates(facts, usual, limits)
    for name in ("requests", "users", "events"):
        gates.append(_volume(name, facts, usual, limits))
    for head, mean in facts.predictions.items():
        past = [d.predictions[head] for d in usual if head in d.predictions]
        gates.append(_mean(f"prediction {head}", mean, past, limits))
    if facts.answers:
        share, limit = facts.degraded / facts.answers, limits.max_degraded_share
        words = f"{facts.degraded:,} of {facts.answers:,} answers were degraded"
        gates.append(Gate("degraded", share <= limit, share, limit, words))
    if facts.parity is not None:
        limit, words = limits.min_parity_share, f"{facts.parity:.2%} of the logged sequences are cut alike"
        gates.append(Gate("parity", facts.parity >= limit, facts.parity, limit, words))
    if age_days is not None:
        limit = limits.max_champion_age_days
        words = f"the champion's newest data ended {age_days:.1f} days ago, {limit:g} are borne"
        gates.append(Gate("champion age", age_days <= limit, age_days, limit, words))
    return gates


def _volume(name: str, facts: DayFacts, usual: Sequence[DayFacts], limits: GateLimits) -> Gate:
    title, limit = f"volume {name}", limits.max_volume_ratio
    if len(usual) < MIN_DAYS:
        return not_judged(title, limit, f"only {len(usual)} days before it")
    normal, now = _usual(usual, lambda d: getattr(d, name)), getattr(facts, name)
    ratio = now / max(normal, 1)
    return Gate(title, within(max(ratio, NONE), limit), ratio, limit, f"{now:,} {name}, usually {normal:,.0f}")


def _mean(name: str, mean: float, past: Sequence[float], limits: GateLimits) -> Gate:
    if len(past) < MIN_DAYS:
        return not_judged(name, limits.max_mean_ratio, f"only {len(past)} days before it with logged probabilities")
    normal = statistics.median(past)
    ratio = mean / max(normal, 1e-9)
    words = f"{mean:.4f} on average, usually {normal:.4f}"
    return Gate(name, within(max(ratio, NONE), limits.max_mean_ratio), ratio, limits.max_mean_ratio, words)
