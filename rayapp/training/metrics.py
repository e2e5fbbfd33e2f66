"""Ranking metrics, each as a function of the weights of users: a bootstrap over users asks for many weightings.

Shapes: N examples, R requests, C candidates of a request, K weightings.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def auc(score_N: NDArray[np.float32], label_N: NDArray[np.float32], weight_KN: Floats | None = None) -> Floats:
    """Area under the ROC curve `[K]`, ties counted half; NaN where one class has no weight."""
    if weight_KN is None:
        weight_KN = np.ones((1, len(score_N)))
    order = np.argsort(score_N, kind="stable")
    start = np.flatnonzero(np.r_[True, np.diff(score_N[order]) != 0][: len(order)])
    positive_N = label_N[order] > 0
    result = np.full(len(weight_KN), np.nan)
    if not len(order):
        return result
    for k, weight_N in enumerate(weight_KN):
        sorted_N = weight_N[order]
        positive_T = np.add.reduceat(sorted_N * positive_N, start)
        negative_T = np.add.reduceat(sorted_N * ~positive_N, start)
        pairs = positive_T.sum() * negative_T.sum()
        if pairs > 0:
            below_T = np.cumsum(negative_T) - negative_T / 2
            result[k] = float(positive_T @ below_T) / pairs
    return result


def normalised_entropy(
    probability_N: NDArray[np.float32], label_N: NDArray[np.float32], weight_KN: Floats | None = None
) -> Floats:
    """Log-loss over that of the constant base rate `[K]` (He et al., ADKDD 2014): below 1 is better than knowing
    nothing; NaN where one class has no weight."""
    if weight_KN is None:
        weight_KN = np.ones((1, len(label_N)))
    p_N = np.clip(probability_N.astype(np.float64), 1e-7, 1 - 1e-7)
    loss_N = -np.where(label_N > 0, np.log(p_N), np.log1p(-p_N))
    total_K = weight_KN.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        base_K = (weight_KN @ (label_N > 0)) / total_K
        entropy_K = -(base_K * np.log(base_K) + (1 - base_K) * np.log(1 - base_K))
        return np.asarray(np.where(entropy_K > 0, (weight_KN @ loss_N) / total_K / entropy_K, np.nan))


def calibration_ratio(
    probability_N: NDArray[np.float32], label_N: NDArray[np.float32], weight_KN: Floats | None = None
) -> Floats:
    """Sum of the probabilities over the number of labels `[K]`: 1 is calibrated; NaN without labels."""
    if weight_KN is None:
        weight_KN = np.ones((1, len(label_N)))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio_K = (weight_KN @ probability_N.astype(np.float64)) / (weight_KN @ (label_N > 0))
    return np.asarray(np.where(np.isfinite(ratio_K), ratio_K, np.nan))


def hits_at_k(
    score_RC: NDArray[np.float32], label_RC: NDArray[np.float32], valid_RC: NDArray[np.bool_], k: int = 3
) -> Floats:
    """For each request, the items with the label among its k best (TransAct, section 4.1.2); ties share a place.

    An item tied with others over the k-th place counts with the share of orders that put it within k, so a model
    that scores everything alike gets what chance gives and no more.
    """
    score_RC = np.where(valid_RC, score_RC, -np.inf)
    above_RC = (score_RC[:, None, :] > score_RC[:, :, None]).sum(axis=2)
    tied_RC = ((score_RC[:, None, :] == score_RC[:, :, None]) & valid_RC[:, None, :]).sum(axis=2)
    share_RC = np.clip((k - above_RC) / np.maximum(tied_RC, 1), 0.0, 1.0)
    hits_R: Floats = np.where(valid_RC & (label_RC > 0), share_RC, 0.0).sum(axis=1)
    return hits_R


def hit_rate(hits_R: Floats, labels_R: Floats, weight_KR: Floats | None = None) -> Floats:
    """Share of the labels that `hits_at_k` found `[K]`; NaN without labels."""
    if weight_KR is None:
        weight_KR = np.ones((1, len(hits_R)))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((weight_KR @ hits_R) / (weight_KR @ labels_R))


def auc_by_request(score_RC: NDArray[np.float32], label_RC: NDArray[np.float32], valid_RC: NDArray[np.bool_]) -> Floats:
    """AUC within each request `[R]`, ties counted half; NaN for one whose items all have, or all lack, the label."""
    positive_RC, negative_RC = valid_RC & (label_RC > 0), valid_RC & (label_RC <= 0)
    pair_RCC = positive_RC[:, :, None] & negative_RC[:, None, :]
    difference_RCC = score_RC[:, :, None] - score_RC[:, None, :]
    won_R = (pair_RCC * (np.sign(difference_RCC) + 1) / 2).sum(axis=(1, 2))
    pairs_R = pair_RCC.sum(axis=(1, 2))
    return np.asarray(np.where(pairs_R > 0, won_R / np.maximum(pairs_R, 1), np.nan))


def mean_known(value_R: Floats, weight_KR: Floats | None = None) -> Floats:
    """Weighted mean `[K]` of what is not NaN."""
    if weight_KR is None:
        weight_KR = np.ones((1, len(value_R)))
    known_R = ~np.isnan(value_R)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((weight_KR[:, known_R] @ value_R[known_R]) / weight_KR[:, known_R].sum(axis=1))
