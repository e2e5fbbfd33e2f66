"""`rayapp models`: what is trained, where it comes from, how good it is, what is live; and moving that."""

import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rayapp.cli.options import root_option
from rayapp.root.places import MODELS

if TYPE_CHECKING:
    from rayapp.contracts.config import Domain

alias_option = click.option("--alias", default="champion", show_default=True, help="The alias to move.")


@click.group()
def models() -> None:
    """List models, and move the aliases that say which one is live."""


@models.command("list")
@root_option
def models_list(root: Path) -> None:
    """Published models, newest first, with their test metrics and aliases."""
    from rayapp.registry.aliases import read_aliases
    from rayapp.registry.models import list_models
    from rayapp.root.facts import read_root

    domain, _ = read_root(root)
    aliases = read_aliases(root)
    rows = list_models(root)
    if not rows:
        click.echo(f"no models in {root / MODELS} yet; `rayapp train --root {root}` trains two")
    for row in rows:
        named = ", ".join(name for name, version in aliases.items() if version == row["version"])
        if row["error"]:
            click.echo(f"{row['version']:36} can't be used: {row['error']}  {named}")
            continue
        metrics = row["metrics"]["heads"][domain.positive_head]
        told = "  ".join(f"{name} {metrics[key] or 0:.4f}" for name, key in (("AUC", "auc"), ("HIT@3", "hit3")))
        click.echo(f"{row['version']:36} {told}  {named}")


@models.command("show")
@root_option
@click.argument("model")
def models_show(root: Path, model: str) -> None:
    """Where MODEL (a version or an alias) comes from, how good it is, and what the gates said."""
    from rayapp.registry.aliases import read_aliases, read_previous, resolve
    from rayapp.registry.models import model_manifest, training_in_words
    from rayapp.registry.verdicts import read_verdict
    from rayapp.root.facts import read_root
    from rayapp.root.publish import read_json

    domain, _ = read_root(root)
    version = resolve(root, model)
    manifest = model_manifest(root, version)
    aliases = [alias for alias, live in read_aliases(root).items() if live == version]
    before = [f"{alias} (rollback)" for alias, other in read_previous(root).items() if other == version]
    metrics = read_json(root / MODELS / version / "metrics.json")
    rows = {"version": version, "aliases": ", ".join([*aliases, *before]) or "none", **_lineage(manifest)}
    rows["training"] = training_in_words(metrics)
    width = max(map(len, rows))
    for name, value in rows.items():
        click.echo(f"{name:{width}}  {value}")
    click.echo(f"\n{_metrics(metrics, domain)}")
    verdict = read_verdict(root, version)
    if verdict is None:
        click.echo("\nno gate has seen it: it was trained or promoted by hand")
        return
    against = f" against {verdict['champion']}" if verdict["champion"] else ""
    said = "promoted" if verdict["promoted"] else "not promoted"
    click.echo(f"\ngates of {verdict['retraining']} on {verdict['window']}{against}: {said}")
    for gate in verdict["gates"]:
        click.echo(f"  {'pass' if gate['passed'] else 'FAIL'}  {gate['name']}: {gate['words']}")


def _lineage(manifest: dict[str, Any]) -> dict[str, str]:
    preset = manifest["preset"]
    created = datetime.datetime.fromtimestamp(manifest["created_at_ms"] / 1000, datetime.UTC)
    return {
        "created": f"{created:%Y-%m-%d %H:%M} UTC",
        "rayapp": " ".join(str(manifest[k]) for k in ("rayapp", "commit") if manifest.get(k)),
        "preset": f"{preset['name']} {preset['variant']}, scope {preset['train'].get('scope', 'full')}",
        "parent": manifest.get("parent") or "none (from scratch)",
        "trained on": ", ".join(manifest["train_windows"]),
        "validated on": manifest["validation_window"],
        "tested on": manifest["test_window"],
        "item table": manifest["item_table"],
    }


