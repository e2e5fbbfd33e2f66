"""`rayapp train`, `rayapp evaluate`, `rayapp compare` and `rayapp react`: models, and how good they are."""

from pathlib import Path

import click

from rayapp.cli.options import PRESET_NAMES, epochs_option, moment, preset_option, root_option, write_option


def moments(since: str | None, test_since: str | None, until: str | None) -> tuple[int | None, ...]:
    """The options of that name, in milliseconds."""
    options = (("--since", since), ("--test-since", test_since), ("--until", until))
    return tuple(None if text is None else moment(text, option) for option, text in options)


since_option = click.option("--since", help="First day of the training: 2026-05-03 or 2026-05-03T00:00+08:00.")
test_option = click.option("--test-since", help="First moment of the test; the days before it validate.")
until_option = click.option("--until", help="Behind the last moment of the test.")


@click.command("train")
@root_option
@preset_option("auto", PRESET_NAMES)
@epochs_option
@click.option("--variant", help="target-attention unless told; v1.1, v1.0, cross, … (docs/model.md).")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Same seed, same model.")
@click.option(
    "--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes (or GPUs) to train on."
)
@since_option
@test_option
@until_option
def train(
    root: Path,
    preset: str,
    epochs: int | None,
    variant: str | None,
    seed: int,
    workers: int,
    since: str | None,
    test_since: str | None,
    until: str | None,
) -> None:
    """From an imported log to a champion: windows, item vectors, training, evaluation, promotion.

    Unless told otherwise the last fifth of the log's time is the test, and an eighth of the time before it stops and
    calibrates the training. A ranker without the sequence is trained beside it, and takes its place where the sequence
    certainly does harm on that eighth. The ranker goes live if it is certainly better on the test than both baselines,
    counts and popularity; else the better one does. A run that was killed goes on from its last checkpoint.

    A log without shown lists has them made, and recall@20 over the whole catalogue decides, against co-visitation too
    (docs/data.md).
    """
    from rayapp.cli.train import run_train
    from rayapp.contracts.presets import DEFAULT_VARIANT, VARIANTS

    variant = variant or DEFAULT_VARIANT
    if variant not in VARIANTS:
        raise click.UsageError(f"there is no variant {variant!r}; known: {', '.join(VARIANTS)}")
    told = moments(since, test_since, until)
    run_train(root, preset, epochs, variant, seed, workers, told)


@click.command("evaluate")
@root_option
@click.argument("models", nargs=-1, required=True)
@click.option("--window", help="A window of the root; the first model's test window unless told.")
@click.option("--reference", help="The model that differences are to; the first one unless told.")
@click.option("--head", "heads", multiple=True, help="Only these heads.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line instead of tables.")
@write_option
def evaluate(
    root: Path,
    models: tuple[str, ...],
    window: str | None,
    reference: str | None,
    heads: tuple[str, ...],
    as_json: bool,
    write: Path | None,
) -> None:
    """Compare MODELS (versions, aliases such as `counts`, `popularity`) on one window, with 95 % intervals over users.

    AUC, AUC within requests, HIT@3 (by the feed score), normalised entropy and calibration of each head: for everyone,
    and for cold (under 5 actions), casual (under 50) and core users.
    """
    from rayapp.loop.compare_variants import run_evaluate

    run_evaluate(root, models, window, reference, heads, as_json, write)


@click.command("compare")
@root_option
@preset_option("study", PRESET_NAMES)
@epochs_option
@click.option(
    "--variants",
    default="models",
    show_default=True,
    help="`models`, `ablations` (of V1.1), `parts` (of target-attention), or names with commas.",
)
@click.option("--seeds", type=click.IntRange(1), default=5, show_default=True, help="Trainings of each variant.")
@since_option
@test_option
@until_option
@click.option("--truth", type=click.Path(path_type=Path, exists=True), help="Of the synthetic world: adds its oracle.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line instead of tables.")
@write_option
def compare(
    root: Path,
    preset: str,
    epochs: int | None,
    variants: str,
    seeds: int,
    since: str | None,
    test_since: str | None,
    until: str | None,
    truth: Path | None,
    as_json: bool,
    write: Path | None,
) -> None:
    """Train variants of the model over seeds on an imported log, and compare them with no-sequence and counts.

    What is trained already is not trained again, so it can be stopped and continued.
    """
    from rayapp.loop.compare_variants import run_compare

    told = moments(since, test_since, until)
    run_compare(root, preset, epochs, variants, seeds, told, truth, as_json, write)


@click.command("react")
@root_option
@click.option("--people", type=click.IntRange(1), default=10, show_default=True, help="Of each kind, a category.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line instead of the table.")
@write_option
def react(root: Path, people: int, as_json: bool, write: Path | None) -> None:
    """Does the feed follow? Five positive and five negative actions on each category of 30 items or more, over HTTP.

    Shares of the top 10: of 200 fixed items, which shows the model alone; of the feed's candidates by score; of the
    feed as it is served. Acts as made-up new users, and takes some minutes; needs a trained root, which `rayapp train`
    or `rayapp demo` leaves, and starts the graph itself.
    """
    from rayapp.client.reactions import run_react

    run_react(root, people, as_json, write)


COMMANDS = (train, evaluate, compare, react)
