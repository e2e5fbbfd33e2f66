"""Model directories: `models/<version>/{weights.safetensors, config.json, schema.json, calibration.json,
metrics.json, manifest.json}`.

Nothing in one is ever unpickled. A model loads when its vocabulary is a prefix of the domain's current one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rayapp.contracts.config import Domain, ModelConfig
from rayapp.contracts.json_values import from_json, to_json
from rayapp.contracts.schema import Vocabulary
from rayapp.features.attributes import Encoders
from rayapp.model.calibration import Calibration
from rayapp.model.inputs import FeatureTables, UserTable
from rayapp.model.item_table import ItemTable
from rayapp.model.ranker import Ranker
from rayapp.model.scorer import Scorer
from rayapp.registry.item_tables import load_table
from rayapp.root.catalogue import read_users
from rayapp.root.facts import domain_of_schema
from rayapp.root.places import MODELS
from rayapp.root.publish import Manifest, PublishError, publish_directory, read_json, read_manifest, write_json

FORMAT = 3
LINEAGE = ("created_at_ms", "item_table", "preset", "train_windows", "validation_window", "test_window")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to score, with what a caller must know about it."""

    version: str
    config: ModelConfig
    head_names: tuple[str, ...]
    scorer: Scorer
    table: ItemTable
    domain: Domain
    """That it was trained under: its heads are the first of today's, and it reads the statistics of that time."""


def publish_model(
    root: Path,
    version: str,
    *,
    ranker: Ranker,
    config: ModelConfig,
    domain: Domain,
    encoders: Encoders,
    calibration: Calibration,
    item_table: str,
    metrics: dict[str, Any],
    lineage: Manifest,
    more: Callable[[Path], None] | None = None,
) -> None:
    """Writes `models/<version>`, whole or not at all; `more` adds files to it."""

    def write(directory: Path) -> Manifest:
        save_file({k: v.cpu().contiguous() for k, v in ranker.state_dict().items()}, directory / "weights.safetensors")
        write_json(directory / "config.json", to_json(config))
        write_json(
            directory / "schema.json",
            {
                "vocabulary": to_json(domain.vocabulary),
                "heads": list(domain.head_names),
                "encoders": to_json(encoders),
                "time_zone": domain.time_zone,
                "domain": to_json(domain),
            },
        )
        write_json(directory / "calibration.json", calibration.by_head(domain.head_names))
        write_json(directory / "metrics.json", metrics)
        if more is not None:
            more(directory)
        return {"format": FORMAT, "item_table": item_table, **lineage}

    publish_directory(root / MODELS / version, write)


def load_model(root: Path, version: str, domain: Domain) -> LoadedModel:
    """Reads `models/<version>` and its item table, and checks both against the domain, which may have gained actions,
    heads, attributes and other statistics since.

    Raises:
        PublishError: absent, damaged, of another format, or of another vocabulary, other heads or another time zone.
    """
    try:
        return _load_model(root, version, domain)
    except (KeyError, TypeError, ValueError) as error:
        raise PublishError(
            f"model {version} is damaged: one of its JSON files holds something unexpected ({error!r}); "
            "restore it or promote another model"
        ) from None


def _load_model(root: Path, version: str, domain: Domain) -> LoadedModel:
    directory, manifest = published(root, version)
    schema = read_json(directory / "schema.json")
    vocabulary = from_json(Vocabulary, schema["vocabulary"])
    if not domain.vocabulary.extends(vocabulary):
        raise PublishError(
            f"model {version} was trained with the actions {list(vocabulary.names)}, the domain has "
            f"{list(domain.vocabulary.names)}; train it again: `rayapp train --root {root}`"
        )
    if tuple(schema["heads"]) != domain.head_names[: len(schema["heads"])]:
        raise PublishError(
            f"model {version} has the heads {schema['heads']}, the domain {list(domain.head_names)}; "
            f"train it again: `rayapp train --root {root}`"
        )
    if schema["time_zone"] != domain.time_zone:
        raise PublishError(
            f"model {version} was trained with the clocks of {schema['time_zone']}, the domain has the time_zone "
            f"{domain.time_zone}; train it again: `rayapp train --root {root}`"
        )
    config = from_json(ModelConfig, read_json(directory / "config.json"))
    encoders = from_json(Encoders, schema["encoders"])
    own = domain_of_schema(root, schema, domain)
    calibration = Calibration.of_heads(read_json(directory / "calibration.json"), own.head_names)
    ranker = Ranker(config, encoders, own, vocabulary.size)
    weights = directory / "weights.safetensors"
    try:
        ranker.load_state_dict(load_file(weights))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise PublishError(f"{weights} is damaged ({reason}); restore the file or promote another model") from None
    table = load_table(root, manifest["item_table"])
    users = UserTable.of(read_users(root, domain), encoders.user)
    inputs = FeatureTables.of(table, users, encoders, own, vocabulary.size, config=config)
    return LoadedModel(version, config, own.head_names, Scorer(ranker.eval(), inputs, calibration), table, own)


