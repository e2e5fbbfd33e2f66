"""Warm starts and partial training: what is kept, what moves, and what is refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rayapp.contracts.config import TrainConfig
from rayapp.contracts.json_values import from_json, to_json
from rayapp.contracts.presets import Preset, nano, variant
from rayapp.contracts.schema import Vocabulary
from rayapp.importing.domains import load_domain
from rayapp.loop.artifacts import Prepared, training_run
from rayapp.registry.aliases import BASELINE, CHAMPION, read_aliases
from rayapp.root.publish import read_manifest
from rayapp.training import TrainingError
from rayapp.training.loop import Loop
from rayapp.training.run import TrainingRun, make_loop, train_and_publish
from rayapp.training.start import start

pytestmark = pytest.mark.cluster
DOMAIN = load_domain("synthetic").domain
World = tuple[Path, Prepared]


def preset_of(scope: Any = "full", name: str = "v1.1", **train: Any) -> Preset:
    preset = variant(nano(), name)
    return dataclasses.replace(preset, train=dataclasses.replace(preset.train, scope=scope, **train))


def run_of(world: World, preset: Preset, parent: str | None, **arguments: Any) -> TrainingRun:
    root, prepared = world
    table = read_manifest(root / "models" / read_aliases(root)[CHAMPION])["item_table"]
    return training_run(root, prepared, preset, table, init_from=parent, **arguments)


def loop_of(run: TrainingRun, log: Path | None = None) -> Loop:
    return make_loop(run.settings, DOMAIN, torch.device("cpu"), log=log)


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


@pytest.mark.parametrize(("scope", "prefix"), [("full", ""), ("sequence", "encoder."), ("heads", "mlp.")])
def test_a_scope_moves_its_part_and_not_a_bit_of_the_rest(trained_world: World, scope: str, prefix: str) -> None:
    champion = read_aliases(trained_world[0])[CHAMPION]
    parent = load_file(trained_world[0] / "models" / champion / "weights.safetensors")
    loop = loop_of(run_of(trained_world, preset_of(scope), champion))
    assert not moved(parent, loop.ranker.state_dict()), "it starts from the parent's weights"
    loop.step(next(loop.train.batches(32, seed=0, epoch=0)))
    changed = moved(parent, loop.ranker.state_dict())
    assert changed
    assert all(name.startswith(prefix) for name in changed)
    assert set(loop._names) == {name for name in parent if name.startswith(prefix)}, "the optimizer holds no more"


def test_a_warm_start_begins_at_its_parents_loss_and_never_ends_above_it(trained_world: World, tmp_path: Path) -> None:
    root, log = trained_world[0], tmp_path / "train.jsonl"
    champion = read_aliases(root)[CHAMPION]
    loop = loop_of(run_of(trained_world, preset_of(learning_rate=0.5), champion), log)  # so fast that it only does harm
    loop.run()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    parent = json.loads((root / "models" / champion / "metrics.json").read_text())["train"]["best_loss"]
    validated = [line["validation_loss"] for line in lines if "validation_loss" in line]
    assert validated[0] == pytest.approx(parent, rel=1e-5)
    assert lines[0]["step"] == 0
    assert validated[1] > parent
    kept = load_file(root / "models" / champion / "weights.safetensors")
    assert not moved(kept, loop.ranker.state_dict()), "the parent's weights were the best"


def test_a_resumed_warm_start_ends_with_the_same_weights(trained_world: World, tmp_path: Path) -> None:
    champion = read_aliases(trained_world[0])[CHAMPION]
    run = run_of(trained_world, preset_of("sequence", num_epochs=2, patience_epochs=2), champion)
    undisturbed, killed, resumed = loop_of(run), loop_of(run), loop_of(run)
    undisturbed.run()

    class Killed(Exception):
        pass

    def die() -> None:
        killed.save(tmp_path)
        raise Killed

    with pytest.raises(Killed):
        killed.run(die)
    resumed.restore(tmp_path)
    assert resumed.position.step > 0
    resumed.run()
    assert not moved(undisturbed.ranker.state_dict(), resumed.ranker.state_dict())
    other = loop_of(dataclasses.replace(run, init_from=None, preset=preset_of()))
    with pytest.raises(TrainingError, match="belongs to run"):
        other.restore(tmp_path)


@pytest.mark.extended
def test_two_workers_train_a_part_and_publish_its_lineage(world: World) -> None:
    """DDP with frozen parameters."""
    root = world[0]
    champion = read_aliases(root)[CHAMPION]
    run = run_of(world, preset_of("sequence", num_epochs=1), champion, num_workers=2)
    metrics = train_and_publish(run, DOMAIN)
    manifest = read_manifest(root / "models" / run.version)
    assert (manifest["parent"], manifest["scope"], manifest["drawn"]) == (champion, "sequence", [])
    parent, child = (load_file(root / "models" / v / "weights.safetensors") for v in (champion, run.version))
    assert all(name.startswith("encoder.") for name in moved(parent, child))
    assert metrics["train"]["cpu_seconds"] > 0


def test_what_cannot_start_is_refused_in_words(trained_world: World) -> None:
    root, aliases = trained_world[0], read_aliases(trained_world[0])
    with pytest.raises(TrainingError, match="'heads' trains a part of a model that exists; name the one to start from"):
        run_of(trained_world, preset_of("heads"), None)
    with pytest.raises(TrainingError, match="no-sequence has no sequence encoder"):
        train_and_publish(run_of(trained_world, preset_of("sequence", "no-sequence"), aliases[BASELINE]), DOMAIN)
    with pytest.raises(TrainingError, match=r"has no encoder\.\S+ of shape .* would leave it untrained"):
        train_and_publish(run_of(trained_world, preset_of("heads"), aliases[BASELINE]), DOMAIN)
    assert not (root / "runs").exists() or not list((root / "runs").glob("nano-*"))
    with pytest.raises(ValueError, match="scope must be one of"):
        TrainConfig(scope="head")  # type: ignore[arg-type]


def test_another_variant_gives_what_fits_and_new_actions_keep_their_own_embedding(trained_world: World) -> None:
    root, aliases = trained_world[0], read_aliases(trained_world[0])
    run = run_of(trained_world, preset_of(), aliases[BASELINE])
    begun = start(root, run.preset, run.item_table, DOMAIN, aliases[BASELINE])
    assert {name.split(".")[0] for name in begun.drawn} == {"encoder", "cross", "mlp"}
    parent = load_file(root / "models" / aliases[CHAMPION] / "weights.safetensors")
    more = Vocabulary((*DOMAIN.vocabulary.actions, dataclasses.replace(DOMAIN.vocabulary.actions[0], name="share")))
    wider = start(root, run.preset, run.item_table, dataclasses.replace(DOMAIN, vocabulary=more), aliases[CHAMPION])
    embedding = wider.ranker.state_dict()["encoder.action_embedding.weight"]
    known = parent["encoder.action_embedding.weight"]
    assert len(embedding) == len(known) + 1
    assert torch.equal(embedding[:-1], known)
    assert not wider.drawn


def test_versions_and_checkpoints_of_plain_runs_keep_their_names(trained_world: World) -> None:
    assert "scope" not in to_json(preset_of())["train"]
    assert from_json(Preset, to_json(preset_of("heads"))) == preset_of("heads")
    champion = read_aliases(trained_world[0])[CHAMPION]
    plain, warm = (run_of(trained_world, preset_of(), parent) for parent in (None, champion))
    assert set(warm.settings) - set(plain.settings) == {"init_from"}
    assert len({plain.version, warm.version, run_of(trained_world, preset_of("heads"), champion).version}) == 3
