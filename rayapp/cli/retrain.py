"""`rayapp retrain` and `rayapp watch`: the loop that operators leave alone, and what it looks at."""

import json
import multiprocessing
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rayapp.cli.options import PRESET_NAMES, moment, root_option, store_option

if TYPE_CHECKING:
    from rayapp.loop.plan import TrainingPlan
    from rayapp.loop.steps import RetrainOptions

NOT_PROMOTED_EXIT, NO_NEW_DATA_EXIT = 4, 5
STOP_TIMEOUT_S = 10

as_of_option = click.option(
    "--as-of", help="As if it were this moment: for simulations and tests; now unless told. Days after it are not read."
)


@click.command("retrain")
@root_option
@store_option
@click.option(
    "--scope",
    type=click.Choice(["full", "sequence", "heads"]),
    default="full",
    show_default=True,
    help="Train the whole model, only its sequence encoder, or only its heads.",
)
@click.option(
    "--init",
    type=click.Choice(["warm", "scratch"]),
    default="warm",
    show_default=True,
    help="Start from the live model's weights, or from drawn ones. Drawn ones too when the item table is trained anew.",
)
@click.option("--train-window-days", type=click.IntRange(1), default=14, show_default=True, help="Days to train on.")
@click.option(
    "--preset",
    type=click.Choice(PRESET_NAMES),
    help="Sizes and schedule; the live model's unless told, but for the schedule of auto, which follows the days. auto "
    "for a root without a model.",
)
@click.option("--variant", help="Variant (docs/model.md); the live model's unless told.")
@click.option(
    "--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes (or GPUs) to train on."
)
@click.option("--every", "every", help="Go on, a run every 12h (30m, 1d, …), until Ctrl-C. Failed runs don't end it.")
@click.option("--again", is_flag=True, help="Train also when no day is new: after a change of limits or settings.")
@click.option("--dry-run", is_flag=True, help="Only say which days and models a run would take. Writes nothing.")
@click.option(
    "--exit-zero",
    is_flag=True,
    help="Exit with 0 instead of 4 and 5, for schedulers that take every other code for a failure.",
)
@click.option("--accept-window", "accepted", metavar="NAME", help="First take back the refusal of this day's window.")
@as_of_option
def retrain(
    root: Path,
    store_url: str | None,
    scope: str,
    init: str,
    train_window_days: int,
    preset: str | None,
    variant: str | None,
    workers: int,
    every: str | None,
    again: bool,
    dry_run: bool,
    exit_zero: bool,
    accepted: str | None,
    as_of: str | None,
) -> None:
    """Train on the newest days and promote what passes the gates; else say why not, and change nothing.

    Export, windows of the closed days, item table, training, evaluation against the live model on the newest day,
    gates, promotion: for the champion and for each arm of a running experiment. Thresholds are in ROOT/retrain.toml.
    A run that was killed goes on where it stopped; each leaves ROOT/retrainings/ID/report.md.

    \b
    Exit code: 0  every line has its new model
               1  the run failed; the live models stay
               4  a gate or a refused day kept the live model
               5  no new day, nothing to do
    """
    from rayapp.root.facts import read_root
    from rayapp.root.publish import exclusive

    read_root(root)
    options = _options(scope, init, train_window_days, preset, variant, workers, again)
    pause_s = None if every is None else _seconds(every)
    if accepted is not None:
        from rayapp.loop.run_state import accept

        with exclusive(root, "accepting a window"):
            accept(root, accepted)
        click.echo(f"{accepted} is accepted")
    if dry_run:
        _dry_run(root, options, _as_of(as_of))
        return
    if pause_s is None:
        code = _run(root, options, as_of, store_url)
        sys.exit(0 if exit_zero and code in (NOT_PROMOTED_EXIT, NO_NEW_DATA_EXIT) else code)
    _go_on(pause_s, root, options, as_of, store_url)


def _go_on(pause_s: float, *run: Any) -> None:
    """Run after run, each in a process of its own: what one leaves of Ray or in memory ends with it, and a crash of one
    ends only that one."""
    while True:
        started = time.monotonic()
        process = multiprocessing.get_context("spawn").Process(target=_run_alone, args=run)
        process.start()
        try:
            process.join()
        finally:  # also after Ctrl-C or SIGTERM
            process.terminate()
            process.join(STOP_TIMEOUT_S)
            process.kill()
        pause_left_s = max(0.0, pause_s - (time.monotonic() - started))
        if process.exitcode not in (0, NOT_PROMOTED_EXIT, NO_NEW_DATA_EXIT):
            click.echo(f"rayapp: that run ended with {process.exitcode}; the next is in {pause_left_s:.0f} s", err=True)
        time.sleep(pause_left_s)


