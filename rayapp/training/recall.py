"""Do item vectors find what a user engages with next? Recall@20 against popularity and random vectors.

The query is the mean of the user's last engaged items before the end of the tower's training data; the answer is the
first one after it. Told apart: items the tower was trained with, and items that nobody had engaged with then.

Shapes: N items, Q queries, L context items, E width.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from rayapp.pipeline.engagements import Engagements

K: Final = 20
CONTEXT: Final = 5
MAX_QUERIES: Final = 5_000


def recall_report(
    vectors_NE: NDArray[np.float32], engagements: Engagements, until_ms: int, seed: int = 0
) -> dict[str, dict[str, float]]:
    """`{"seen"|"unseen": {"tower", "popularity", "random", "n"}}`; without a query the recalls are absent and n is 0.

    Candidates are all items of the kind (seen, or unseen) that the user had not engaged with before.
    """
    train = engagements.before(until_ms)
    likes_N = np.bincount(train.item_P, minlength=len(vectors_NE))
    is_test = engagements.timestamp_ms_P >= until_ms
    before_P = np.r_[False, engagements.user_P[1:] == engagements.user_P[:-1]] & np.r_[False, ~is_test[:-1]]
    first_P = np.flatnonzero(is_test & before_P)
    rng = np.random.default_rng(seed)
    random_NE = rng.normal(size=vectors_NE.shape).astype(np.float32)
    random_NE /= np.linalg.norm(random_NE, axis=1, keepdims=True)
    context_PL = engagements.contexts(CONTEXT)
    report: dict[str, dict[str, float]] = {}
    for name, of_kind_N in (("seen", likes_N > 0), ("unseen", likes_N == 0)):
        rows = first_P[of_kind_N[engagements.item_P[first_P]]]
        if name == "unseen":  # rarer: any engagement after the end counts, with the user's past before the end
            rows = _unseen_rows(engagements, is_test, of_kind_N, first_P)
        rows = rng.permutation(rows)[:MAX_QUERIES]
        if not len(rows):
            report[name] = {"n": 0}
            continue
        base = first_P[np.searchsorted(engagements.user_P[first_P], engagements.user_P[rows])]
        target_Q = engagements.item_P[rows]
        known = _history_sets(engagements, base)
        scores = {
            "tower": lambda c: _similarity(vectors_NE, c),
            "popularity": lambda c: np.repeat(likes_N[None, :].astype(np.float32), len(c), axis=0),
            "random": lambda c: _similarity(random_NE, c),
        }
        report[name] = {"n": len(rows)}
        for kind, score in scores.items():
            report[name][kind] = _recall(score, context_PL[base], target_Q, of_kind_N, known, rng)
    return report


def _unseen_rows(
    engagements: Engagements, is_test: NDArray[np.bool_], of_kind_N: NDArray[np.bool_], first_P: NDArray[np.int64]
) -> NDArray[np.int64]:
    has_past = np.isin(engagements.user_P, engagements.user_P[first_P])
    return np.flatnonzero(is_test & has_past & of_kind_N[engagements.item_P])


def _history_sets(engagements: Engagements, base: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    start = np.searchsorted(engagements.user_P, engagements.user_P[base])
    return [engagements.item_P[a:b] for a, b in zip(start, base, strict=True)]


def _similarity(vectors_NE: NDArray[np.float32], context_QL: NDArray[np.int64]) -> NDArray[np.float32]:
    taken = vectors_NE[context_QL.clip(min=0)] * (context_QL >= 0)[:, :, None]
    return np.asarray(taken.mean(axis=1) @ vectors_NE.T)


def _recall(
    score: object,
    context_QL: NDArray[np.int64],
    target_Q: NDArray[np.int64],
    of_kind_N: NDArray[np.bool_],
    known: list[NDArray[np.int64]],
    rng: np.random.Generator,
) -> float:
    assert callable(score)
    hits = 0.0
    for at in range(0, len(target_Q), 256):
        part = slice(at, at + 256)
        score_QN = score(context_QL[part]).astype(np.float64)
        score_QN += rng.random(score_QN.shape) * 1e-9  # ties, such as items of no popularity, fall by lot
        score_QN[:, ~of_kind_N] = -np.inf
        for row, items in enumerate(known[part]):
            score_QN[row, items] = -np.inf
        target = target_Q[part]
        own = score_QN[np.arange(len(target)), target]
        # A target the user had engaged with before is found by no ranking here.
        hits += float(((score_QN > own[:, None]).sum(axis=1)[np.isfinite(own)] < K).sum())
    return hits / len(target_Q)
