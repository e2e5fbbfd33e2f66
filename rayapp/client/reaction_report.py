"""How a feed reacts, as numbers and as a table: what `rayapp react` tells."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rayapp.contracts.json_values import to_json
from rayapp.record import Bars, tell

NUM_FIXED: Final = 200
"""Items of the first column: the most liked."""
PAST_ACTIONS: Final = 20
"""Positive actions on any items, of people with a past."""
NUM_ACTIONS: Final = 5
TOP: Final = 10
MOST_ELSEWHERE: Final = 20
"""Feeds, each with a positive action elsewhere before it, until half of the peak is given up."""
MUCH: Final = 0.2
MANY: Final = 0.4
"""The feed follows where its share rises by MUCH or to MANY."""
COLUMNS: Final = ("rank", "by_score", "feed")


@dataclass(frozen=True, slots=True)
class Shares:
    """Of a category in the top TOP."""

    rank: float
    """Of the fixed items, by the model."""
    by_score: float
    """Of the feed's candidates, by the model."""
    feed: float


@dataclass(frozen=True, slots=True)
class Reaction:
    """Of some people, as means."""

    before: Shares
    after: Shares
    """Of the positive actions."""
    twin: Shares
    """Before the negative actions, without the items that they are about."""
    hidden: Shares | None
    """After them; None in a domain without negative actions."""
    feeds_to_half: float
    """Until the feed's share is half of that after the positive actions; MOST_ELSEWHERE stands for longer."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Of one category."""

    category: str
    items: int
    new: Reaction
    past: Reaction
    """Of people who did PAST_ACTIONS before."""
    no_sequence: tuple[float, float] | None
    """The first column, before and after the positive actions of new people, of the ranker without the sequence."""
    seconds: float
    """From the last POST of positive actions to the changed answer, the longest."""


def report(probes: Sequence[Probe], model: str, people: int, as_json: bool, write: Path | None) -> None:
    """Prints it, and puts it on record where `write` says so."""
    result = {
        "bench": "react",
        "model": model,
        "people": people,
        "categories": len(probes),
        "new": summary([probe.new for probe in probes]),
        "past": summary([probe.past for probe in probes]),
        "seconds_max": max(probe.seconds for probe in probes),
        "probes": [to_json(probe) for probe in probes],
    }
    if all(probe.no_sequence is not None for probe in probes):
        result["rises_more_than_no_sequence"] = sum(_more_than_plain(probe) for probe in probes)
    title = "Does the feed follow the user?"
    tell(result, _text(probes, result), title, _bars(probes), as_json=as_json, write=write)


def summary(reactions: Sequence[Reaction]) -> dict[str, Any]:
    """Counts of categories and means over them, of one kind of people."""
    told: dict[str, Any] = {}
    for name in COLUMNS:

        def share(shares: Shares | None, name: str = name) -> float:
            return float(getattr(shares, name))

        told[name] = {
            "rises": sum(share(r.after) > share(r.before) for r in reactions),
            "mean_before": statistics.mean(share(r.before) for r in reactions),
            "mean_after": statistics.mean(share(r.after) for r in reactions),
        }
        if all(r.hidden is not None for r in reactions):
            told[name] |= {
                "falls": sum(share(r.hidden) < share(r.twin) for r in reactions),
                "mean_twin": statistics.mean(share(r.twin) for r in reactions),
                "mean_hidden": statistics.mean(share(r.hidden) for r in reactions),
            }
    told["follows"] = sum(r.after.feed - r.before.feed >= MUCH or r.after.feed >= MANY for r in reactions)
    told["feeds_to_half_median"] = statistics.median(r.feeds_to_half for r in reactions)
    return told


def _more_than_plain(probe: Probe) -> bool:
    assert probe.no_sequence is not None
    plain_before, plain_after = probe.no_sequence
    return probe.new.after.rank - probe.new.before.rank > plain_after - plain_before


