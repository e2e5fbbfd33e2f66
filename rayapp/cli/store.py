"""`rayapp export`, `rayapp parity` and `rayapp store`: the way between the sequence store and the logs."""

import datetime
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rayapp.cli.options import moment, root_option, store_option
from rayapp.root.places import SERVING

if TYPE_CHECKING:
    from rayapp.pipeline.parity import Parity
    from rayapp.pipeline.statistics_parity import StatisticsParity
    from rayapp.store import Store

FOLLOW_S = 300.0


@click.command("export")
@root_option
@store_option
@click.option("--follow", is_flag=True, help="Go on, a round every --every seconds, until Ctrl-C.")
@click.option(
    "--every",
    "every_s",
    type=click.FloatRange(1),
    default=FOLLOW_S,
    show_default=True,
    help="Seconds between two rounds. Each writes a file a bucket, which `rayapp compact` merges.",
)
def export(root: Path, store_url: str | None, follow: bool, every_s: float) -> None:
    """Bring what the feed took in and gave out into the logs, each row exactly once.

    Events, requests, users and items. Run it from cron, or with --follow beside a running graph. It may be killed at
    any moment and goes on where it stopped.
    """
    from rayapp.contracts.errors import RayappError
    from rayapp.store.opening import open_store

    store = open_store(root, store_url)
    try:
        while True:
            try:
                _export_all(root, store)
            except RayappError as error:
                if not follow:
                    raise
                click.echo(f"{error}; trying again in {every_s:g} s", err=True)
            if not follow:
                return
            time.sleep(every_s)
    except KeyboardInterrupt:
        click.echo("stopped", err=True)
    finally:
        store.close()


def _export_all(root: Path, store: "Store") -> None:
    from rayapp.pipeline.export import export_all
    from rayapp.root.places import EXPORTS
    from rayapp.root.publish import exclusive

    with exclusive(root / EXPORTS, "an export"):
        total = export_all(root, store, time.time_ns() // 1_000_000)
    click.echo(
        f"{total.events:,} events, {total.requests:,} requests, {total.users:,} users, {total.items:,} items exported"
    )


@click.group("store")
def store_group() -> None:
    """The sequence store: restore a lost one, see how full it is."""


@store_group.command("rebuild")
@root_option
@store_option
def rebuild(root: Path, store_url: str | None) -> None:
    """Put all events of the log into the store, where they are missing.

    A store that was lost or moved away comes back with what was exported. It may run beside a graph.
    """
    from rayapp.pipeline.restore import restore_store

    click.echo(f"{restore_store(root, store_url):,} events restored")


@store_group.command("stats")
@root_option
@store_option
def stats(root: Path, store_url: str | None) -> None:
    """Show how full the store and its outbox are."""
    from rayapp.store.opening import open_store

    store = open_store(root, store_url)
    found = store.stats()
    store.close()
    limit = f" of {found.max_bytes:,}" if found.max_bytes else ""
    click.echo(f"outbox: {found.outbox_rows:,} of {found.max_outbox_rows:,} rows\nbytes: {found.used_bytes:,}{limit}")


@store_group.command("use")
@root_option
@click.argument("url")
def use(root: Path, url: str) -> None:
    """Move the root to the store at URL: from now on every command, and the graph's next start, use it.

    The sequences come from the log with the graph's next start. Refused while the store in use holds what nobody has
    exported; one that does not answer any more is left.
    """
    from rayapp.root.publish import exclusive
    from rayapp.store.address import address_of
    from rayapp.store.opening import move_store

    with exclusive(root / SERVING, "moving to another store"):
        before = move_store(root, url)
    click.echo(f"{root}: {before or 'no store yet'} -> {address_of(root, url)}")


@click.command("parity")
@root_option
@click.option("--since", help="Only requests from this day or moment on: 2026-05-03 or 2026-05-03T00:00+08:00.")
@click.option("--until", help="Only requests before it.")
@click.option(
    "--at-least",
    type=click.FloatRange(0, 1),
    default=1.0,
    show_default=True,
    help="Exit with 1 when a smaller share is equal.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line instead of text.")
def parity(root: Path, since: str | None, until: str | None, at_least: float, as_json: bool) -> None:
    """Did the server read what training will read? Cuts logged requests' sequences again and compares the bytes; counts
    the statistics again and compares the numbers.

    Run it from cron behind `rayapp export`. What can't be compared is counted apart: requests of erased users, of
    models that are gone, and imported ones.
    """
    from rayapp.cli.progress import progress
    from rayapp.launch.runtime import local_ray
    from rayapp.pipeline import parity as comparison
    from rayapp.pipeline.statistics_parity import statistics_parity
    from rayapp.root.facts import read_root

    read_root(root)
    since_ms = moment(since, "--since") if since else None
    until_ms = moment(until, "--until") if until else None
    with local_ray(spare_cpus=0):
        found = comparison.parity(root, since_ms, until_ms, progress("sequences"))
        numbers = statistics_parity(root, since_ms, until_ms, progress("statistics"))
    click.echo(comparison.as_json(found, numbers) if as_json else _parity_text(found, numbers))
    if any(share is not None and share < at_least for share in (found.share, numbers.share)):
        sys.exit(1)


def _parity_text(found: "Parity", numbers: "StatisticsParity") -> str:
    lines = [
        f"{found.equal:,} of {found.compared:,} requests are equal ({found.share:.4%})"
        if found.share is not None
        else "no request can be compared"
    ]
    if numbers.share is not None:
        lines.append(f"statistics: {numbers.equal:,} of {numbers.compared:,} are equal ({numbers.share:.4%})")
    if numbers.left_out:
        lines.append(f"left out: {numbers.left_out:,} whose statistics count rows that are not exported yet")
    lines += [f"{request_id}: other statistics than the log says" for request_id in numbers.different]
    lines += [f"left out: {number:,} {reason}" for reason, number in found.left_out.items()]
    for m in found.mismatches:
        at = datetime.datetime.fromtimestamp(m.timestamp_ms / 1000, datetime.UTC).isoformat(timespec="milliseconds")
        lines.append(
            f"{m.request_id} at {at}, model {m.model_version}: the log has {m.length} actions; served: {m.served}"
        )
    return "\n".join(lines)


COMMANDS = (export, parity, store_group)
