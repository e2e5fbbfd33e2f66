"""`rayapp bench decay` and `rayapp bench feedback`."""

from pathlib import Path

import click

from rayapp.cli.learn import moments, since_option, until_option
from rayapp.cli.options import preset_option, root_option, write_option


@click.command("decay")
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
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line instead of tables.")
@write_option
def bench_decay(
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


@click.command("feedback")
@root_option
@preset_option("study")
@click.option("--variant", default="v1.1", show_default=True, help="The model with the sequence.")
@click.option("--shares", default="0.015,0.25,1", show_default=True, help="Of users on the responsive feed.")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Trainings of each.")
@click.option("--users", type=click.IntRange(100), default=400, show_default=True, help="People of the made-up world.")
@click.option("--days", type=click.IntRange(5), default=12, show_default=True, help="Days of the made-up world.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line instead of the table.")
@write_option
def bench_feedback(
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


BENCHES = (bench_decay, bench_feedback)
