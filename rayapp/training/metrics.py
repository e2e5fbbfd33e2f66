"""Ranking metrics, on arrays. Shapes: N examples, R requests, C candidates of a request."""

import numpy as np
from numpy.typing import NDArray


def auc(score_N: NDArray[np.float32], label_N: NDArray[np.float32]) -> float:
    """Area under the ROC curve, ties counted half; NaN when one class is missing."""
    positive_N = label_N > 0
    num_positive, num_negative = int(positive_N.sum()), int((~positive_N).sum())
    if not num_positive or not num_negative:
        return float("nan")
    _, inverse, count = np.unique(score_N, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    rank_N = (last - (count - 1) / 2)[inverse]  # mid-rank of each tie group, from 1
    return float((rank_N[positive_N].sum() - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))


def hits_at_k(
    score_RC: NDArray[np.float32], label_RC: NDArray[np.float32], valid_RC: NDArray[np.bool_], k: int = 3
) -> NDArray[np.float64]:
    """For each request, the items with the label among its k best (TransAct, section 4.1.2); ties share a place.

    An item tied with others over the k-th place counts with the share of orders that put it within k, so a model
    that scores everything alike gets what chance gives and no more.
    """
    score_RC = np.where(valid_RC, score_RC, -np.inf)
    above_RC = (score_RC[:, None, :] > score_RC[:, :, None]).sum(axis=2)
    tied_RC = ((score_RC[:, None, :] == score_RC[:, :, None]) & valid_RC[:, None, :]).sum(axis=2)
    share_RC = np.clip((k - above_RC) / np.maximum(tied_RC, 1), 0.0, 1.0)
    hits_R: NDArray[np.float64] = np.where(valid_RC & (label_RC > 0), share_RC, 0.0).sum(axis=1)
    return hits_R


def normalised_entropy(probability_N: NDArray[np.float32], label_N: NDArray[np.float32]) -> float:
    """Log loss over the log loss of always saying the base rate (He et al., ADKDD 2014); below 1 is useful."""
    base = float(np.clip(label_N.mean(), 1e-7, 1 - 1e-7))
    p = np.clip(probability_N.astype(np.float64), 1e-7, 1 - 1e-7)
    loss = -(label_N * np.log(p) + (1 - label_N) * np.log(1 - p)).mean()
    return float(loss / -(base * np.log(base) + (1 - base) * np.log(1 - base)))
