"""The benches that start the Serve graph: `rayapp bench serve`, `faults` and `autoscale`."""

from pathlib import Path

import click

from rayapp.cli.options import preset_option, write_option

bench_root_option = click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False, resolve_path=True),
    default=Path("rayapp-data/bench"),
    show_default=True,
    help="A root of the bench's own, never yours: made when it is not there, kept for the next run.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON line instead of the table.")


@click.command("serve")
@bench_root_option
@preset_option("paper")
@click.option(
    "--seconds", type=click.FloatRange(1), default=8.0, show_default=True, help="Of load, an opponent a round."
)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Medians are over these.")
@json_option
@write_option
def bench_serve(root: Path, preset: str, seconds: float, rounds: int, as_json: bool, write: Path | None) -> None:
    """Answers a second and their times, against Ray's default flags and a hand-written application.

    Real HTTP, 100 candidates, 100 actions. Takes about 8 minutes on 2 cores.
    """
    from benchmarks.serve import run_serve

    run_serve(root, preset, seconds, rounds, as_json, write)


@click.command("faults")
@bench_root_option
@preset_option("paper")
@click.option(
    "--seconds", type=click.FloatRange(20), default=120.0, show_default=True, help="Of load, over all phases."
)
@json_option
@write_option
def bench_faults(root: Path, preset: str, seconds: float, as_json: bool, write: Path | None) -> None:
    """What clients see while replicas are killed or hang, models are swapped or corrupt, and the store is gone.

    Load at half of the graph's capacity, over real HTTP; needs redis-server. Takes a minute longer than its load.
    """
    from benchmarks.faults import run_faults

    run_faults(root, preset, seconds, as_json, write)


@click.command("autoscale")
@bench_root_option
@preset_option("paper")
@click.option("--seconds", type=click.FloatRange(30), default=150.0, show_default=True, help="Of load, over all steps.")
@json_option
@write_option
def bench_autoscale(root: Path, preset: str, seconds: float, as_json: bool, write: Path | None) -> None:
    """Replicas over time under a step of load: 1x, 4x, 1x. Scales up, does not flap, scales down?"""
    from benchmarks.autoscale import run_autoscale

    run_autoscale(root, preset, seconds, as_json, write)


BENCHES = (bench_serve, bench_faults, bench_autoscale)
