"""`rayapp keys`: who may call a served root."""

from pathlib import Path

import click

from rayapp.cli.options import root_option


@click.group("keys")
def keys_group() -> None:
    """API keys of a root: add, list, remove. A running graph follows within seconds."""


@keys_group.command("add")
@root_option
@click.argument("name")
@click.option(
    "--role",
    type=click.Choice(["client", "admin"]),
    default="client",
    show_default=True,
    help="client: events and feeds; admin: also erasing users and moving models.",
)
def add(root: Path, name: str, role: str) -> None:
    """Make a key for NAME and print it. It is shown this once; the root keeps its hash."""
    from rayapp.root.facts import read_root
    from rayapp.serving.keys import Role, add_key

    read_root(root)
    click.echo(add_key(root, name, Role(role)))


@keys_group.command("list")
@root_option
def list_keys(root: Path) -> None:
    """Names and roles of the keys."""
    from rayapp.serving.keys import Keys

    for name, role, _ in Keys.load(root).rows:
        click.echo(f"{role.value:7} {name}")


@keys_group.command("remove")
@root_option
@click.argument("name")
def remove(root: Path, name: str) -> None:
    """Take NAME's key away."""
    from rayapp.serving.keys import remove_key

    remove_key(root, name)
    click.echo(f"{name} has no key any more")


COMMANDS = (keys_group,)