def trained_domain(root: Path, version: str, domain: Domain) -> Domain:
    """The domain that a published model was trained under; `domain` is the root's.

    Raises:
        PublishError: absent, or of another format.
    """
    return domain_of_schema(root, read_json(published(root, version)[0] / "schema.json"), domain)


def published(root: Path, version: str) -> tuple[Path, Manifest]:
    """A model's directory and its manifest.

    Raises:
        PublishError: absent, or of another format.
    """
    directory = root / MODELS / version
    if not directory.is_dir():
        raise PublishError(f"there is no model {version!r} in {root / MODELS}; `rayapp models list` shows what is")
    manifest = read_manifest(directory)
    _check_format(version, manifest)
    return directory, manifest


def item_table_of(root: Path, version: str) -> str:
    """Name of the item table that a model ranks over.

    Raises:
        PublishError: there is no such model, it is of another format, or its manifest is damaged.
    """
    directory, manifest = published(root, version)
    if not isinstance(name := manifest.get("item_table"), str):
        raise PublishError(f"{directory / 'manifest.json'} names no item table; restore it or promote another model")
    return name


def _check_format(version: str, manifest: Manifest) -> None:
    """Raises:
    PublishError: another version of this program wrote the model, one that keeps other files in it.
    """
    if (found := manifest.get("format")) == FORMAT:
        return
    newer = isinstance(found, int) and found > FORMAT
    mend = "install the version that wrote it" if newer else "train anew: `rayapp train`"
    raise PublishError(f"model {version} has format {found}, this version reads {FORMAT}; {mend}")


def model_manifest(root: Path, version: str) -> Manifest:
    """The manifest of a trained model, which tells its settings, its windows and its item table.

    Raises:
        PublishError: absent, of another format, or it does not tell all of them.
    """
    directory, manifest = published(root, version)
    if missing := [name for name in LINEAGE if name not in manifest]:
        raise PublishError(
            f"{directory / 'manifest.json'} does not tell {', '.join(missing)}; restore the file or use another model"
        )
    return manifest


def training_in_words(metrics: dict[str, Any]) -> str:
    """How long a model was trained, how much it saw and why it stopped, as far as its metrics tell: earlier versions
    of this program wrote the steps alone."""
    told = metrics["train"]
    words = [f"{told['steps']:,} steps"]
    if "stopped" in told:
        words += [f"{told['examples_a_parameter']:.1f} examples a parameter", told["stopped"]]
    return ", ".join(words)


def list_models(root: Path) -> list[dict[str, Any]]:
    """Version, metrics and manifest of every published model, newest first; of one that can't be read, the `error`."""
    rows: list[dict[str, Any]] = []
    for directory in (root / MODELS).glob("[!.]*"):
        row: dict[str, Any] = {"version": directory.name, "metrics": None, "manifest": {}, "error": None}
        try:
            row["manifest"] = read_manifest(directory)
            _check_format(directory.name, row["manifest"])
            row["metrics"] = read_json(directory / "metrics.json")
        except PublishError as error:
            row["error"] = str(error)
        rows.append(row)
    return sorted(rows, key=lambda row: row["manifest"].get("created_at_ms", 0), reverse=True)
