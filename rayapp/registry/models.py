"""Model directories: `models/<version>/{weights.safetensors, config.json, schema.json, metrics.json, manifest.json}`.

Nothing in one is ever unpickled. A model loads when its vocabulary is a prefix of the domain's current one.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rayapp.config import Domain, ModelConfig, model_config_from_json, to_json
from rayapp.features.items import ItemEncoder
from rayapp.model.item_table import ItemTable
from rayapp.model.ranker import Ranker
from rayapp.model.scorer import Scorer
from rayapp.publish import Manifest, PublishError, publish_directory, read_json, read_manifest, write_json
from rayapp.registry.item_tables import load_table
from rayapp.schema import Vocabulary

FORMAT = 1


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to score, with what a caller must know about it."""

    version: str
    config: ModelConfig
    head_names: tuple[str, ...]
    scorer: Scorer
    table: ItemTable


def build_ranker(config: ModelConfig, vocabulary: Vocabulary, num_heads: int, encoder: ItemEncoder) -> Ranker:
    """An untrained ranker of the right shapes."""
    return Ranker(
        config,
        vocabulary_size=vocabulary.size,
        num_heads=num_heads,
        num_categories=encoder.num_categories,
        num_numbers=encoder.num_numbers,
    )


def publish_model(
    root: Path,
    version: str,
    *,
    ranker: Ranker,
    config: ModelConfig,
    domain: Domain,
    encoder: ItemEncoder,
    item_table: str,
    metrics: dict[str, Any],
    lineage: Manifest,
) -> None:
    """Writes `models/<version>`, whole or not at all."""

    def write(directory: Path) -> Manifest:
        save_file({k: v.cpu().contiguous() for k, v in ranker.state_dict().items()}, directory / "weights.safetensors")
        write_json(directory / "config.json", to_json(config))
        write_json(
            directory / "schema.json",
            {
                "vocabulary": domain.vocabulary.to_json(),
                "heads": list(domain.head_names),
                "item_encoder": encoder.to_json(),
            },
        )
        write_json(directory / "metrics.json", metrics)
        return {"format": FORMAT, "item_table": item_table, **lineage}

    publish_directory(root / "models" / version, write)


def load_model(root: Path, version: str, domain: Domain) -> LoadedModel:
    """Reads `models/<version>` and its item table, and checks both against the domain.

    Raises:
        PublishError: absent, damaged, of a newer format, or of another vocabulary or other heads.
    """
    try:
        return _load_model(root, version, domain)
    except (KeyError, TypeError, ValueError) as error:
        raise PublishError(
            f"model {version} is damaged: one of its JSON files holds something unexpected ({error!r}); "
            "restore it or promote another model"
        ) from None


def _load_model(root: Path, version: str, domain: Domain) -> LoadedModel:
    directory = root / "models" / version
    if not directory.is_dir():
        raise PublishError(f"there is no model {version!r} in {root / 'models'}; `rayapp models list` shows what is")
    manifest = read_manifest(directory)
    if manifest["format"] != FORMAT:
        raise PublishError(
            f"model {version} has format {manifest['format']}, this version reads {FORMAT}; "
            "install the version that wrote it"
        )
    schema = read_json(directory / "schema.json")
    vocabulary = Vocabulary.from_json(schema["vocabulary"])
    if not domain.vocabulary.extends(vocabulary):
        raise PublishError(
            f"model {version} was trained with the actions {list(vocabulary.names)}, the domain has "
            f"{list(domain.vocabulary.names)}; train it again: `rayapp demo` with another --root"
        )
    if tuple(schema["heads"]) != domain.head_names:
        raise PublishError(
            f"model {version} has the heads {schema['heads']}, the domain {list(domain.head_names)}; "
            "train it again: `rayapp demo` with another --root"
        )
    config = model_config_from_json(read_json(directory / "config.json"))
    encoder = ItemEncoder.from_json(schema["item_encoder"])
    ranker = build_ranker(config, vocabulary, len(domain.heads), encoder)
    weights = directory / "weights.safetensors"
    try:
        ranker.load_state_dict(load_file(weights))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise PublishError(f"{weights} is damaged ({reason}); restore the file or promote another model") from None
    table = load_table(root, manifest["item_table"])
    return LoadedModel(version, config, domain.head_names, Scorer(ranker, table, encoder, vocabulary.size), table)


def list_models(root: Path) -> list[dict[str, Any]]:
    """Version, metrics and manifest of every published model, newest first; of a damaged one, the `error`."""
    rows: list[dict[str, Any]] = []
    for directory in (root / "models").glob("[!.]*"):
        row: dict[str, Any] = {"version": directory.name, "metrics": None, "manifest": {}, "error": None}
        try:
            row |= {"metrics": read_json(directory / "metrics.json"), "manifest": read_manifest(directory)}
        except PublishError as error:
            row["error"] = str(error)
        rows.append(row)
    return sorted(rows, key=lambda row: row["manifest"].get("created_at_ms", 0), reverse=True)
