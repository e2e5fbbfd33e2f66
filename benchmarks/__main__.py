"""`python -m benchmarks NAME`, from a checkout: what the documentation says in figures, each measured by one command.

What a bench needs is imported when it runs, so that `--help` is quick.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from rayapp.cli.learn import moments, since_option, until_option
from rayapp.cli.main import run
from rayapp.cli.options import GROUP_SETTINGS, preset_option, root_option, store_option, write_option

F = TypeVar("F", bound=Callable[..., Any])
graph_root_option = click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False, resolve_path=True),
    default=Path("rayapp-data/bench"),
    show_default=True,
    help="A root of the bench's own, never yours: made when it is not there, kept for the next run.",
)


def output_options(function: F) -> F:
    """`--json` and `--write FILE`."""
    as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON line instead of tables.")
    return as_json(write_option(function))


@click.group("python -m benchmarks", context_settings=GROUP_SETTINGS)
def cli() -> None:
    """Measurements of rayapp, each one command that prints its figures and what they should be.

    They run from a checkout (`cd` into it), need nothing but the machine, and clean up what they start; where one needs
    more or takes longer than a few minutes, its --help says so. What they measured is in docs/benchmarks; to measure
    models on data of your own, see `rayapp evaluate`, `rayapp compare` and `rayapp react`.
    """


@cli.command("sequences")
@click.option(
    "--events", type=click.IntRange(100_000), default=20_000_000, show_default=True, help="Events of the log."
)
@click.option("--users", type=click.IntRange(1), help="Users; a fiftieth of the events unless told.")
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True, help="Each time is a median of these.")
@output_options
def sequences(events: int, users: int | None, repeats: int, as_json: bool, write: Path | None) -> None:
    """Importing a log and building histories, against Polars and Ray Data's map_groups; memory; bytes on disk.

    Needs the `bench` extra (Polars), and at 20 million events about 15 GB of disk and 15 minutes on 2 cores.
    """
    from benchmarks.sequences import run_sequences

    run_sequences(events, users, repeats, as_json, write)


@cli.command("train")
@preset_option("paper")
@click.option("--steps", type=click.IntRange(2), default=12, show_default=True, help="Timed steps of each way.")
@output_options
def train(preset: str, steps: int, as_json: bool, write: Path | None) -> None:
    """Request-centred training against a row per shown item, and Ray Train against a plain loop."""
    from benchmarks.train import run_train

    run_train(preset, steps, as_json, write)


@cli.command("sizes")
@click.option("--data", type=click.Choice(["synthetic", "news", "movielens"]), multiple=True, help="Logs; all of them.")
@click.option("--lists", type=click.IntRange(100), multiple=True, help="Sizes; 500, 3,000 and 30,000 unless told.")
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True, help="Trainings of each size.")
@graph_root_option
@output_options
def sizes(
    data: tuple[str, ...], lists: tuple[int, ...], seeds: int, root: Path, as_json: bool, write: Path | None
) -> None:
    """What the first training of logs of several sizes puts live, held against the better baseline.

    Cells that were measured before are kept in ROOT/cells. All of them take more than an hour on 2 cores.
    """
    from benchmarks.sizes import DATA, LISTS, run_sizes

    run_sizes(root, data or DATA, lists or LISTS, seeds, as_json, write)


@cli.command("score")
@preset_option("paper")
@click.option("--repeats", type=click.IntRange(1), default=9, show_default=True, help="A ratio is a median of these.")
@output_options
def score(preset: str, repeats: int, as_json: bool, write: Path | None) -> None:
    """Scoring one user's candidates on one thread, against a plain PyTorch module; p50 and p99 of whole requests.

    Trains its own weights first; takes about two minutes.
    """
    from benchmarks.score import run_score

    run_score(preset, repeats, as_json, write)


@cli.command("calibration")
@root_option
@click.option("--people", type=click.IntRange(1), default=300, show_default=True, help="Drawn from the log.")
@click.option(
    "--weight",
    "weights",
    type=click.FloatRange(0.01, 0.99),
    multiple=True,
    help="0.1, 0.2, 0.3, 0.5 and 0.8 unless told.",
)
@output_options
def calibration(root: Path, people: int, weights: tuple[float, ...], as_json: bool, write: Path | None) -> None:
    """The price of calibrated re-ranking: recall of the next engaged item, by its weight, through the served path.

    Needs a trained root, such as the one of `rayapp demo`.
    """
    from benchmarks.calibration import run_calibration

    run_calibration(root, people, weights or (0.1, 0.2, 0.3, 0.5, 0.8), as_json, write)


@cli.command("batch")
@output_options
def batch(as_json: bool, write: Path | None) -> None:
    """The batch job against two plain processes side by side, and its memory at 4 times the rows."""
    from benchmarks.batch import run_batch

    run_batch(as_json, write)


@cli.command("ingest")
@click.option("--seconds", type=click.FloatRange(1), default=20.0, show_default=True, help="Measured, after a warm-up.")
@click.option(
    "--rate", type=click.FloatRange(1), default=6_000.0, show_default=True, help="Events per second that are offered."
)
@click.option("--clients", type=click.IntRange(1), default=4, show_default=True, help="Connections that post.")
@store_option
@output_options
def ingest(seconds: float, rate: float, clients: int, store_url: str | None, as_json: bool, write: Path | None) -> None:
    """Durable events per second over real HTTP while feeds are read, and how soon a feed shows them.

    Batches of 100 events of 100 users (Zipf), 5 feeds per second beside them. Afterwards the log is exported and every
    acknowledged event is counted; exits with 1 when one is lost or in the log twice. The clients share the machine.
    """
    from benchmarks.ingest import run_ingest

    if not run_ingest(seconds, rate, clients, store_url, as_json, write):
        sys.exit(1)


@cli.command("crash")
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
@output_options
def crash(targets: tuple[str, ...], rounds: int, as_json: bool, write: Path | None) -> None:
    """Kill real processes (SIGKILL) while clients post events, and count every acknowledged event afterwards.

    Exits with 1 when one is lost, in the log twice, or out of order. Needs redis-server for the target redis; 20 kills
    of the whole instance take about 10 minutes.
    """
    from benchmarks.crash import run_crash

    if not run_crash(tuple(dict.fromkeys(targets)), rounds, as_json, write):
        sys.exit(1)


@cli.command("memory")
@click.option("--users", type=click.IntRange(1), default=20_000, show_default=True, help="Users, 100 actions each.")
@output_options
def memory(users: int, as_json: bool, write: Path | None) -> None:
    """Bytes of a user with 100 actions in LMDB and in Redis, everything included. Needs redis-server."""
    from benchmarks.store_memory import run_memory

    run_memory(users, as_json, write)


@cli.command("serve")
@graph_root_option
@preset_option("paper")
@click.option(
    "--seconds", type=click.FloatRange(1), default=8.0, show_default=True, help="Of load, an opponent a round."
)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Medians are over these.")
@output_options
def serve(root: Path, preset: str, seconds: float, rounds: int, as_json: bool, write: Path | None) -> None:
    """Answers a second and their times, against Ray's default flags and a hand-written application.

    Real HTTP, 100 candidates, 100 actions. Takes about 8 minutes on 2 cores.
    """
    from benchmarks.serve import run_serve

    run_serve(root, preset, seconds, rounds, as_json, write)


@cli.command("faults")
@graph_root_option
@preset_option("paper")
@click.option(
    "--seconds", type=click.FloatRange(20), default=120.0, show_default=True, help="Of load, over all phases."
)
@output_options
def faults(root: Path, preset: str, seconds: float, as_json: bool, write: Path | None) -> None:
    """What clients see while replicas are killed or hang, models are swapped or corrupt, and the store is gone.

    Load at half of the graph's capacity, over real HTTP; needs redis-server. Takes a minute longer than its load.
    """
    from benchmarks.faults import run_faults

    run_faults(root, preset, seconds, as_json, write)


@cli.command("autoscale")
@graph_root_option
@preset_option("paper")
@click.option("--seconds", type=click.FloatRange(30), default=150.0, show_default=True, help="Of load, over all steps.")
@output_options
def autoscale(root: Path, preset: str, seconds: float, as_json: bool, write: Path | None) -> None:
    """Replicas over time under a step of load: 1x, 4x, 1x. Scales up, does not flap, scales down?"""
    from benchmarks.autoscale import run_autoscale

    run_autoscale(root, preset, seconds, as_json, write)


@cli.command("experiments")
@click.option("--experiments", "number", type=click.IntRange(8), default=1_000, show_default=True, help="A/A ones.")
@click.option("--users", type=click.IntRange(100), default=2_000, show_default=True, help="Of each experiment.")
@click.option("--days", type=click.IntRange(2, 60), default=14, show_default=True, help="Planned days, a look each.")
@output_options
def experiments(number: int, users: int, days: int, as_json: bool, write: Path | None) -> None:
    """How often the automatic stop is wrong, and how often it is right: simulated experiments with daily looks."""
    from benchmarks.experiments import run_experiments

    run_experiments(number, users, days, as_json, write)


@cli.command("decay")
@root_option
@preset_option("study")
@click.option("--variants", default="v1.1,no-sequence", show_default=True, help="Names with commas (docs/model.md).")
@click.option(
    "--policies",
    default="none,twice-weekly,daily,daily-warm,daily-sequence,daily-heads",
    show_default=True,
    help="When to train again, and how: names with commas.",
)
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Trainings of each.")
@click.option("--window-days", type=click.IntRange(3), default=6, show_default=True, help="Length of window 0.")
@since_option
@until_option
@click.option("--synthetic", is_flag=True, help="Into an empty root: first make the world with drifting interests.")
@click.option("--users", type=click.IntRange(1), default=600, show_default=True, help="--synthetic: people.")
@click.option("--days", type=click.IntRange(6), default=21, show_default=True, help="--synthetic: days.")
@output_options
def decay(
    root: Path,
    preset: str,
    variants: str,
    policies: str,
    seeds: int,
    window_days: int,
    since: str | None,
    until: str | None,
    synthetic: bool,
    users: int,
    days: int,
    as_json: bool,
    write: Path | None,
) -> None:
    """How models age day by day, and what retraining buys: never, twice a week, daily; from scratch, warm, or in part.

    All policies begin with one model, trained on the first days of the root's log. Draws AUC by day and cost against
    quality. What is trained already is not trained again, so it can be stopped and continued.
    """
    from benchmarks.decay import run_decay
    from rayapp.contracts.presets import VARIANTS
    from rayapp.sources.synthetic import World

    names = tuple(variants.split(","))
    if unknown := [name for name in names if name not in VARIANTS]:
        raise click.UsageError(f"there is no variant {unknown[0]!r}; known: {', '.join(VARIANTS)}")
    since_ms, _, until_ms = moments(since, None, until)
    world = World(num_users=users, num_days=days) if synthetic else None
    chosen = tuple(policies.split(","))
    run_decay(root, preset, names, chosen, seeds, window_days, (since_ms, until_ms), world, as_json, write)


@cli.command("feedback")
@root_option
@preset_option("study")
@click.option("--variant", default="v1.1", show_default=True, help="The model with the sequence.")
@click.option("--shares", default="0.015,0.25,1", show_default=True, help="Of users on the responsive feed.")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Trainings of each.")
@click.option("--users", type=click.IntRange(100), default=400, show_default=True, help="People of the made-up world.")
@click.option("--days", type=click.IntRange(5), default=12, show_default=True, help="Days of the made-up world.")
@output_options
def feedback(
    root: Path,
    preset: str,
    variant: str,
    shares: str,
    seeds: int,
    users: int,
    days: int,
    as_json: bool,
    write: Path | None,
) -> None:
    """What more traffic on a responsive feed does to the log, and to the gain of a sequence model trained on it.

    Makes a world for each share in --root, which must be a directory of its own: at 1.5 % as in an A/B test, at 100 %
    as after the launch. What is trained already is not trained again.
    """
    from benchmarks.feedback import run_feedback
    from rayapp.contracts.presets import NO_SEQUENCE, VARIANTS
    from rayapp.sources.synthetic import World

    if variant not in VARIANTS or variant == NO_SEQUENCE:
        raise click.UsageError(f"{variant!r} is no variant with a sequence; known: {', '.join(VARIANTS)}")
    try:
        chosen = [float(share) for share in shares.split(",")]
    except ValueError:
        raise click.UsageError(f"--shares takes numbers with commas, not {shares!r}") from None
    run_feedback(root, preset, variant, chosen, seeds, World(num_users=users, num_days=days), as_json, write)


@cli.command("page")
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="Where the graph serves its page.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("docs/page"),
    show_default=True,
    help="Directory of the pictures.",
)
def page(url: str, out: Path) -> None:
    """Pictures of the page of a running graph: a feed that turns, animated, and the page on a desk and on a phone.

    Needs a graph that runs, as `rayapp demo` leaves one, the `bench` extra, and Chromium (apt-get install chromium).
    """
    from benchmarks.page import run_page

    run_page(url.rstrip("/"), out)


if __name__ == "__main__":
    run(cli)
