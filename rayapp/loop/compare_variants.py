"""Variants of the model over seeds on an imported log, and any published models on one window."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from numpy.typing import NDArray

from rayapp.contracts.config import Domain
from rayapp.contracts.json_values import to_json
from rayapp.contracts.presets import (
    ABLATIONS,
    COUNTS,
    DEFAULT_VARIANT,
    MODELS,
    NO_SEQUENCE,
    PARTS,
    PRESETS,
    VARIANTS,
    variant,
)
from rayapp.features.segments import SEGMENTS
from rayapp.launch.runtime import local_ray
from rayapp.loop.artifacts import build_windows, fitted, item_table, train_model, training_run
from rayapp.loop.choose_by_recall import recall_note
from rayapp.loop.first_training import split_of
from rayapp.pipeline.made_lists import is_made_up
from rayapp.record import Bars, say, tell
from rayapp.registry.aliases import read_aliases
from rayapp.registry.item_tables import load_table
from rayapp.registry.models import model_manifest
from rayapp.root import places
from rayapp.root.facts import read_root
from rayapp.root.publish import PublishError, exclusive, read_json
from rayapp.training.baselines import POPULARITY, Popularity
from rayapp.training.comparison import Logits, Row, compare, difference_table, table
from rayapp.training.diversity import candidate_categories, categories_in_top
from rayapp.training.evaluate import METRICS, EvaluationSet, read_window, score_version

ORACLE = "oracle"
REFERENCES = {"ablations": ("v1.1", NO_SEQUENCE), "parts": (DEFAULT_VARIANT, NO_SEQUENCE)}
USUAL_REFERENCES = (NO_SEQUENCE, COUNTS, "average-pool")
GROUPS = {
    "models": tuple(MODELS),
    "ablations": ("v1.1", NO_SEQUENCE, *ABLATIONS),
    "parts": (DEFAULT_VARIANT, NO_SEQUENCE, *PARTS),
}


def run_evaluate(
    root: Path,
    models: Sequence[str],
    window_name: str | None,
    reference: str | None,
    heads: Sequence[str],
    as_json: bool,
    write: Path | None,
) -> None:
    domain, _ = read_root(root)
    if unknown := set(heads) - set(domain.head_names):
        raise PublishError(f"there is no head {sorted(unknown)[0]!r}; the domain has {', '.join(domain.head_names)}")
    aliases = read_aliases(root)
    versions = {name: aliases.get(name, name) for name in models}
    trained = [version for version in versions.values() if version != POPULARITY]
    if not trained:
        raise PublishError("name at least one model; `rayapp models list` shows them")
    manifests = {version: model_manifest(root, version) for version in trained}
    window_name = window_name or manifests[trained[0]]["test_window"]
    for version, manifest in manifests.items():
        if window_name in (*manifest["train_windows"], manifest["validation_window"]):
            click.echo(f"careful: {version} was trained or calibrated on {window_name}", err=True)
    window = read_window(root, window_name, domain)
    logits: dict[str, list[Logits]] = {}
    for name, version in versions.items():
        if version == POPULARITY:
            known = Popularity.fit(root, domain, manifests[trained[0]]["validation_window"]).score(root, window_name)
        else:
            known = score_version(root, version, window_name, domain)
        logits[name] = [known]
    rows = compare(window, logits, domain, references=[reference or models[0]], heads=heads or None)
    notes = []
    if is_made_up(root, window_name):
        published = {name: version for name, version in versions.items() if version != POPULARITY}
        notes.append(recall_note(root, domain, window_name, published))
    _tell(rows, domain, window_name, "Models on one window", as_json, write, heads or domain.head_names, notes)


def run_compare(
    root: Path,
    preset_name: str,
    num_epochs: int | None,
    variants: str,
    seeds: int,
    moments: tuple[int | None, ...],
    truth: Path | None,
    as_json: bool,
    write: Path | None,
) -> None:
    names = GROUPS.get(variants) or tuple(variants.split(","))
    if unknown := [name for name in names if name not in VARIANTS]:
        raise PublishError(f"there is no variant {unknown[0]!r}; known: {', '.join(VARIANTS)}")
    domain, _ = read_root(root)
    asked = PRESETS[preset_name]().with_epochs(num_epochs)
    versions: dict[str, list[str]] = {name: [] for name in names}
    with exclusive(root, "a comparison"), local_ray():
        prepared, _ = build_windows(root, domain, split_of(root, *moments))
        base = fitted(root, prepared, asked)
        items_name, _ = item_table(root, prepared, base)
        for seed in range(seeds):
            for name in names:
                run = training_run(root, prepared, variant(base.seeded(seed), name), items_name)
                train_model(run, domain)
                versions[name].append(run.version)
                heads = read_json(root / places.MODELS / run.version / "metrics.json")["heads"]
                say(f"seed {seed} {name}: {heads[domain.positive_head]}")
    window = read_window(root, prepared.test_window, domain)
    items = load_table(root, items_name)
    popularity = Popularity.fit(root, domain, prepared.validation_window)
    logits = {POPULARITY: [popularity.score(root, prepared.test_window)]}
    for name, trained in versions.items():
        logits[name] = [score_version(root, version, prepared.test_window, domain) for version in trained]
    if truth is not None:
        logits[ORACLE] = [oracle(truth, window, domain)]
    rows = compare(
        window,
        logits,
        domain,
        references=[name for name in REFERENCES.get(variants, USUAL_REFERENCES) if name in logits],
    )
    trainings = [version for of_variant in versions.values() for version in of_variant]
    hours = sum(read_json(root / places.MODELS / v / "metrics.json")["train"]["cpu_seconds"] for v in trainings) / 3600
    users = len(np.unique(window.user_hash_R))
    notes = [
        f"Preset `{base.name}`, {seeds} seeds, {hours:.2f} CPU hours of training in all; {len(window.valid_RC):,} "
        f"requests of {users:,} users, {int(window.valid_RC.sum()):,} shown items. Trained on "
        f"{prepared.train_windows[0]}, validated on {prepared.validation_window}."
    ]
    if is_made_up(root, prepared.test_window):
        first = {name: trained[0] for name, trained in versions.items()}
        notes.append(recall_note(root, domain, prepared.test_window, first))
    if window.valid_RC.shape[1] > 3:
        category_RCW = candidate_categories(items, domain, root, prepared.test_window)
        shares = {
            name: np.mean([categories_in_top(window, one, category_RCW, domain) for one in each])
            for name, each in logits.items()
        }
        notes.append("Different categories among the top 3: " + ", ".join(f"{n} {s:.3f}" for n, s in shares.items()))
    title = f"Variants of the model on {domain.name}"
    _tell(rows, domain, prepared.test_window, title, as_json, write, domain.head_names, notes)


def oracle(truth: Path, window: EvaluationSet, domain: Domain) -> NDArray[np.float32]:
    """The made-up world's own probabilities of the window's shown items, as logits.

    Raises:
        PublishError: the truth is not that of this window.
    """
    rows = ds.dataset(truth).to_table()
    place = pc.index_in(pa.array(window.request_id_R, pa.string()), value_set=rows["request_id"])
    if place.null_count:
        raise PublishError(f"{truth} lacks requests of this window; was the log imported from the same files?")
    rows = rows.take(place)
    size_R = pc.list_value_length(rows["item_ids"]).to_numpy()
    if not np.array_equal(size_R, window.valid_RC.sum(axis=1)):
        raise PublishError(f"{truth} shows other numbers of items than the log")
    logit_RCH = np.zeros(window.label_RCH.shape, np.float32)
    for h, head in enumerate(domain.heads):
        p_N = sum(pc.list_flatten(rows[f"p_{action}"]).to_numpy() for action in head.actions)
        p_N = np.clip(p_N, 1e-6, 1 - 1e-6)
        logit_RCH[:, :, h][window.valid_RC] = np.log(p_N / (1 - p_N))
    return logit_RCH


def _tell(
    rows: Sequence[Row],
    domain: Domain,
    window: str,
    title: str,
    as_json: bool,
    write: Path | None,
    heads: Sequence[str],
    notes: Sequence[str],
) -> None:
    several = any(row.metric == "hit3" and row.estimate.value < 1 for row in rows)
    names = [m for m in METRICS if several or m not in ("hit3", "request_auc")]
    references = list(dict.fromkeys(reference for row in rows for reference in row.differences))
    tables = []
    for head in heads:
        tables.append(table(rows, head, "all", names))
        tables += [difference_table(rows, reference, head, "all", names) for reference in references]
    main = domain.positive_head if domain.positive_head in heads else heads[0]
    for segment in SEGMENTS:
        tables.append(table(rows, main, segment, names))
        tables += [difference_table(rows, reference, main, segment, names) for reference in references[:1]]
    text = "\n\n".join([f"Test window {window}.", *notes, EXPLAINED, *tables])
    result = {"window": window, "notes": list(notes), "rows": [to_json(row) for row in rows]}
    tell(result, text, title, _bars(rows, heads), as_json=as_json, write=write)


EXPLAINED = (
    "Each cell: the value with its 95 % interval over users and seeds; differences are paired, on the same users and "
    "seeds. "
    "HIT@3 sorts a shown list by the feed score, over lists that hold the label; lower is better for a negative head. "
    "A normalised entropy below 1 is better than the base rate; a calibration of 1 is exact."
)


def _bars(rows: Sequence[Row], heads: Sequence[str]) -> Bars:
    chosen = {(r.model, r.head): r.estimate for r in rows if r.metric == "auc" and r.segment == "all"}
    models = list(dict.fromkeys(model for model, _ in chosen))

    def gap(model: str, end: str) -> list[float]:
        each = [chosen[model, head] for head in heads]
        return [max(abs(getattr(e, end) - e.value), 0.0) if e.value == e.value else 0.0 for e in each]

    series: Mapping[str, list[float]] = {m: [chosen[m, head].value for head in heads] for m in models}
    spread: dict[str, Any] = {m: (gap(m, "low"), gap(m, "high")) for m in models}
    return Bars("AUC", list(heads), series, spread)