def _metrics(metrics: dict[str, Any], domain: "Domain") -> str:
    names = ("auc", "request_auc", "hit3", "normalised_entropy", "calibration", "labels")
    lines = [f"{'head':12}" + "".join(f"{name:>20}" for name in names)]
    for head in domain.head_names:
        values = [metrics["heads"][head].get(name) for name in names]
        lines.append(f"{head:12}" + "".join(f"{'–' if v is None else format(v, '.4f'):>20}" for v in values))
    return "\n".join(lines)


@models.command("diff")
@root_option
@click.argument("a")
@click.argument("b")
def models_diff(root: Path, a: str, b: str) -> None:
    """What is different between A and B (versions or aliases): settings, windows, item table, metrics."""
    from rayapp.registry.aliases import resolve
    from rayapp.registry.models import published
    from rayapp.root.publish import read_json

    values = []
    for version in (resolve(root, a), resolve(root, b)):
        directory, manifest = published(root, version)
        described = {name: manifest[name] for name in manifest if name not in ("created_at_ms", "format")}
        metrics = read_json(directory / "metrics.json")["heads"]
        config = {"config": read_json(directory / "config.json"), "schema": read_json(directory / "schema.json")}
        values.append(dict(_flat("", {"version": version, **described, **config, "test": metrics})))
    first, second = values
    rows = [
        (name, str(first.get(name, "–")), str(second.get(name, "–")))
        for name in dict.fromkeys([*first, *second])
        if first.get(name) != second.get(name)
    ]
    if len(rows) < 1:
        click.echo("they are the same model")
    width = max((len(name) for name, _, _ in rows), default=0)
    for name, left, right in rows:
        click.echo(f"{name:{width}}  {left}  ->  {right}")


def _flat(prefix: str, value: Any) -> list[tuple[str, Any]]:
    """`a.b` -> value for every leaf; a list is a leaf, a number is rounded as tables are."""
    if isinstance(value, dict):
        return [row for key, inner in value.items() for row in _flat(f"{prefix}.{key}" if prefix else key, inner)]
    return [(prefix, round(value, 4) if isinstance(value, float) else value)]


@models.command("promote")
@root_option
@alias_option
@click.argument("version")
def models_promote(root: Path, alias: str, version: str) -> None:
    """Make VERSION, a model or another alias, live under an alias. A running graph follows within seconds, without a
    restart."""
    from rayapp.registry.aliases import promote, resolve
    from rayapp.registry.models import load_model
    from rayapp.root.facts import read_root

    domain, version = read_root(root)[0], resolve(root, version)
    load_model(root, version, domain)  # a model that does not load must not become live
    previous = promote(root, alias, version)
    click.echo(f"{alias}: {previous or 'nothing'} -> {version}")


@models.command("rollback")
@root_option
@alias_option
def models_rollback(root: Path, alias: str) -> None:
    """Make the version before live again. A second rollback goes forward again."""
    from rayapp.registry.aliases import read_previous, rollback
    from rayapp.registry.models import load_model
    from rayapp.root.facts import read_root

    domain, _ = read_root(root)
    if (previous := read_previous(root).get(alias)) is not None:
        load_model(root, previous, domain)
    version, previous = rollback(root, alias)
    click.echo(f"{alias}: {version} -> {previous}")


@models.command("prune")
@root_option
@click.option("--keep", type=click.IntRange(1), default=5, show_default=True, help="So many of the newest stay.")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
def models_prune(root: Path, keep: int, dry_run: bool) -> None:
    """Remove old models, and the item tables that only they used.

    What an alias points at, what it would roll back to, and the parents of these stay, however old.
    """
    from rayapp.registry.retention import plan_prune, prune
    from rayapp.root.facts import read_root
    from rayapp.root.publish import exclusive

    read_root(root)
    with exclusive(root, "pruning models"):
        plan = plan_prune(root, keep)
        if not dry_run:
            prune(root, plan)
    for kind, names in (("models", plan.models), ("item tables", plan.item_tables)):
        click.echo(f"{kind} {'to remove' if dry_run else 'removed'}: {', '.join(names) or 'none'}")


COMMANDS = (models,)
