"""`rayapp import` and what else brings data in and in shape: fetch, init-domain, windows, erase, compact."""

import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from rayapp.cli.options import moment, root_option, store_option
from rayapp.sources.data_sets import names, summaries

PATH = click.Path(path_type=Path, exists=True)
QUARANTINED_EXIT = 3


@click.command("fetch", epilog=summaries())
@click.argument("name", type=click.Choice(names()))
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Directory for the files.")
@click.option(
    "--users", "num_users", type=click.IntRange(1), help="People, if made up; 600 unless told, of a shop 2,000."
)
@click.option(
    "--items", "num_items", type=click.IntRange(1), help="Items, if made up; 1,200 unless told, of news 4,000."
)
@click.option(
    "--days", "num_days", type=click.IntRange(1), help="Days, if made up; 20 unless told, of news 10, of a shop 90."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Same seed, same files.")
@click.option("--original-times", is_flag=True, help="MovieLens as of 1997 and 1998, not moved to end yesterday.")
def fetch(
    name: str,
    out: Path,
    num_users: int | None,
    num_items: int | None,
    num_days: int | None,
    seed: int,
    original_times: bool,
) -> None:
    """Write a public or made-up data set as files that `rayapp import --domain NAME` reads."""
    from rayapp.sources import Size
    from rayapp.sources.data_sets import data_set

    def in_ray(count: int, part: Callable[[int], dict[str, Any]]) -> None:
        from rayapp.cli.progress import progress
        from rayapp.launch.runtime import local_ray
        from rayapp.pipeline.tasks import run_tasks

        with local_ray(spare_cpus=0):
            run_tasks(count, part, progress("users, lists and actions"))

    chosen = data_set(name)
    size = Size(seed=seed, original_times=original_times, num_users=num_users, num_items=num_items, num_days=num_days)
    files = chosen.fetch(out.resolve(), size, in_ray)
    users = f" --users {files.users}" if files.users else ""
    click.echo(
        f"rayapp import --domain {chosen.domain} --events {files.events} --requests {files.requests} "
        f"--items {files.items}{users}"
    )


@click.command("init-domain")
@click.option("--events", "event_path", type=PATH, required=True, help="Your event files, or one of them.")
@click.option("--items", "item_path", type=PATH, help="One of your item files: its columns become attributes.")
@click.option("--requests", "request_path", type=PATH, help="Your files of shown lists, if they have their own.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("domain.toml"),
    show_default=True,
    help="The file to write.",
)
@click.option("--user", help="Column of the user's id, where the guess is wrong.")
@click.option("--item", help="Column of the item's id.")
@click.option("--time", "timestamp", help="Column of the time.")
@click.option("--action", help="Column that names the action.")
def init_domain(
    event_path: Path,
    item_path: Path | None,
    request_path: Path | None,
    out: Path,
    user: str | None,
    item: str | None,
    timestamp: str | None,
    action: str | None,
) -> None:
    """Write a first domain file from a sample of your own files. Read it, correct it, then import with it."""
    from rayapp.importing.guess import guess_domain

    if out.exists():
        raise click.ClickException(f"{out} exists; remove it or choose another --out")
    named = {"user_id": user, "item_id": item, "timestamp": timestamp, "action": action}
    guess = guess_domain(event_path, item_path, {k: v for k, v in named.items() if v}, request_path)
    out.write_text(guess.text, encoding="utf-8")
    click.echo(f"wrote {out}: check the kinds of the actions, the heads and the times")
    click.echo(f'the goal is {guess.goal!r}; another one is chosen by positive_head = "…", the name of a head')
    for block, columns in guess.left_out.items():
        click.echo(f"{block} leaves out: {', '.join(columns)}")
    lists = ["--requests", str(guess.requests)] if guess.requests else []
    items = ["--items", str(item_path or "ITEMS")]
    line = ["rayapp", "import", "--domain", str(out), "--events", str(event_path), *lists, *items, "--root", "data"]
    click.echo(f"\n{shlex.join(line)}")


@click.command("import")
@root_option
@click.option("--domain", required=True, help="Your domain.toml, or a built-in one's name (docs/data.md).")
@click.option("--events", type=PATH, multiple=True, help="Event files or directories; may be given again.")
@click.option("--requests", type=PATH, multiple=True, help="Shown lists: a list a row, or an impression a row.")
@click.option("--items", type=PATH, multiple=True, help="Item files; needed the first time.")
@click.option("--users", type=PATH, multiple=True, help="User files, where the domain has user attributes.")
@click.option("--buckets", type=click.IntRange(1, 4096), default=16, show_default=True, help="For a new root: parts "
              "that users are spread over. Take as many as keep one part's events near 300 MB.")  # fmt: skip
@click.option("--strict", is_flag=True, help=f"Exit with {QUARANTINED_EXIT} when any row was "
              "quarantined, or the summary begins with a warning.")  # fmt: skip
def import_command(
    root: Path,
    domain: str,
    events: tuple[Path, ...],
    requests: tuple[Path, ...],
    items: tuple[Path, ...],
    users: tuple[Path, ...],
    buckets: int,
    strict: bool,
) -> None:
    """Bring your own log into a root: Parquet, CSV, NDJSON or JSON arrays (also .gz, .zst), checked row by row.

    Rows that can't be used go to a quarantine file with file, row and reason; the others are taken. The summary begins
    with warnings about the whole, such as items that the catalogue does not know. Rows that the log
    holds already are counted and left alone, so an import can be repeated, and days can be added one after another.
    """
    from rayapp.cli.progress import progress
    from rayapp.cli.summary import print_summary
    from rayapp.importing.domains import load_domain
    from rayapp.importing.importer import Inputs, import_files
    from rayapp.launch.runtime import local_ray
    from rayapp.root.facts import check_writable
    from rayapp.root.places import EXPORTS
    from rayapp.root.publish import exclusive

    if not (events or requests or items or users):
        raise click.UsageError("give at least one of --events, --requests, --items, --users")
    domain_file = load_domain(domain)
    check_writable(root)
    absolute = [[path.resolve() for path in paths] for paths in (events, requests, items, users)]
    with exclusive(root, "an import"), exclusive(root / EXPORTS, "an import"), local_ray(spare_cpus=0):
        now_ms = int(time.time() * 1000)
        summary = import_files(root, domain_file, Inputs(*absolute), now_ms=now_ms, num_buckets=buckets, stage=progress)
    print_summary(summary)
    if strict and (summary.quarantined or summary.warnings):
        sys.exit(QUARANTINED_EXIT)


@click.command("windows")
@root_option
@click.option("--since", required=True, help="First day, or a moment: 2026-05-03 or 2026-05-03T00:00+08:00.")
@click.option("--until", required=True, help="The day or moment behind the last request.")
@click.option("--history", type=click.IntRange(1, 10_000), default=100, show_default=True, help="Actions a user.")
def windows(root: Path, since: str, until: str, history: int) -> None:
    """Build the training window of some days: histories, requests with labels, and the log's statistics.

    A window is built once and never changed. Its last requests need the attribution time of the domain to collect
    their actions, so a window whose end is nearer than that to now is refused.
    """
    from rayapp.cli.progress import progress
    from rayapp.launch.runtime import local_ray
    from rayapp.pipeline.made_lists import is_made_up, told_lists
    from rayapp.pipeline.statistics import count_statistics
    from rayapp.pipeline.windows import Window, build, check_closed, is_current, window_name
    from rayapp.root.facts import read_root
    from rayapp.root.publish import exclusive

    domain, _ = read_root(root)
    window = Window(moment(since, "--since"), moment(until, "--until"), history)
    if window.until_ms <= window.since_ms:
        raise click.UsageError("--until must be later than --since")
    check_closed(window, domain, now_ms=int(time.time() * 1000))
    name = window_name(window.since_ms, window.until_ms)
    with exclusive(root, "building a window"), local_ray(spare_cpus=0):
        is_current(root, name, domain)  # one from before the domain gained a head is built anew
        statistics, counted = count_statistics(root, domain, progress("statistics"))
        manifest = build(root, name, window, domain, progress("histories and requests"))
    click.echo(f"statistics/{statistics}: " + ("counted" if counted else "counted before"))
    total = {k: sum(b[k] for b in manifest["buckets"]) for k in ("requests", "users", "events")}
    click.echo(
        f"windows/{name}: {total['requests']:,} requests, {total['users']:,} users with {total['events']:,} actions"
    )
    if is_made_up(root, name):
        click.echo(told_lists(root, name))


@click.command("erase")
@root_option
@store_option
@click.argument("user_ids", nargs=-1, required=True)
def erase(root: Path, store_url: str | None, user_ids: tuple[str, ...]) -> None:
    """Forget what these users did so far: in the store at once, and in every window, statistic and import to come.

    `rayapp compact` then removes it from the logs on disk. It may run beside a graph.
    """
    from rayapp.root.erasure import erase_user
    from rayapp.store.opening import open_store

    store = open_store(root, store_url)
    for user_id in user_ids:
        now_ms = time.time_ns() // 1_000_000
        erase_user(root, user_id, now_ms)
        store.erase(user_id, now_ms)
    store.close()
    click.echo(f"{len(user_ids)} users forgotten; `rayapp compact --root {root}` removes what the logs hold of them")


@click.command("compact")
@root_option
def compact(root: Path) -> None:
    """Merge the logs' small files, and remove erased users from logs, windows, statistics and the users' table."""
    from rayapp.cli.progress import progress
    from rayapp.launch.runtime import local_ray
    from rayapp.pipeline import compact as compaction
    from rayapp.root.facts import read_root
    from rayapp.root.places import EXPORTS
    from rayapp.root.publish import exclusive

    read_root(root)
    with exclusive(root, "a compaction"), exclusive(root / EXPORTS, "a compaction"), local_ray(spare_cpus=0):
        done = compaction.compact(root, progress("buckets"))
    click.echo(
        f"log files: {done.files_before} before, {done.files_after} after; {done.files_removed} unlisted removed\n"
        f"rows: {done.copies_dropped:,} copies dropped, {done.rows_erased:,} of erased users removed, "
        f"{done.windows_rewritten} windows rewritten"
    )


COMMANDS = (fetch, init_domain, import_command, windows, erase, compact)
