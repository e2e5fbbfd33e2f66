"""Scores a window and reports what the paper reports: HIT@3 per head per request; beside it AUC, AUC within requests,
normalised entropy and calibration, for everyone and by how active the user was.

Shapes: R requests, C candidates (padded), N candidates of some requests, H heads, K weightings of users.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from rayapp.contracts.config import Domain
from rayapp.features.requests import Requests, pad, valid_places
from rayapp.features.segments import CORE_ACTIONS, SEGMENTS
from rayapp.model.scorer import Scorer
from rayapp.pipeline.window_loader import WindowReader
from rayapp.registry.models import load_model
from rayapp.statistics.known import load_newest
from rayapp.training import metrics

BATCH_REQUESTS: Final = 512
CHUNK_REQUESTS: Final = 2_000
"""Requests compared at a time: comparing candidates with each other takes R x C x C."""
METRICS: Final = ("auc", "request_auc", "hit3", "normalised_entropy", "calibration")
Report = dict[str, dict[str, float]]


@dataclass(frozen=True, slots=True)
class EvaluationSet:
    """A window's requests as they are judged: the same for every model that is compared. Padded candidates are False in
    `valid_RC`."""

    label_RCH: NDArray[np.float32]
    valid_RC: NDArray[np.bool_]
    user_hash_R: NDArray[np.uint64]
    activity_R: NDArray[np.int64]
    """Actions that the user's sequence held, at most CORE_ACTIONS."""
    request_id_R: NDArray[np.object_]

    def segment(self, name: str) -> NDArray[np.bool_]:
        """The requests of a segment; of "all", every one."""
        low, high = SEGMENTS.get(name, (0, 1 << 30))
        return np.asarray((self.activity_R >= low) & (self.activity_R < high))

    def num_labels(self, h: int) -> int:
        """Of the h-th head."""
        return int((self.label_RCH[:, :, h] * self.valid_RC).sum())


def read_window(root: Path, name: str, domain: Domain) -> EvaluationSet:
    """Labels, users and activity of a window's requests, in the reader's order."""
    batches = list(WindowReader(root, [name], domain, CORE_ACTIONS).in_order(BATCH_REQUESTS))
    size_R = np.concatenate([b.requests.sizes for b in batches])
    return EvaluationSet(
        pad(np.concatenate([b.label_NH for b in batches]), size_R),
        valid_places(size_R),
        np.concatenate([b.requests.user_hash_R for b in batches]),
        np.concatenate([b.requests.sequences.length_R for b in batches]),
        np.concatenate([b.request_id_B for b in batches]),
    )


def score_window(scorer: Scorer, root: Path, name: str, domain: Domain) -> NDArray[np.float32]:
    """Calibrated logits `[R, C, H]` of every candidate of every request. The scorer reads the statistics that it was
    trained on, and of heads that the domain has gained since it knows nothing: their logits are 0."""
    statistics = load_newest(root, scorer.inputs.domain)
    reader = WindowReader(root, [name], domain, scorer.history_length, statistics=statistics)
    logit_RCH = of_candidates(reader, lambda requests: scorer.logits(requests).float().cpu().numpy())
    return np.pad(logit_RCH, [(0, 0), (0, 0), (0, len(domain.heads) - logit_RCH.shape[2])])


def score_version(root: Path, version: str, name: str, domain: Domain) -> NDArray[np.float32]:
    """`score_window` of a published model.

    Raises:
        PublishError: the model or the window can't be read.
    """
    return score_window(load_model(root, version, domain).scorer, root, name, domain)


def popularity_logits(likes_N: NDArray[Any], most: float, domain: Domain) -> NDArray[np.float32]:
    """`[N, H]`: a head's odds are the item's likes, which may have faded, over `most`; a negative head's are their
    inverse, so that the feed score puts the liked first whatever the utilities are."""
    log_odds_N = np.log((likes_N + 0.5) / (max(most, 1) + 0.5)).astype(np.float32)
    sign_H = np.where(np.array(domain.utilities) < 0, -1, 1).astype(np.float32)
    return np.asarray(log_odds_N[:, None] * sign_H, np.float32)


