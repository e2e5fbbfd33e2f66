"""The registry: where a model comes from, what the gates said, moving aliases forth and back, and retention."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from rayapp.cli.main import cli
from rayapp.contracts.config import Domain
from rayapp.contracts.json_values import to_json
from rayapp.contracts.presets import nano
from rayapp.registry.aliases import CHAMPION, promote, read_aliases, read_previous, resolve, rollback
from rayapp.registry.models import FORMAT, list_models
from rayapp.registry.retention import Pruned, plan_prune, prune
from rayapp.registry.verdicts import record_verdict
from rayapp.root.publish import PublishError, exclusive, write_json
from rayapp.store.lmdb import LmdbStore


def put(root: Path, version: str, created: int, **changed: Any) -> None:
    """A model's JSON files; its weights are nobody's business here."""
    directory = root / "models" / version
    directory.mkdir(parents=True)
    manifest = {
        "format": FORMAT,
        "created_at_ms": created,
        "rayapp": "0",
        "preset": to_json(nano()),
        "parent": None,
        "train_windows": ["2026-01-01_2026-01-02"],
        "validation_window": "2026-01-02_2026-01-03",
        "test_window": "2026-01-03_2026-01-04",
        "item_table": f"table-{version}",
    }
    values = dict.fromkeys(("auc", "request_auc", "hit3", "normalised_entropy", "calibration", "labels"), 0.5)
    write_json(directory / "manifest.json", manifest | changed)
    write_json(directory / "config.json", to_json(nano().model))
    write_json(directory / "schema.json", {"heads": ["save", "hide"]})
    heads = {"save": values | {"auc": created / 100}, "hide": values}
    trained = {"steps": 1_500, "examples_a_parameter": 2.345, "stopped": "4 evaluations without gain"}
    write_json(directory / "metrics.json", {"heads": heads, "train": trained})
    (root / "item_tables" / str((manifest | changed)["item_table"])).mkdir(parents=True, exist_ok=True)


@pytest.fixture
def registry(root: Path) -> Path:
    for n, version in enumerate("abcdef"):
        put(root, version, n)
    return root


def test_a_rollback_goes_back_and_a_second_one_forward_again(registry: Path) -> None:
    assert promote(registry, CHAMPION, "a") is None
    with pytest.raises(PublishError, match="was never moved"):
        rollback(registry)
    assert promote(registry, CHAMPION, "b") == "a"
    assert promote(registry, CHAMPION, "b") == "b", "promoting what is live forgets nothing"
    assert rollback(registry) == ("b", "a")
    assert (read_aliases(registry), read_previous(registry)) == ({CHAMPION: "a"}, {CHAMPION: "b"})
    assert rollback(registry) == ("a", "b")
    assert (resolve(registry, CHAMPION), resolve(registry, "c")) == ("b", "c")
    with pytest.raises(PublishError, match="there is no model 'z'"):
        resolve(registry, "z")
    with pytest.raises(PublishError, match="there is no alias 'arm'"):
        rollback(registry, "arm")


def test_two_moves_at_once_and_a_missing_model_leave_the_alias_alone(registry: Path) -> None:
    promote(registry, CHAMPION, "a")
    promote(registry, CHAMPION, "b")
    with exclusive(registry / "aliases", "a test"), pytest.raises(PublishError, match="another process holds"):
        rollback(registry)
    (registry / "models" / "a" / "manifest.json").unlink()
    with pytest.raises(PublishError, match="there is no model 'a'"):
        rollback(registry)
    assert read_aliases(registry) == {CHAMPION: "b"}


def test_retention_keeps_the_newest_the_live_their_rollback_and_their_parents(registry: Path) -> None:
    for version, parent in (("g", "b"), ("h", None)):
        put(registry, version, 10, parent=parent, item_table="table-b")
    put(registry, "newer", 0, format=FORMAT + 1)
    promote(registry, CHAMPION, "a")
    promote(registry, CHAMPION, "g")
    plan = plan_prune(registry, keep=2)
    assert set(plan.models) == {"c", "d", "e", "f"}, "a: rollback, b: parent of g; newer: unreadable here"
    assert set(plan.item_tables) == {"table-c", "table-d", "table-e", "table-f"}
    record_verdict(registry, "c", {"promoted": False})
    prune(registry, plan)
    assert {row["version"] for row in list_models(registry)} == {"a", "b", "g", "h", "newer"}
    assert not (registry / "verdicts" / "c.json").exists()
    assert sorted(p.name for p in (registry / "item_tables").iterdir()) == ["table-a", "table-b", "table-newer"]
    assert plan_prune(registry, keep=2) == Pruned((), ())


def run(*arguments: str) -> str:
    done = CliRunner().invoke(cli, ["models", *arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


def test_what_the_commands_say(registry: Path, domain: Domain) -> None:
    root = ["--root", str(registry)]
    promote(registry, CHAMPION, "a")
    promote(registry, CHAMPION, "f")
    put(registry, "newer", 90, format=FORMAT + 1)
    assert "can't be used: model newer has format" in run("list", *root)
    gates = [{"name": "save auc cold", "passed": False, "value": -0.1, "limit": -0.01, "words": "0.1 worse"}]
    verdict = {"retraining": "r1", "alias": CHAMPION, "champion": "a", "window": "w", "promoted": False}
    record_verdict(registry, "f", {**verdict, "gates": gates})
    shown = run("show", *root, CHAMPION)
    trained = "1,500 steps, 2.3 examples a parameter, 4 evaluations without gain"
    for words in (
        "table-f",
        "nano v1.1",
        "none (from scratch)",
        trained,
        "FAIL  save auc cold: 0.1 worse",
        "against a",
    ):
        assert words in shown
    assert "champion (rollback)" in run("show", *root, "a")
    assert "no gate has seen it" in run("show", *root, "a")
    changed = run("diff", *root, "a", CHAMPION).splitlines()
    assert {line.split()[0] for line in changed} == {"version", "item_table", "test.save.auc"}
    assert "same model" in run("diff", *root, "a", "a")
    assert "models to remove: e, d, c, b\n" in run("prune", *root, "--keep", "1", "--dry-run")
    assert (registry / "models" / "b").exists()
    with pytest.raises(PublishError, match="model a is damaged"):
        run("rollback", *root)  # its weights are not there: what does not load does not go live
    assert json.loads((registry / "aliases" / "champion.json").read_text())["version"] == "f"
    with pytest.raises(PublishError, match="install the version that wrote it"):
        run("promote", *root, "newer")


def test_a_model_goes_live_by_its_version_or_by_another_alias(models: tuple[Path, LmdbStore]) -> None:
    root, _ = models
    promote(root, "popularity", "b")
    assert "champion: a -> b" in run("promote", "--root", str(root), "popularity")
    assert read_aliases(root) == {CHAMPION: "b", "popularity": "b"}


def test_a_manifest_that_does_not_tell_what_a_model_was_trained_on_is_named(registry: Path) -> None:
    path = registry / "models" / "b" / "manifest.json"
    path.write_text(json.dumps({"format": FORMAT}))
    told = f"{path} does not tell created_at_ms, item_table, preset"
    with pytest.raises(PublishError, match=re.escape(told)):
        run("show", "--root", str(registry), "b")
    done = CliRunner().invoke(cli, ["evaluate", "--root", str(registry), "a", "b"])
    assert isinstance(done.exception, PublishError)
    assert told in str(done.exception)
    assert "b " in run("list", "--root", str(registry)), "one damaged manifest hides no other model"
