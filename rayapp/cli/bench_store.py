"""`rayapp bench ingest`, `rayapp bench memory` and `rayapp bench crash`: the real-time state, measured."""

import sys
from pathlib import Path

import click

from rayapp.cli.options import store_option, write_option

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON line instead of the table.")


@click.command("crash")
@click.option(
    "--target",
    "targets",
    type=click.Choice(["replica", "serve", "redis"]),
    multiple=True,
    default=("replica", "serve", "redis"),
    show_default=True,
    help="What is killed; may be given again.",
)
@click.option("--rounds", type=click.IntRange(1), default=20, show_default=True, help="Kills of each target.")
@json_option
@write_option
def crash(targets: tuple[str, ...], rounds: int, as_json: bool, write: Path | None) -> None:
    """Kill real processes (SIGKILL) while clients post events, and count every acknowledged event afterwards.

    Exits with 1 when one is lost, in the log twice, or out of order. Needs redis-server for the target redis; 20 kills
    of the whole instance take about 10 minutes.
    """
    from benchmarks.crash import run_crash

    if not run_crash(tuple(dict.fromkeys(targets)), rounds, as_json, write):
        sys.exit(1)


@click.command("ingest")
@click.option("--seconds", type=click.FloatRange(1), default=20.0, show_default=True, help="Measured, after a warm-up.")
@click.option(
    "--rate", type=click.FloatRange(1), default=6_000.0, show_default=True, help="Events per second that are offered."
)
@click.option("--clients", type=click.IntRange(1), default=4, show_default=True, help="Connections that post.")
@store_option
@json_option
@write_option
def ingest(seconds: float, rate: float, clients: int, store_url: str | None, as_json: bool, write: Path | None) -> None:
    """Durable events per second over real HTTP while feeds are read, and how soon a feed shows them.

    Batches of 100 events of 100 users (Zipf), 5 feeds per second beside them. Afterwards the log is exported and every
    acknowledged event is counted; exits with 1 when one is lost or in the log twice. The clients share the machine.
    """
    from benchmarks.ingest import run_ingest

    if not run_ingest(seconds, rate, clients, store_url, as_json, write):
        sys.exit(1)


@click.command("memory")
@click.option("--users", type=click.IntRange(1), default=20_000, show_default=True, help="Users, 100 actions each.")
@json_option
@write_option
def memory(users: int, as_json: bool, write: Path | None) -> None:
    """Bytes of a user with 100 actions in LMDB and in Redis, everything included. Needs redis-server."""
    from benchmarks.store_memory import run_memory

    run_memory(users, as_json, write)


BENCHES = (crash, ingest, memory)