def _text(probes: Sequence[Probe], result: dict[str, Any]) -> str:
    lines = [
        *_table(probes, f"{NUM_ACTIONS} positive actions", lambda r: (r.before, r.after), with_half=True),
        "",
        *_table(probes, f"{NUM_ACTIONS} negative actions", lambda r: (r.twin, r.hidden), with_half=False),
        "",
        f"Share of the top {TOP} that has the category: before → after, means of {result['people']} people who each "
        f"act on other items; model `{result['model']}`. *rank*: `/v1/rank` on {NUM_FIXED} fixed items; *by score*: "
        "the feed's candidates by the model's score alone; *feed*: the feed as it is served. People with a past did "
        f"{PAST_ACTIONS} positive actions on any items before. Negative actions begin where the feed holds 3 of {TOP} "
        "of the category, after positive ones if need be, and *before* leaves out the items that they are about: a "
        "share does not fall because they were seen. *half*: feeds until the share is half of that after the positive "
        f"actions, with one more positive action elsewhere before each; {MOST_ELSEWHERE} stands for longer.",
        "",
    ]
    for kind, words in (("new", "new people"), ("past", f"people with {PAST_ACTIONS} actions")):
        lines += _summary_lines(result[kind], words, len(probes))
    if "rises_more_than_no_sequence" in result:
        count = result["rises_more_than_no_sequence"]
        lines.append(
            f"- new people, rank: rises more than with the ranker without the sequence: {count} of {len(probes)}"
        )
    lines.append(f"- last POST to the changed answer: longest {result['seconds_max']:.2f} s")
    return "\n".join(lines)


def _summary_lines(told: dict[str, Any], who: str, count: int) -> list[str]:
    lines = []
    for name in COLUMNS:
        one = told[name]
        text = (
            f"- {who}, {name.replace('_', ' ')}: rises for {one['rises']} of {count}, mean {one['mean_before']:.1%} → "
        )
        text += f"{one['mean_after']:.1%}"
        if "falls" in one:
            text += f"; falls for {one['falls']} of {count}, mean {one['mean_twin']:.1%} → {one['mean_hidden']:.1%}"
        lines.append(text)
    lines.append(
        f"- {who}: the feed rises by {MUCH * 100:.0f} points or to {MANY:.0%} for {told['follows']} of {count}; half "
        f"of it is gone after {told['feeds_to_half_median']:.1f} feeds (median)"
    )
    return lines


def _table(
    probes: Sequence[Probe],
    title: str,
    of: Callable[[Reaction], tuple[Shares, Shares | None]],
    *,
    with_half: bool,
) -> list[str]:
    kinds = ("new: rank", "by score", "feed", "with a past: rank", "by score", "feed")
    more = ("half", "no sequence") if with_half else ()
    lines = [
        f"| {title} on | {' | '.join([*kinds, *more])} |",
        "|---|" + "---:|" * (len(kinds) + len(more)),
    ]
    for probe in probes:
        cells = []
        for reaction in (probe.new, probe.past):
            first, then = of(reaction)
            cells += [_change(getattr(first, name), getattr(then, name, None)) for name in COLUMNS]
        if with_half:
            cells += [f"{probe.new.feeds_to_half:.0f}", _change(*(probe.no_sequence or (None, None)))]
        lines.append(f"| {probe.category} ({probe.items}) | {' | '.join(cells)} |")
    return lines


def _change(before: float | None, after: float | None) -> str:
    return "" if before is None or after is None else f"{before:.0%} → {after:.0%}"


def _bars(probes: Sequence[Probe]) -> Bars:
    series = {
        "before": [probe.new.before.feed for probe in probes],
        f"after {NUM_ACTIONS} positive actions": [probe.new.after.feed for probe in probes],
    }
    if all(probe.new.hidden is not None for probe in probes):
        series |= {
            "before the negative ones": [probe.new.twin.feed for probe in probes],
            f"after {NUM_ACTIONS} negative ones": [probe.new.hidden.feed for probe in probes if probe.new.hidden],
        }
    return Bars(f"share of a new person's top {TOP}", [probe.category for probe in probes], series)
