"""`rayapp preflight`: what would fail later, said at once."""

import importlib.resources
import json
import sys
from pathlib import Path

import click

from rayapp.cli.options import root_option, store_option

FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("preflight")
@root_option
@store_option
@click.option(
    "--port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="HTTP port, on one machine."
)
@click.option("--keys", is_flag=True, help="Callers of this machine need API keys, as with `rayapp serve --keys`.")
@click.option("--cluster", "cluster_path", type=FILE, help="Check this file for `ray up`, and what goes with it.")
@click.option(
    "--running", is_flag=True, help="Check every node of the running cluster that this machine is the head of."
)
@click.option(
    "--serve",
    "serve_path",
    type=FILE,
    help="With --cluster and --running: the configuration for `serve deploy`. [default: production.yaml of rayapp]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def preflight(
    root: Path,
    store_url: str | None,
    port: int,
    keys: bool,
    cluster_path: Path | None,
    running: bool,
    serve_path: Path | None,
    as_json: bool,
) -> None:
    """Look for what would fail later: each finding is one sentence, with what to do about it.

    \b
    rayapp preflight --root DIR              this machine, before `rayapp serve`
    rayapp preflight --cluster cluster.yaml  the files, before `ray up`
    rayapp preflight --running               every node, on the head, before `serve deploy`

    Exit code 1 where something would fail; 0 where nothing does, warnings or not.
    """
    from rayapp.preflight.preflight import before_up, on_cluster, on_machine

    if cluster_path is not None and running:
        raise click.UsageError("--cluster is for the laptop and --running for the head; choose one")
    serve_path = serve_path or Path(str(importlib.resources.files("deployments").joinpath("production.yaml")))
    if cluster_path is not None:
        report = before_up(cluster_path, serve_path)
    elif running:
        report = on_cluster(serve_path)
    else:
        report = on_machine(root, store_url, port, keys)
    click.echo(json.dumps(report.as_json(), indent=2) if as_json else report.text())
    if report.failed:
        sys.exit(1)


COMMANDS = (preflight,)
