"""`rayapp experiment …`."""

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rayapp.cli.options import root_option, write_option
from rayapp.root.places import EXPERIMENTS_FILE

if TYPE_CHECKING:
    from rayapp.experiments.report import Report

STOPPED, MISMATCH = 3, 4
"""Exit codes of `check`; 1 and 2 are errors."""
name_argument = click.argument("name", required=False)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


@click.group("experiment")
def experiment() -> None:
    """Compare models, utilities and candidate mixes on live users.

    Declared in ROOT/experiments.toml, which a running graph follows without a restart (docs/experiments.md).
    """


@experiment.command("show")
@root_option
def show(root: Path) -> None:
    """What is declared, and what of it is on. Also checks the file: exit code 1 and the place where it is wrong."""
    from rayapp.experiments.assignment import record_steps
    from rayapp.registry.aliases import read_aliases
    from rayapp.root.facts import read_root

    domain, _ = read_root(root)
    declared, aliases, now_ms = record_steps(root, domain, _now_ms()), read_aliases(root), _now_ms()
    if not declared:
        click.echo(f"{root / EXPERIMENTS_FILE} declares no experiment")
    for running in declared:
        click.echo(f"{running.experiment.name}: {running.status(now_ms)}")
        for arm in running.experiment.arms:
            version = aliases.get(arm.alias, "NO SUCH ALIAS: its users get the champion")
            changed = [f"{k} {v}" for k, v in (("utilities", arm.utilities), ("mix", arm.mix)) if v is not None]
            click.echo(f"  {arm.name:20} {arm.share:7.2%}  {arm.alias} -> {version}  {'; '.join(changed)}".rstrip())
        for guardrail in running.experiment.guardrails:
            click.echo(f"  {guardrail.head} must not {guardrail.must_not}")


@experiment.command("report")
@root_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line instead of tables.")
@write_option
@name_argument
def report(root: Path, as_json: bool, write: Path | None, name: str | None) -> None:
    """Rates of each arm, differences to the control, guardrails, sample ratio, before and after each retraining.

    Of the experiment NAME, or of the one that is on. Reads the logs: `rayapp export` first. It may be read daily; the
    intervals of the differences are made for that.
    """
    from rayapp.contracts.json_values import to_json
    from rayapp.experiments.text import PER, render
    from rayapp.record import Bars, record

    found = _report(root, name)
    if found is None:
        return
    click.echo(json.dumps(to_json(found)) if as_json else render(found))
    if write:
        rows = [row for row in found.differences if row.difference.low is not None]
        if not rows:
            raise click.UsageError("no difference has an interval yet, so there is nothing to draw; leave out --write")
        heights = [PER * (row.difference.value or 0.0) for row in rows]
        below = [h - PER * (row.difference.low or 0.0) for h, row in zip(heights, rows, strict=True)]
        above = [PER * (row.difference.high or 0.0) - h for h, row in zip(heights, rows, strict=True)]
        bars = Bars(
            f"difference to {found.arms[0].arm}, per {PER} shown",
            [f"{row.arm}\n{row.head}" for row in rows],
            {found.experiment: heights},
            {found.experiment: (below, above)},
        )
        title = f"Experiment {found.experiment}, day {found.days} of {found.planned_days}"
        record(write, title, render(found), bars)


@experiment.command("check")
@root_option
@name_argument
def check(root: Path, name: str | None) -> None:
    """Stop the experiment NAME, or the one that is on, if a guardrail is crossed. For cron, after `rayapp export`.

    Exit codes: 0 it goes on, 3 it is stopped (everybody gets the champion), 4 users of an arm are lost or doubled, so
    that its numbers can't be trusted; then look for the cause.
    """
    from rayapp.experiments.assignment import stop
    from rayapp.root.facts import read_root

    found = _report(root, name, only_on=True)
    if found is None:
        return
    for guarded in found.crossed:
        click.echo(
            f"{found.experiment}: {guarded.head} must not {guarded.must_not}, and in {guarded.arm} it crossed its "
            f"boundary on day {guarded.crossed_day} of {found.planned_days}"
        )
    if found.crossed:
        first = min(found.crossed, key=lambda guarded: guarded.crossed_day or 0)
        if found.status == "on":
            why = f"{first.head} must not {first.must_not}: crossed in {first.arm} on day {first.crossed_day}"
            stop(root, read_root(root)[0], found.experiment, why, _now_ms())
            click.echo(f"{found.experiment} is stopped: everybody gets the champion within seconds")
        sys.exit(STOPPED)
    if found.sample_ratio is not None and found.sample_ratio.alarm:
        click.echo(f"{found.experiment}: sample ratio mismatch; `rayapp experiment report` says more")
        sys.exit(MISMATCH)
    click.echo(f"{found.experiment}: {found.status}, day {found.days} of {found.planned_days}, nothing crossed")


@experiment.command("stop")
@root_option
@click.option("--why", default="by hand", show_default=True, help="Kept with the experiment.")
@click.argument("name")
def stop_experiment(root: Path, why: str, name: str) -> None:
    """Stop experiment NAME for good: everybody gets the champion within seconds."""
    from rayapp.experiments.assignment import stop
    from rayapp.root.facts import read_root

    stop(root, read_root(root)[0], name, why, _now_ms())
    click.echo(f"{name} is stopped: everybody gets the champion within seconds")


@experiment.command("adopt")
@root_option
@click.argument("name")
@click.argument("arm")
def adopt(root: Path, name: str, arm: str) -> None:
    """Make the utilities and the mix of ARM of experiment NAME everybody's: the domain's, recorded with the time.

    A running graph follows within seconds. The arm's model stays under its alias (`rayapp models promote`), and the
    experiment goes on until it is stopped.
    """
    from rayapp.experiments.declaration import ExperimentError, read_experiments, with_arm
    from rayapp.root.facts import apply_domain, read_root

    domain, _ = read_root(root)
    arms = {(each.name, one.name): one for each in read_experiments(root, domain) for one in each.arms}
    if (name, arm) not in arms:
        known = ", ".join(" ".join(names) for names in arms) or "none"
        raise ExperimentError(f"{root / EXPERIMENTS_FILE} has no arm {arm!r} of {name!r}; there are: {known}")
    done = apply_domain(root, changed := with_arm(domain, arms[name, arm]), _now_ms())
    if not done:
        click.echo(f"{name} {arm} has the utilities and the mix of the domain; nothing differs")
        return
    for change in done:
        click.echo(change.words)
    click.echo(
        "\nA running graph follows within seconds. Your domain file should say the same, or the next import refuses it:"
    )
    for head in changed.heads:
        click.echo(f"  head {head.name}: utility = {head.utility:g}")
    if changed.mix:
        click.echo("  [mix]")
        for source, share in changed.mix.items():
            click.echo(f"  {source} = {share:g}")


def _report(root: Path, name: str | None, only_on: bool = False) -> "Report | None":
    """None, after saying so, where there is nothing to report; `only_on`: unless it is named, nor of one that is not
    on."""
    from rayapp.experiments.report import find, make_report
    from rayapp.launch.runtime import local_ray
    from rayapp.root.facts import read_root

    domain, _ = read_root(root)
    running = find(root, domain, name, _now_ms())
    if running is None:
        click.echo("no experiment has started; `rayapp experiment show` says what is declared")
        return None
    status = running.status(_now_ms())
    if only_on and name is None and status != "on":
        click.echo(f"no experiment is on; {running.experiment.name}: {status}")
        return None
    with local_ray(spare_cpus=0):
        return make_report(root, domain, running, _now_ms())


COMMANDS = (experiment,)
