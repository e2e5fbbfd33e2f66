"""Measures a challenger against the champion on the newest window, and asks the gates.

Shapes: R requests, C candidates, H heads, N shown items.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rayapp.contracts.config import Domain
from rayapp.contracts.hashing import hash64
from rayapp.contracts.presets import COUNTS
from rayapp.features.requests import Requests, full_request
from rayapp.features.segments import SEGMENTS
from rayapp.features.statistic_columns import Columns
from rayapp.loop import gates
from rayapp.loop.choose import advantage, told_gain
from rayapp.loop.choose_by_recall import MEASURED, Recalls, recall_table
from rayapp.loop.gates import CHALLENGER, CHAMPION, Challenge, Gate
from rayapp.loop.limits import GateLimits
from rayapp.model.scorer import Scorer
from rayapp.pipeline.made_lists import is_made_up, told_lists
from rayapp.registry.models import LoadedModel, load_model
from rayapp.root.facts import read_root
from rayapp.root.places import MODELS
from rayapp.root.publish import read_json
from rayapp.training.comparison import compare, difference_table, table
from rayapp.training.evaluate import EvaluationSet, read_window, report, score_version, score_window

LATENCY_CANDIDATES: Final = 200
LATENCY_REPEATS: Final = 15
OVER_COUNTS: Final = "over counts"
TABLE_METRICS: Final = ("auc", "request_auc", "hit3", "normalised_entropy", "calibration")


def challenge(
    root: Path,
    domain: Domain,
    window_name: str,
    champion: str | None,
    challenger: str,
    counts: str | None,
    limits: GateLimits,
    *,
    of_a_kind: bool,
) -> Challenge:
    """All are read from the registry, as the servers will read them. Without a champion only absolute gates count, and
    the one against `counts`, the version of the baseline, if it is told. `of_a_kind`: whether it is a ranker after a
    ranker; one that takes the place of a baseline has other scores, and takes longer.

    Raises:
        PublishError: one of them does not load.
    """
    window = read_window(root, window_name, domain)
    models = {CHALLENGER: load_model(root, challenger, domain)}
    if champion is not None:
        models[CHAMPION] = load_model(root, champion, domain)
    if is_made_up(root, window_name):
        versions = {CHALLENGER: challenger, COUNTS: counts, CHAMPION: champion}
        recalls = Recalls.of(root, domain, window_name, {name: v for name, v in versions.items() if v is not None})
        again = score_window(models[CHALLENGER].scorer, root, window_name, domain)
        asked = [_reload(root, challenger, window_name, window, again, domain, limits)]
        asked += recall_gates(recalls, versions, limits)
        if champion is not None and of_a_kind:
            asked.append(_latency(models, limits))
        told = recall_table(recalls, told_lists(root, window_name))
        return _judged(window_name, champion, challenger, asked, f"```\n{told}\n```")
    logits = {name: score_window(model.scorer, root, window_name, domain) for name, model in models.items()}
    rows = compare(window, {n: [x] for n, x in logits.items()}, domain, references=[CHAMPION] if champion else [])
    labels = gates.segment_labels(
        window.label_RCH, window.valid_RC, {s: window.segment(s) for s in ("all", *SEGMENTS)}, domain.head_names
    )
    asked = [_reload(root, challenger, window_name, window, logits[CHALLENGER], domain, limits)]
    asked += gates.absolute_gates(rows, labels, limits)
    if counts is not None and challenger != counts:
        asked.append(over_counts(root, domain, window_name, window, logits[CHALLENGER], counts, limits))
    if champion is not None:
        known = models[CHAMPION].head_names  # a head that was appended since has nothing to be held against
        asked += gates.relative_gates([row for row in rows if row.head in known], labels, limits)
    if champion is not None and of_a_kind:
        asked += _shift(window, logits, domain, limits, len(known))
        asked.append(_latency(models, limits))
    tables = [table(rows, head, "all", TABLE_METRICS) for head in domain.head_names]
    if champion is not None:
        tables += [difference_table(rows, CHAMPION, h, s, ("auc",)) for h in domain.head_names for s in SEGMENTS]
    return _judged(window_name, champion, challenger, asked, "\n\n".join(tables))


def _judged(window: str, champion: str | None, version: str, asked: list[Gate], tables: str) -> Challenge:
    why = "; ".join(gates.reasons(asked))
    return Challenge(window=window, champion=champion, version=version, gates=tuple(asked), tables=tables, why=why)


def recall_gates(recalls: Recalls, versions: Mapping[str, str | None], limits: GateLimits) -> list[Gate]:
    """Of a challenger where nobody saw a list: against the champion, and against counts where there are any of another
    version. With too few next actions neither is judged."""
    asked = list[Gate]()
    for name, other in ((f"{MEASURED} over the champion", CHAMPION), (OVER_COUNTS, COUNTS)):
        version = versions[other]
        if version is None or version == versions[CHALLENGER]:
            continue
        if len(recalls.actions) < limits.min_labels:
            asked.append(gates.not_judged(name, 0.0, f"{len(recalls.actions)} next actions in the window"))
            continue
        gap = recalls.gap(CHALLENGER, other)
        if other == CHAMPION:
            asked.append(gates.recall_gate(name, MEASURED, version, gap, limits))
        else:
            asked.append(gates.baseline_gate(name, f"{MEASURED} {told_gain(gap)} over {version}", gap))
    return asked


def over_counts(
    root: Path,
    domain: Domain,
    window_name: str,
    window: EvaluationSet,
    logit_RCH: NDArray[np.float32],
    counts: str,
    limits: GateLimits,
) -> Gate:
    """Whether a model is not certainly worse than the baseline `counts`. A ranker that is live keeps its place over a
    day's chance; one that wants the place of a baseline has to be certainly better (`choose.earned`)."""
    labels = window.num_labels(domain.head_names.index(domain.positive_head))
    if labels < limits.min_labels:
        return gates.not_judged(OVER_COUNTS, 0.0, f"{labels} labels in the window")
    counts_RCH = score_version(root, counts, window_name, domain)
    measured, gain = advantage(window, logit_RCH, counts_RCH, domain)
    return gates.baseline_gate(OVER_COUNTS, f"{measured} {told_gain(gain)} over {counts}", gain)