def _run_alone(*run: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C reaches both; the loop ends this one by SIGTERM
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        code = _run(*run)
    except Exception as error:  # a full disk, a lock, a Ray that did not start: the next run may do better
        click.echo(f"rayapp: {error}", err=True)
        code = 1
    sys.exit(code)


def _run(root: Path, options: "RetrainOptions", as_of: str | None, store_url: str | None) -> int:
    from rayapp.launch.runtime import job_ray
    from rayapp.loop import run_state as states
    from rayapp.loop.retrain import retrain as run_once

    with job_ray():
        state = run_once(root, options, as_of_ms=_as_of(as_of), store_url=store_url, say=_say)
    codes = {states.PROMOTED: 0, states.REFUSED: NOT_PROMOTED_EXIT, states.NO_NEW_DATA: NO_NEW_DATA_EXIT}
    return codes.get(str(state.outcome), 1)


def _say(line: str) -> None:
    click.echo(line)
    sys.stdout.flush()


def _options(
    scope: str, init: str, days: int, preset: str | None, variant_name: str | None, workers: int, again: bool
) -> "RetrainOptions":
    from rayapp.contracts.presets import AUTO, DEFAULT_VARIANT, PRESETS, VARIANTS, variant
    from rayapp.loop.steps import RetrainOptions

    if variant_name is not None and variant_name not in VARIANTS:
        raise click.UsageError(f"there is no variant {variant_name!r}; known: {', '.join(VARIANTS)}")
    if scope != "full" and init == "scratch":
        raise click.UsageError(f"--scope {scope} trains a part of the live model, so it can't start from scratch")
    first = variant(PRESETS[preset or AUTO](), variant_name or DEFAULT_VARIANT)
    chosen = first if preset or variant_name else None
    return RetrainOptions(
        first=first,
        chosen=chosen,
        scope=scope,  # type: ignore[arg-type]
        init=init,  # type: ignore[arg-type]
        train_window_days=days,
        num_workers=workers,
        again=again,
    )


def _as_of(as_of: str | None) -> int:
    return time.time_ns() // 1_000_000 if as_of is None else moment(as_of, "--as-of")


def _seconds(text: str) -> float:
    from rayapp.contracts.tables import duration_ms

    try:
        seconds = duration_ms(text) / 1000
    except ValueError as error:
        raise click.UsageError(f"--every {error}, not {text!r}") from None
    if seconds < 60:
        raise click.UsageError("--every must be a minute or more")
    return seconds


def _dry_run(root: Path, options: "RetrainOptions", as_of_ms: int) -> None:
    from rayapp.contracts.config import day_name
    from rayapp.launch.runtime import job_ray
    from rayapp.loop.preview import preview

    with job_ray():
        found = preview(root, options, as_of_ms)
    for alias, version, name in found.lines:
        click.echo(f"{alias}: {version or 'nothing yet'}, next model {name}")
    click.echo(f"windows to build: {', '.join(found.to_build) or 'none'}")
    click.echo(f"windows refused before: {', '.join(found.refused) or 'none'}")
    plan: TrainingPlan | None = found.plan
    if plan is None:
        click.echo(f"too few closed days before {day_name(as_of_ms)}: it takes three")
        return
    click.echo(f"train on {', '.join(day_name(day) for day in plan.train)}")
    click.echo(
        f"validate on {day_name(plan.validation)}, test on {day_name(plan.test)}"
        + ("" if found.new else ": no new day")
    )


@click.command("watch")
@root_option
@click.option("--days", type=click.IntRange(1, 366), default=7, show_default=True, help="Days to show.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line instead of the table.")
@click.option(
    "--prometheus",
    type=click.Path(path_type=Path, dir_okay=False, resolve_path=True),
    help="Also replace this .prom file, for node_exporter's textfile collector.",
)
@as_of_option
def watch(root: Path, days: int, as_json: bool, prometheus: Path | None, as_of: str | None) -> None:
    """Days at a glance: counts, action and label rates, predictions, degraded answers, parity, the champion's age.

    Each day that has ended is held against the days before it; what left its threshold (ROOT/retrain.toml) is told,
    and makes the exit code 4.
    """
    from prometheus_client import write_to_textfile

    from rayapp.launch.runtime import job_ray
    from rayapp.loop.daily import watch_days
    from rayapp.loop.prometheus import watch_metrics
    from rayapp.loop.report import watch_table
    from rayapp.loop.run_state import read_runs
    from rayapp.root.facts import read_root

    domain, _ = read_root(root)
    with job_ray():
        rows: list[dict[str, Any]] = watch_days(root, domain, days, _as_of(as_of))
    if prometheus is not None:
        write_to_textfile(str(prometheus), watch_metrics(rows, read_runs(root)))
    click.echo(json.dumps(rows) if as_json else watch_table(rows, domain) if rows else "no day has ended yet")
    if any(not gate["passed"] for row in rows[-1:] for gate in row["gates"]):
        sys.exit(NOT_PROMOTED_EXIT)


COMMANDS = (retrain, watch)
