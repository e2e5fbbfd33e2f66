"""`rayapp bench score`."""

from pathlib import Path

import click

from rayapp.cli.options import preset_option, write_option


@click.command("score")
@preset_option("paper")
@click.option("--repeats", type=click.IntRange(1), default=9, show_default=True, help="A ratio is a median of these.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line instead of the table.")
@write_option
def bench_score(preset: str, repeats: int, as_json: bool, write: Path | None) -> None:
    """Scoring one user's candidates on one thread, against a plain PyTorch module; p50 and p99 of whole requests.

    Trains its own weights first; takes about two minutes.
    """
    from benchmarks.score import run_bench_score

    run_bench_score(preset, repeats, as_json, write)
