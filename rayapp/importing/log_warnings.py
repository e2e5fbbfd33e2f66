"""What makes a whole import doubtful, though every row of it is good. `--strict` makes errors of it."""

import datetime
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Final

from rayapp.contracts.config import DAY_MS
from rayapp.importing.domains.layout import DomainFile
from rayapp.importing.log_counts import LogCounts, Summary

MOST_UNKNOWN: Final = 0.2
"""Share of items that the catalogue lacks; with more, something may be wrong with the ids."""
MOST_OF_ONE: Final = 0.05
"""Share of a log that one user or one item has."""
TIMES_THE_MEAN: Final = 3
"""A log of few users gives each a large share; one that stands out has so many times the mean."""
LONGEST_GAP_DAYS: Final = 2 * 365
LONGEST_SPAN_DAYS: Final = 30 * 365
FEW: Final = 0.05
"""Share of events that lie years apart from the others."""
ENOUGH_ROWS: Final = 20


def warnings_of(summary: Summary, domain_file: DomainFile) -> list[str]:
    """In the order of what they cost."""
    logs = (("events", summary.events), ("shown items", summary.requests))
    return [
        *(text for said, counts in logs for text in _unknown_items(said, counts)),
        *_labels(summary.requests),
        *_span("events", summary.events),
        *_span("shown lists", summary.requests),
        *_actions(summary, domain_file),
        *_alike(summary),
        *(text for said, counts in logs for text in _one_for_all(said, counts)),
    ]


def _unknown_items(said: str, counts: LogCounts) -> Iterator[str]:
    if counts.unknown_items > MOST_UNKNOWN * counts.items:
        known = counts.items - counts.unknown_items
        yield (
            f"the catalogue knows the item of only {known / counts.items:.0%} of the {said} ({known:,} of "
            f"{counts.items:,}), and lacks {counts.unknown_item!r}; are ids written the same way in both files?"
        )


def _labels(requests: LogCounts) -> Iterator[str]:
    if requests.shape.lists_looked_at and not requests.shape.lists_with_label:
        yield (
            f"no shown list has a label (of {requests.shape.lists_looked_at:,} looked at): nobody acted on a shown "
            "item within `attribution`; are users, items and times of the events written as those of the lists?"
        )


def _span(said: str, counts: LogCounts) -> Iterator[str]:
    first_ms, last_ms = counts.shape.first_ms, counts.shape.last_ms
    if first_ms is None or last_ms is None:
        return
    if first_ms == last_ms and counts.accepted >= ENOUGH_ROWS:
        yield f"all {counts.accepted:,} {said} have one time, of {_day(first_ms)}: is it that of the export?"
    days = [(datetime.date.fromisoformat(day), rows) for day, rows in sorted(counts.days.items())]
    gap_days = [(after - before).days for (before, _), (after, _) in pairwise(days)]
    if gap_days and max(gap_days) > LONGEST_GAP_DAYS:
        apart = gap_days.index(max(gap_days)) + 1
        parts = (days[:apart], days[apart:])
        few, odd = min((sum(rows for _, rows in part), part) for part in parts)
        if few <= FEW * counts.accepted:
            yield f"{few:,} of {counts.accepted:,} {said} lie years apart from the others, as those of {odd[0][0]}"
    if (last_ms - first_ms) / DAY_MS > LONGEST_SPAN_DAYS:
        yield f"the {said} span {_day(first_ms)} to {_day(last_ms)}, more than a log can: check the time's unit"


def _actions(summary: Summary, domain_file: DomainFile) -> Iterator[str]:
    """Only of a log's first import: a day may lack an action that other days have."""
    if not summary.events.is_first or not summary.events.accepted:
        return
    rules = [layout.action for layout in domain_file.events]
    by_word = any(rule.column and not rule.names for rule in rules)
    actions = domain_file.domain.vocabulary.actions
    written = {action.name for action in actions if action.in_sequence} if by_word else set()
    written |= {name for rule in rules for name in rule.actions}
    if never := [action.name for action in actions if action.name in written - summary.actions.keys()]:
        yield f"declared, and never in the events: {', '.join(never)}; is each written as the domain file has it?"


def _alike(summary: Summary) -> Iterator[str]:
    for said, one, other in (
        ("users", summary.events.shape.users, summary.requests.shape.users),
        ("items", summary.events.shape.items, summary.requests.shape.items),
    ):
        both = type(one)(dict(one.form_by_id), one.limit)
        both += other
        if said == "items":
            both += summary.catalogue_ids
        if alike := both.alike:
            yield (
                f"{len(alike):,} {said} have ids that differ only by case, blanks or leading zeros, as "
                f"{' and '.join(map(repr, min(alike)[:3]))}: each is another one here"
            )


def _one_for_all(said: str, counts: LogCounts) -> Iterator[str]:
    rows = counts.shape.rows
    # A list is one row of its user.
    of_users: tuple[str, Counter[str], int, int] = ("user", counts.shape.rows_by_user, counts.accepted, counts.users)
    of_items = ("item", counts.shape.rows_by_item, rows, len(counts.shape.items.form_by_id))
    for one, counted, total, distinct in (of_users, of_items):
        for name, most in counted.most_common(1):
            share = most / max(total, 1)
            if total >= ENOUGH_ROWS and share > MOST_OF_ONE and share * distinct > TIMES_THE_MEAN:
                what = "shown lists" if one == "user" and said != "events" else said
                yield (
                    f"one {one}, {name!r}, has {share:.0%} of the {what} ({most:,} of {total:,}): a bot, or a value "
                    "that stands for a missing one?"
                )


def _day(ms: int) -> str:
    return datetime.datetime.fromtimestamp(ms / 1000, datetime.UTC).date().isoformat()
