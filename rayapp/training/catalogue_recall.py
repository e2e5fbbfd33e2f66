"""Recall@20 over the whole catalogue on the real next action: how models are compared where nobody saw a list.

All models get the same candidates: items that existed at the action's time and that the domain's `seen` lets the user
see then. They are ordered by the feed score.

Shapes: R next actions, N items of the catalogue, C candidates of one action, L history rows, S half-lives, H heads.
"""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rayapp.contracts.config import Domain
from rayapp.contracts.hashing import hash64_column
from rayapp.contracts.schema import PAD
from rayapp.features.requests import Requests
from rayapp.features.seen import Seen
from rayapp.model.scorer import Scorer
from rayapp.pipeline.window_loader import WindowReader
from rayapp.registry.models import load_model
from rayapp.root.catalogue import read_catalogue
from rayapp.root.places import WINDOWS
from rayapp.root.publish import read_manifest
from rayapp.statistics.known import Statistics, load_newest
from rayapp.training.comparison import DRAWS, BootstrapInterval
from rayapp.training.evaluate import BATCH_REQUESTS
from rayapp.training.metrics import mean_known

K: Final = 20
MOST_ACTIONS: Final = 1_000
FEWEST_ACTIONS: Final = 300
MOST_SCORES: Final = 3_000_000
"""Of one model: with a large catalogue fewer actions are looked at, so that it stays with some ten seconds a model."""
SCORED_AT_ONCE: Final = 20_000
Hits = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class NextActions:
    """Some next actions of a window, in order of time."""

    requests: Requests
    """Their users as they were just before; the candidates are of no matter."""
    target_hash_R: NDArray[np.uint64]
    hash_N: NDArray[np.uint64]
    created_ms_N: NDArray[np.int64]
    seen: Seen
    num_all: int
    """Next actions of the window."""

    def __len__(self) -> int:
        return len(self.target_hash_R)

    def candidates(self, r: int) -> NDArray[np.int64]:
        """Which items of the catalogue the r-th user could have been shown."""
        sequences, now_ms = self.requests.sequences, int(self.requests.timestamp_ms_R[r])
        action_L = sequences.action_RL[r]
        seen_L = (action_L != PAD) & (self.seen.until_ms(action_L, sequences.timestamp_ms_RL[r]) > now_ms)
        seen_N = np.isin(self.hash_N, sequences.item_hash_RL[r][seen_L])
        return np.flatnonzero((self.created_ms_N <= now_ms) & ~seen_N)


