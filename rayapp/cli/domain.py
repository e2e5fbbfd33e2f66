"""`rayapp domain …`: what a changed domain file means for a root, and the change itself."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rayapp.cli.options import root_option

if TYPE_CHECKING:
    from rayapp.contracts.domain_changes import Change

file_argument = click.argument("file")


@click.group("domain")
def domain_group() -> None:
    """Change the domain of a root: utilities, mix, seen, caps, loss weights; new actions, heads, attributes.

    What would change the meaning of stored rows is refused, with what to do instead (docs/data.md).
    """


@domain_group.command("diff")
@root_option
@file_argument
def diff(root: Path, file: str) -> None:
    """Say what of FILE, a domain file, differs from the root's domain, and what each change means.

    Changes nothing. Exit code 1 where the root can't follow.
    """
    from rayapp.contracts.domain_changes import changes
    from rayapp.importing.domains import load_domain
    from rayapp.root.facts import read_root

    found = changes(read_root(root)[0], load_domain(file).domain)
    _print(found)
    if not found:
        click.echo(f"{root} has this very domain")
    elif refused := [change for change in found if not change.allowed]:
        click.echo(f"\n{len(refused)} of {len(found)} changes refused, so none can be made as the file stands")
        sys.exit(1)
    else:
        click.echo(f"\nto make them: rayapp domain apply --root {root} {file}")


@domain_group.command("apply")
@root_option
@file_argument
def apply(root: Path, file: str) -> None:
    """Make FILE, a domain file, the root's domain: all its changes or, where one is refused, none.

    A running graph follows within seconds. Not while an import, a training or a compaction works on the root.
    """
    from rayapp.importing.domains import load_domain
    from rayapp.root.facts import apply_domain

    done = apply_domain(root, load_domain(file).domain, time.time_ns() // 1_000_000)
    _print(done)
    click.echo(f"\n{len(done)} changes made; a running graph follows within seconds" if done else "nothing differs")


@domain_group.command("history")
@root_option
def history(root: Path) -> None:
    """List every change of the root's domain with its time, the oldest first."""
    from datetime import UTC, datetime

    from rayapp.root.facts import read_revisions

    revisions = read_revisions(root)
    for revision in revisions:
        click.echo(datetime.fromtimestamp(revision.at_ms / 1000, UTC).isoformat(timespec="seconds"))
        for words in revision.changes:
            click.echo(f"  {words}")
    if not revisions:
        click.echo(f"the domain of {root} is what it was made with")


def _print(found: "Sequence[Change]") -> None:
    for change in found:
        click.echo(f"{'' if change.allowed else 'REFUSED  '}{change.words}\n    {change.meaning}")


COMMANDS = (domain_group,)