def of_candidates(reader: WindowReader, values: Callable[[Requests], NDArray[Any]]) -> NDArray[Any]:
    """`values` `[N, ...]` of some requests, for all requests that the reader has, padded: `[R, C, ...]`."""
    parts = [(batch.requests.sizes, values(batch.requests)) for batch in reader.in_order(BATCH_REQUESTS)]
    return pad(np.concatenate([value_N for _, value_N in parts]), np.concatenate([size_B for size_B, _ in parts]))


def feed_score(probability_RCH: NDArray[np.float32], domain: Domain) -> NDArray[np.float32]:
    """The score a feed is sorted by: the sum of utility times probability over the heads."""
    score: NDArray[np.float32] = probability_RCH @ np.asarray(domain.utilities, np.float32)
    return score


def report(window: EvaluationSet, logit_RCH: NDArray[np.float32], domain: Domain) -> Report:
    """Head -> metric -> value, over all requests. NaN where a metric is not defined."""
    rows = {}
    for h, head in enumerate(domain.head_names):
        values = {name: float(measure(None)[0]) for name, measure in measures(window, logit_RCH, domain, h).items()}
        rows[head] = values | {"labels": float(window.num_labels(h))}
    return rows


def within_lists(
    logit_RC: NDArray[np.float32], label_RC: NDArray[np.float32], valid_RC: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """AUC within each list `[R]`; NaN for one whose items all have, or all lack, the label."""
    parts = _chunks(len(label_RC))
    found = [metrics.auc_by_request(logit_RC[part], label_RC[part], valid_RC[part]) for part in parts]
    return np.concatenate([np.zeros(0), *found])


def _chunks(num_requests: int) -> list[slice]:
    return [slice(at, at + CHUNK_REQUESTS) for at in range(0, num_requests, CHUNK_REQUESTS)]


Measure = Callable[[NDArray[np.float64] | None], NDArray[np.float64]]


def measures(
    window: EvaluationSet, logit_RCH: NDArray[np.float32], domain: Domain, h: int, segment: str = "all"
) -> dict[str, Measure]:
    """Metric -> a function from weights of requests `[K, R of the segment]` to values `[K]`.

    HIT@3 sorts by the feed score, the others by the head's own.
    """
    rows_R = window.segment(segment)
    logit_RCH, valid_RC = logit_RCH[rows_R], window.valid_RC[rows_R]
    label_RC = np.where(valid_RC, window.label_RCH[rows_R, :, h], 0.0).astype(np.float32)
    probability_RCH = torch.sigmoid(torch.from_numpy(np.ascontiguousarray(logit_RCH))).numpy()
    score_RC = feed_score(probability_RCH, domain)
    hits = [metrics.hits_at_k(score_RC[part], label_RC[part], valid_RC[part]) for part in _chunks(len(label_RC))]
    hits_R, within_R = np.concatenate([np.zeros(0), *hits]), within_lists(logit_RCH[:, :, h], label_RC, valid_RC)
    request_N = np.repeat(np.arange(len(valid_RC)), valid_RC.sum(axis=1))
    logit_N, label_N = logit_RCH[:, :, h][valid_RC], label_RC[valid_RC]
    probability_N = probability_RCH[:, :, h][valid_RC]

    def each(weight_KR: NDArray[np.float64] | None) -> NDArray[np.float64] | None:
        return None if weight_KR is None else weight_KR[:, request_N]

    return {
        "auc": lambda w: metrics.auc(logit_N, label_N, each(w)),
        "request_auc": lambda w: metrics.mean_known(within_R, w),
        "hit3": lambda w: metrics.hit_rate(hits_R, label_RC.sum(axis=1).astype(np.float64), w),
        "normalised_entropy": lambda w: metrics.normalised_entropy(probability_N, label_N, each(w)),
        "calibration": lambda w: metrics.calibration_ratio(probability_N, label_N, each(w)),
    }