def read_next_actions(root: Path, window: str, domain: Domain, most: int = MOST_ACTIONS) -> NextActions:
    """A sample of a window of made-up lists, drawn by lot: each list's chosen item is the answer.

    Raises:
        PublishError: the window or the catalogue can't be read.
    """
    catalogue = read_catalogue(root)
    length = int(read_manifest(root / WINDOWS / window)["history_length"])
    reader = WindowReader(root, [window], domain, length)
    affordable = max(MOST_SCORES // max(catalogue.num_rows, 1), FEWEST_ACTIONS)
    num_sampled = min(reader.num_requests, affordable, most)
    sampled = np.sort(np.random.default_rng(0).choice(reader.num_requests, num_sampled, replace=False))
    parts, targets, at = list[Requests](), [np.zeros(0, np.uint64)], 0
    for batch in reader.in_order(BATCH_REQUESTS):
        rows = sampled[(sampled >= at) & (sampled < at + len(batch))] - at
        at += len(batch)
        chosen_N = np.asarray(batch.label_NH.any(axis=1))
        first_R = batch.requests.pad(chosen_N).argmax(axis=1) + batch.requests.offset_R[:-1]
        known = rows[chosen_N[first_R[rows]]]  # of erased users nothing is left
        parts.append(batch.requests.take(known))
        targets.append(batch.requests.candidate_hash_N[first_R[known]])
    requests, target_hash_R = Requests.concatenate(parts), np.concatenate(targets)
    order = np.argsort(requests.timestamp_ms_R, kind="stable")
    return NextActions(
        requests.take(order),
        target_hash_R[order],
        hash64_column(catalogue["item_id"]),
        catalogue["created_at_ms"].to_numpy(),
        Seen.of(domain),
        reader.num_requests,
    )


def hits_of(actions: NextActions, score: Callable[[int, NDArray[np.int64]], NDArray[np.floating]]) -> Hits:
    """`[R]`: whether the K best candidates hold the answer. `score(r, candidates)`: higher is better.

    Candidates tied with the answer over the K-th place count with the share of orders that put it within K.
    """
    hit_R = np.zeros(len(actions))
    for r in range(len(actions)):
        row_C = actions.candidates(r)
        target = np.flatnonzero(actions.hash_N[row_C] == actions.target_hash_R[r])
        if len(target):
            score_C = score(r, row_C)
            own = score_C[target[0]]
            above, tied = int((score_C > own).sum()), int((score_C == own).sum())
            hit_R[r] = min(max((K - above) / tied, 0.0), 1.0)
    return hit_R


def model_hits(scorer: Scorer, actions: NextActions, statistics: Statistics, domain: Domain) -> Hits:
    """`hits_of` a model, by its feed score."""
    sequences = actions.requests.sequences.of_length(scorer.history_length)
    requests = dataclasses.replace(actions.requests, sequences=sequences)
    step_R = statistics.grid.step(requests.timestamp_ms_R)
    user_RK = statistics.users(requests.user_hash_R, step_R)
    utility_H = np.asarray(domain.utilities, np.float64)

    @lru_cache(maxsize=1)  # actions come in order of time: one look-up a step
    def items_at(step: int) -> NDArray[np.float32]:
        return statistics.items(actions.hash_N, np.full(len(actions.hash_N), step))

    def score(r: int, row_C: NDArray[np.int64]) -> NDArray[np.floating]:
        one, scores = requests.take(np.array([r])), []
        for part in _parts(row_C):
            asked = dataclasses.replace(
                one,
                offset_R=np.array([0, len(part)]),
                candidate_hash_N=actions.hash_N[part],
                user_statistic_RK=user_RK[r : r + 1],
                item_statistic_NK=items_at(int(step_R[r]))[part],
            )
            scores.append(scorer.score(asked).probability_CH.astype(np.float64) @ utility_H)
        return np.concatenate(scores)

    return hits_of(actions, score)


def version_hits(root: Path, version: str, actions: NextActions, domain: Domain) -> Hits:
    """`model_hits` of a published model.

    Raises:
        PublishError: the model or the statistics can't be read.
    """
    scorer = load_model(root, version, domain).scorer
    return model_hits(scorer, actions, load_newest(root, scorer.inputs.domain), domain)


def popular_recalls(actions: NextActions, statistics: Statistics) -> NDArray[np.float64]:
    """`[S]`: recall of the most positive actions on an item, with each half-life."""
    step_R = statistics.grid.step(actions.requests.timestamp_ms_R)

    @lru_cache(maxsize=1)
    def positives_at(step: int) -> NDArray[np.float64]:
        return statistics.positives(actions.hash_N, np.full(len(actions.hash_N), step))

    def score(r: int, row_C: NDArray[np.int64], s: int) -> NDArray[np.float64]:
        return np.asarray(positives_at(int(step_R[r]))[row_C, s])

    num_half_lives = len(statistics.grid.half_lives_ms)
    return np.array([hits_of(actions, partial(score, s=s)).mean() for s in range(num_half_lives)])


def hit_gap(one_R: Hits, other_R: Hits, user_hash_R: NDArray[np.uint64], *, draws: int = DRAWS) -> BootstrapInterval:
    """Recall of one model less that of another on the same actions, over draws of users."""
    user_R = np.unique(user_hash_R, return_inverse=True)[1]
    weight_KU = np.random.default_rng(0).poisson(1.0, (draws, int(user_R.max(initial=-1)) + 1)).astype(np.float64)
    gap_K = mean_known(one_R - other_R, np.concatenate([np.ones((1, len(user_R))), weight_KU[:, user_R]]))
    return BootstrapInterval.of(float(gap_K[0]), gap_K[1:])


def _parts(row_C: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    for at in range(0, len(row_C), SCORED_AT_ONCE):
        yield row_C[at : at + SCORED_AT_ONCE]
