"""`rayapp`: every command, its options and its errors."""

import signal
import sys
from pathlib import Path

import click

from rayapp import __version__
from rayapp.cli.batch import batch_score
from rayapp.cli.data import COMMANDS as DATA_COMMANDS
from rayapp.cli.domain import COMMANDS as DOMAIN_COMMANDS
from rayapp.cli.experiments import COMMANDS as EXPERIMENT_COMMANDS
from rayapp.cli.keys import COMMANDS as KEY_COMMANDS
from rayapp.cli.learn import COMMANDS as LEARN_COMMANDS
from rayapp.cli.models import COMMANDS as MODEL_COMMANDS
from rayapp.cli.node import COMMANDS as NODE_COMMANDS
from rayapp.cli.options import GROUP_SETTINGS, root_option, store_option
from rayapp.cli.preflight import COMMANDS as PREFLIGHT_COMMANDS
from rayapp.cli.retrain import COMMANDS as RETRAIN_COMMANDS
from rayapp.cli.store import COMMANDS as STORE_COMMANDS
from rayapp.sources.data_sets import names, summaries


@click.group("rayapp", context_settings=GROUP_SETTINGS)
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
    type=click.Choice(names()),
    default=names()[0],
    show_default=True,
    help=f"The data set. {summaries()}",
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

    Takes about 4 minutes on 2 cores the first time; a rerun reuses every finished step. A feed answers after two of
    them, while the rankers train: its page is then opened in a browser, where there is a desktop.
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
    *DOMAIN_COMMANDS,
    *LEARN_COMMANDS,
    *MODEL_COMMANDS,
    *RETRAIN_COMMANDS,
    *STORE_COMMANDS,
    *EXPERIMENT_COMMANDS,
    *KEY_COMMANDS,
    *NODE_COMMANDS,
    *PREFLIGHT_COMMANDS,
    batch_score,
)
for command in COMMANDS:
    cli.add_command(command)


def main() -> None:
    """Entry point."""
    run(cli)


def run(group: click.Group) -> None:
    """Runs a command line: what a user can do something about is one sentence on stderr and exit code 1; anything else
    is a bug and keeps its traceback."""
    from rayapp.contracts.errors import RayappError
    from rayapp.root.publish import in_words

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        group(prog_name=group.name, standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt):
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except RayappError as error:
        click.echo(f"rayapp: {error}", err=True)
        sys.exit(1)
    except OSError as error:
        click.echo(f"rayapp: {in_words(error)}", err=True)
        sys.exit(1)