def champion_over_counts(root: Path, window_name: str, champion: str, counts: str, limits: GateLimits) -> Gate:
    """`over_counts` of a live champion, on a window that neither was trained on.

    Raises:
        PublishError: one of them, or the window, does not load.
    """
    domain, _ = read_root(root)
    if is_made_up(root, window_name):
        versions = {CHALLENGER: champion, COUNTS: counts}
        recalls = Recalls.of(root, domain, window_name, versions)
        return recall_gates(recalls, {**versions, CHAMPION: None}, limits)[0]
    window = read_window(root, window_name, domain)
    logits = score_version(root, champion, window_name, domain)
    return over_counts(root, domain, window_name, window, logits, counts, limits)


def champion_gate(root: Path, domain: Domain, window_name: str, champion: str, limits: GateLimits) -> Gate:
    """Whether the champion still orders a day's items as it did in its last test; when it does not from one day to the
    next, the day's labels are to be doubted. Labels of another meaning keep every rate that the watch counts."""
    name, limit = "champion's AUC", limits.max_champion_auc_drop
    if is_made_up(root, window_name):
        return gates.not_judged(name, limit, "nobody saw the lists of this day")
    metrics = read_json(root / MODELS / champion / "metrics.json")
    head = domain.positive_head
    before = metrics["heads"].get(head, {}).get("auc")
    window = read_window(root, window_name, domain)
    labels = window.num_labels(domain.head_names.index(head))
    if before is None or labels < limits.min_labels:
        return gates.not_judged(name, limit, f"{labels} labels in the window")
    logits = score_version(root, champion, window_name, domain)
    rows = compare(window, {CHAMPION: [logits]}, domain, heads=[head])
    now = next(r.estimate for r in rows if r.metric == "auc" and r.segment == "all")
    drop = before - now.high
    words = f"{now.value:.4f} [{now.low:.4f}, {now.high:.4f}] of {head} on this day, {before:.4f} in its last test"
    return Gate(name, drop <= limit, drop, limit, words + ("" if drop <= limit else ": are the labels right?"))


def _reload(
    root: Path,
    challenger: str,
    window_name: str,
    window: EvaluationSet,
    logit_RCH: NDArray[np.float32],
    domain: Domain,
    limits: GateLimits,
) -> Gate:
    metrics = read_json(root / MODELS / challenger / "metrics.json")
    if metrics["test_window"] != window_name:
        return gates.not_judged("reload", limits.max_reload_difference, f"it was tested on {metrics['test_window']}")
    return gates.reload_gate(metrics["heads"], report(window, logit_RCH, domain), limits)


def _shift(
    window: EvaluationSet, logits: dict[str, NDArray[np.float32]], domain: Domain, limits: GateLimits, num_heads: int
) -> list[Gate]:
    """Of the first heads, which both have."""
    logits = {name: logit_RCH[:, :, :num_heads] for name, logit_RCH in logits.items()}
    probability = {name: (1 / (1 + np.exp(-logit_RCH))).astype(np.float32) for name, logit_RCH in logits.items()}
    utility_H = np.asarray(domain.utilities, np.float32)[:num_heads]
    score_N = {name: (p_RCH @ utility_H)[window.valid_RC] for name, p_RCH in probability.items()}
    means = {
        head: tuple(float(probability[name][:, :, h][window.valid_RC].mean()) for name in (CHAMPION, CHALLENGER))
        for h, head in enumerate(domain.head_names[:num_heads])
    }
    pairs = {head: (old, new) for head, (old, new) in means.items()}
    return gates.shift_gates(score_N[CHAMPION], score_N[CHALLENGER], pairs, limits)


def _latency(models: dict[str, LoadedModel], limits: GateLimits) -> Gate:
    times: dict[str, list[float]] = {name: [] for name in models}
    requests = {name: timed_request(model) for name, model in models.items()}
    for name, model in models.items():
        model.scorer.score(requests[name])  # a first call sets things up
    for _ in range(LATENCY_REPEATS):
        for name, model in models.items():
            times[name].append(_seconds(model.scorer, requests[name]))
    return gates.latency_gate(times[CHAMPION], times[CHALLENGER], limits)


def _seconds(scorer: Scorer, request: Requests) -> float:
    started = time.perf_counter()
    scorer.score(request)
    return time.perf_counter() - started


def timed_request(model: LoadedModel) -> Requests:
    """One request with as many actions as the model reads and LATENCY_CANDIDATES candidates of its table."""
    items = model.table.items[:LATENCY_CANDIDATES]
    hash_N = np.fromiter((hash64(item["item_id"]) for item in items), np.uint64, len(items))
    candidate_hash_C = np.resize(hash_N, LATENCY_CANDIDATES)
    item_hash_L = np.resize(hash_N, model.config.history_length)
    domain = model.domain
    return full_request(domain.context_attributes, Columns.of(domain).widths, item_hash_L, candidate_hash_C)
