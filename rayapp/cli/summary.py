"""The table that `rayapp import` ends with."""

import datetime
from collections import Counter
from collections.abc import Sequence

import click

from rayapp.importing.log_counts import LogCounts, Summary

MOST_REASONS = 20


def print_summary(summary: Summary) -> None:
    """Counts of everything, and where the quarantine lies. What is odd about the whole comes first."""
    for warning in summary.warnings:
        click.echo(f"\nwarning: {warning}")
    click.echo(f"\n{'':16}{'read':>14}{'accepted':>14}{'duplicates':>14}{'users':>12}")
    for name, counts in (("events", summary.events), ("requests", summary.requests)):
        if counts.read:
            cells = (counts.read, counts.accepted, counts.duplicates, counts.users)
            click.echo(f"{name:16}" + "".join(f"{n:>{w},}" for n, w in zip(cells, (14, 14, 14, 12), strict=True)))
    for kind, entity in summary.entities.items():
        click.echo(f"{kind:16}{entity['read']:>14,}{entity['total']:>14,}{entity['duplicates']:>14,}   (in all)")
    for name, counts in (("events", summary.events), ("requests", summary.requests)):
        if counts.accepted:
            click.echo(f"days of {name}: {_days(counts)}")
    if summary.actions:
        click.echo("actions: " + ", ".join(f"{name} {n:,}" for name, n in summary.actions.most_common()))
    if summary.events.accepted or summary.requests.accepted:
        click.echo(f"items: {summary.items_seen:,} of the catalogue occur")
    if looked_at := summary.requests.shape.lists_looked_at:
        share = summary.requests.shape.lists_with_label / looked_at
        click.echo(f"lists with a label: {share:.0%} of {looked_at:,} looked at")
    for name, counts in (("events", summary.events), ("shown items", summary.requests)):
        if counts.items:
            known = counts.items - counts.unknown_items
            click.echo(f"{name} whose item the catalogue knows: {known / counts.items:.1%}")
        if counts.erased:
            click.echo(f"{name} of erased users, passed over: {counts.erased:,}")
        if counts.unknown_items:
            click.echo(f"{name} on items that the catalogue lacks: {counts.unknown_items:,} (kept)")
    if summary.lists_made_of and not summary.requests.accepted:
        click.echo(_without_lists(summary.lists_made_of))
    for note, count in summary.notes.counts.most_common():
        click.echo(f"{note}: {count:,}{summary.example(note)}")
    _quarantine(summary.reasons, summary)


def _without_lists(actions: Sequence[str]) -> str:
    return (
        "shown lists: none, so `rayapp train` makes them, each of an item that a user chose "
        f"({', '.join(actions)}) and others of that time.\n"
        "    Statistics then hold counts of actions and no rates, and models are compared by recall@20 over the whole\n"
        "    catalogue. Once the graph serves, its own request log takes over (docs/data.md#logs-without-shown-lists)."
    )


def _days(counts: LogCounts) -> str:
    days = sorted(counts.days)
    first, last = (datetime.date.fromisoformat(d) for d in (days[0], days[-1]))
    missing = (last - first).days + 1 - len(days)
    gap = f", {missing} days between without any" if missing else ""
    return f"{first} to {last}, {len(days)} days{gap}"


def _quarantine(reasons: Counter[str], summary: Summary) -> None:
    if not reasons:
        click.echo("quarantined: nothing")
        return
    click.echo(f"quarantined: {summary.quarantined:,}, see {summary.quarantine}")
    for reason, n in reasons.most_common(MOST_REASONS):
        click.echo(f"{n:>12,}  {reason}{summary.example(reason)}")
    if len(reasons) > MOST_REASONS:
        click.echo(f"{'':12}  and {len(reasons) - MOST_REASONS} more reasons")
