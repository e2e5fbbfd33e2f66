"""Scores a window and reports what the paper reports: HIT@3 per head per request, and AUC per head.

Shapes: R requests, C candidates, H heads.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rayapp.config import Domain
from rayapp.model.item_table import ItemTable
from rayapp.model.ranker import Ranker
from rayapp.model.scorer import ItemArrays
from rayapp.pipeline.reader import WindowReader
from rayapp.training.loop import to_tensors
from rayapp.training.metrics import auc, hits_at_k, normalised_entropy

BATCH_REQUESTS = 512


@dataclass(frozen=True, slots=True)
class Scored:
    """A scored window. Padded candidates are False in `valid_RC`."""

    probability_RCH: NDArray[np.float32]
    label_RCH: NDArray[np.float32]
    valid_RC: NDArray[np.bool_]
    length_R: NDArray[np.int64]


def score_window(ranker: Ranker, reader: WindowReader, table: ItemTable, arrays: ItemArrays, domain: Domain) -> Scored:
    """Probabilities of every candidate of every request."""
    parts: list[tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_], NDArray[np.int64]]] = []
    ranker.eval()
    for requests in reader.in_order(BATCH_REQUESTS):
        batch, _, _ = to_tensors(requests, table, arrays, domain.vocabulary.size)
        with torch.inference_mode():
            probability = torch.sigmoid(ranker(batch)).float().cpu().numpy()
        parts.append((probability, requests.label_BCH, requests.valid_BC, requests.sequences.length_R))
    return _stack(parts)


def score_popularity(reader: WindowReader, table: ItemTable, domain: Domain) -> Scored:
    """The comparison without any model: every head's score is the item's likes before the test window."""
    scale = float(max(table.likes_N.max(), 1)) + 1.0
    parts = []
    for requests in reader.in_order(BATCH_REQUESTS):
        share_BC = (table.likes_N[table.rows_of(requests.candidate_hash_BC)] / scale).astype(np.float32)
        probability = np.repeat(share_BC[:, :, None], len(domain.heads), axis=2)
        parts.append((probability, requests.label_BCH, requests.valid_BC, requests.sequences.length_R))
    return _stack(parts)


def _stack(
    parts: list[tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_], NDArray[np.int64]]],
) -> Scored:
    width = max(valid.shape[1] for _, _, valid, _ in parts)

    def padded(array: NDArray[Any]) -> NDArray[Any]:
        return np.pad(array, [(0, 0), (0, width - array.shape[1])] + [(0, 0)] * (array.ndim - 2))

    probability, label, valid, length = zip(*parts, strict=True)
    return Scored(
        np.concatenate([padded(p) for p in probability]),
        np.concatenate([padded(x) for x in label]),
        np.concatenate([padded(v) for v in valid]),
        np.concatenate(length),
    )


def feed_score(probability_RCH: NDArray[np.float32], domain: Domain) -> NDArray[np.float32]:
    """The score a feed is sorted by: the sum of utility times probability over the heads."""
    score: NDArray[np.float32] = probability_RCH @ np.asarray(domain.utilities, np.float32)
    return score


def report(
    scored: Scored, domain: Domain, *, score_RC: NDArray[np.float32] | None = None
) -> dict[str, dict[str, float]]:
    """Head -> metrics. `hit3` sorts by the feed score (or `score_RC`), over requests that hold the label."""
    if score_RC is None:
        score_RC = feed_score(scored.probability_RCH, domain)
    result = {}
    for h, name in enumerate(domain.head_names):
        label_RC = np.where(scored.valid_RC, scored.label_RCH[:, :, h], 0.0).astype(np.float32)
        has_label = label_RC.sum(axis=1) > 0
        hits = hits_at_k(score_RC, label_RC, scored.valid_RC)
        p_N, y_N = scored.probability_RCH[:, :, h][scored.valid_RC], scored.label_RCH[:, :, h][scored.valid_RC]
        result[name] = {
            "auc": auc(p_N, y_N),
            "hit3": float(hits[has_label].sum() / max(label_RC[has_label].sum(), 1)),
            "normalised_entropy": normalised_entropy(p_N, y_N),
            "labels": float(y_N.sum()),
        }
    return result
