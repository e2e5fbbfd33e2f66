"""What a ranker has to beat: decayed popularity, and a logistic regression over counts.

Both read decayed counts as of each request's time (`features.statistics`), so they know what a server would have known:
`popularity` is the half-life whose count ranks the validation window best; `counts` weighs rates and counts of the item
and of its categories, the user's own actions on those categories by kind, and the item's age.

Shapes: R requests, N candidates of all of them, C of the largest, H heads, A = H + 1 counted kinds (impressions first),
S half-lives, L history rows, V category values of candidates end to end, K = 3 kinds of action, F features,
B = 2 baselines.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from rayapp.contracts.config import HOUR_MS, Domain
from rayapp.contracts.hashing import hash64_column, places_of
from rayapp.contracts.schema import ActionKind, AttributeKind
from rayapp.features.requests import Requests, offsets, ragged_places
from rayapp.features.statistics import DecayedCounts
from rayapp.pipeline.item_counts import IMPRESSIONS, KEYS, count_items, decayed
from rayapp.pipeline.window_loader import WindowReader
from rayapp.root.catalogue import read_catalogue
from rayapp.root.places import WINDOWS
from rayapp.root.publish import read_manifest
from rayapp.root.rates import PRIOR_STRENGTH, log_odds
from rayapp.training import metrics
from rayapp.training.comparison import Logits
from rayapp.training.evaluate import BATCH_REQUESTS, of_candidates, popularity_logits

POPULARITY: Final = "popularity"
COUNTS: Final = "counts"
MAX_EXAMPLES: Final = 200_000
WEIGHT_DECAY: Final = 1e-4
HISTORY_LENGTH: Final = 100
"""The most actions of a user that `counts` reads."""
SPREAD: Final = np.uint64(0x9E3779B97F4A7C15)
"""An odd number whose multiples lie far apart."""
KINDS: Final = (ActionKind.POSITIVE, ActionKind.NEGATIVE, ActionKind.NEUTRAL)
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Items by the hash of their ids, with their categories as one ragged array."""

    hash_I: NDArray[np.uint64]
    created_ms_I: NDArray[np.int64]
    offset_I: NDArray[np.int64]
    value_V: NDArray[np.uint64]
    """Hashes of attribute and value."""

    @staticmethod
    def of(items: pa.Table, domain: Domain) -> "Catalogue":
        hash_I = hash64_column(items["item_id"])
        row, value = [np.zeros(0, np.int64)], [np.zeros(0, np.uint64)]
        for attribute in domain.attributes:
            if attribute.kind is AttributeKind.CATEGORIES:
                values = items[attribute.name].combine_chunks()
                row.append(pc.list_parent_indices(values).to_numpy())
                texts = pc.binary_join_element_wise(attribute.name, pc.list_flatten(values).cast(pa.string()), "/")
                value.append(hash64_column(texts))
        row_V, value_V = np.concatenate(row), np.concatenate(value)
        by_item, order = np.argsort(row_V, kind="stable"), np.argsort(hash_I)
        offset_I = offsets(np.bincount(row_V, minlength=len(hash_I)))
        sorted_V = value_V[by_item][ragged_places(offset_I, order)]
        size_I = np.diff(offset_I)[order]
        return Catalogue(hash_I[order], items["created_at_ms"].to_numpy()[order], offsets(size_I), sorted_V)

    def rows_of(self, hash_N: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Row and whether the item is known, of hashes in any shape."""
        return places_of(self.hash_I, hash_N)

    def values_of(self, hash_N: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        """`(number of the item, value)` of each category that some items have, end to end."""
        row_N, known_N = self.rows_of(hash_N)
        size_N = np.where(known_N, np.diff(self.offset_I)[row_N], 0)
        return np.repeat(np.arange(len(hash_N)), size_N), self.value_V[ragged_places(self.offset_I, row_N[known_N])]


@dataclass(frozen=True, slots=True)
class Statistics:
    """What both baselines read."""

    domain: Domain
    catalogue: Catalogue
    items: DecayedCounts
    categories: DecayedCounts
    average_H: Floats
    """Of each head, over all impressions of the log's first half: a prior, not a feature."""

    @staticmethod
    def of(root: Path, domain: Domain) -> "Statistics":
        """One pass over the logs of a root."""
        catalogue, counts = Catalogue.of(read_catalogue(root), domain), count_items(root, domain)
        number_V, value_V = catalogue.values_of(counts["item_hash"].to_numpy(np.uint64))
        of_values = counts.take(number_V).assign(item_hash=value_V).groupby(KEYS, sort=True).sum().reset_index()
        early = counts[counts["step"] <= counts["step"].median()] if len(counts) else counts
        average_H = (early[list(domain.head_names)].sum() + 0.5) / (early[IMPRESSIONS].sum() + 1.0)
        items, categories = decayed(counts, domain), decayed(of_values, domain)
        return Statistics(domain, catalogue, items, categories, average_H.to_numpy(np.float64).clip(1e-6, 0.99))

    def popularity(self, requests: Requests) -> Floats:
        """`[N, S]`: positive actions on each candidate, as of its request's time."""
        head = self.domain.head_names.index(self.domain.positive_head)
        return self.items.at(requests.candidate_hash_N, _time(requests))[:, :, 1 + head]

    def features(self, requests: Requests) -> Floats:
        """`[N, F]`."""
        time_N, hash_N = _time(requests), requests.candidate_hash_N
        number_V, value_V = self.catalogue.values_of(hash_N)
        of_item_NF = self._columns(self.items.at(hash_N, time_N))
        of_value_VF = self._columns(self.categories.at(value_V, time_N[number_V]))
        row_N, known_N = self.catalogue.rows_of(hash_N)
        age_ms_N = (time_N - self.catalogue.created_ms_I[row_N]).clip(0) * known_N
        age_N = np.log1p(age_ms_N / HOUR_MS)
        own_NF = self._own_actions(requests, number_V, value_V)
        return np.column_stack([of_item_NF, _mean(of_value_VF, number_V, len(hash_N)), own_NF, age_N, known_N])

    def _columns(self, count_QSA: Floats) -> Floats:
        """Log-odds of each smoothed rate above the average's, and logarithms of the counts."""
        shown_QS1, acted_QSH = count_QSA[:, :, :1], count_QSA[:, :, 1:]
        rate_QSH = (acted_QSH + PRIOR_STRENGTH * self.average_H) / (np.maximum(shown_QS1, acted_QSH) + PRIOR_STRENGTH)
        above_QSH = log_odds(rate_QSH) - log_odds(self.average_H)
        columns_QSF = np.concatenate([above_QSH, np.log1p(count_QSA)], axis=2)
        return columns_QSF.reshape(len(columns_QSF), columns_QSF.shape[1] * columns_QSF.shape[2])

    def _own_actions(self, requests: Requests, number_V: NDArray[np.int64], value_V: NDArray[np.uint64]) -> Floats:
        """`[N, 4 K]`: the user's stored actions of each kind on the candidate's categories, as a logarithm and as a
        share of the user's actions of that kind; on the candidate itself; and of that kind at all."""
        sequences = requests.sequences
        request_N = np.repeat(np.arange(len(requests)), requests.sizes)
        parts = []
        for kind in KINDS:
            request_A, place_A = np.nonzero(self.domain.vocabulary.flags(kind=kind)[sequences.action_RL])
            item_A = sequences.item_hash_RL[request_A, place_A]
            total_N = np.bincount(request_A, minlength=len(requests))[request_N]
            same_N = _matches(request_A, item_A, request_N, requests.candidate_hash_N)
            number_A, seen_A = self.catalogue.values_of(item_A)
            on_V = _matches(request_A[number_A], seen_A, request_N[number_V], value_V)
            on_N = _mean(on_V[:, None].astype(np.float64), number_V, len(request_N))[:, 0]
            parts += [np.log1p(on_N), on_N / np.maximum(total_N, 1), np.log1p(same_N), np.log1p(total_N)]
        return np.column_stack(parts)


@dataclass(frozen=True, slots=True)
class Baselines:
    """Both, fitted on the training windows and chosen on the validation window."""

    statistics: Statistics
    half_life: int
    """Place among the domain's of the one that `popularity` counts with."""
    most: float
    mean_F: Floats
    scale_F: Floats
    weight_FH: Floats
    bias_H: Floats

    @staticmethod
    def fit(root: Path, domain: Domain, train_windows: Sequence[str], validation_window: str) -> "Baselines":
        """Reads the whole log once, and at most MAX_EXAMPLES of the training windows."""
        statistics = Statistics.of(root, domain)
        half_life, most = _best_half_life(statistics, root, validation_window)
        feature_NF, label_NH = _examples(statistics, root, train_windows)
        mean_F, scale_F = feature_NF.mean(axis=0), feature_NF.std(axis=0) + 1e-6
        weight_FH, bias_H = _logistic((feature_NF - mean_F) / scale_F, label_NH)
        return Baselines(statistics, half_life, most, mean_F, scale_F, weight_FH, bias_H)

    def score(self, root: Path, window: str) -> dict[str, Logits]:
        """Both, by name: `[R, C, H]` of a window's candidates."""
        statistics = self.statistics

        def logits(requests: Requests) -> Logits:
            count_N = statistics.popularity(requests)[:, self.half_life]
            standard_NF = (statistics.features(requests) - self.mean_F) / self.scale_F
            of_counts_NH = np.asarray(standard_NF @ self.weight_FH + self.bias_H, np.float32)
            return np.stack([popularity_logits(count_N, self.most, statistics.domain), of_counts_NH], axis=1)

        both_RCBH = of_candidates(_reader(root, [window], statistics.domain), logits)
        return {POPULARITY: both_RCBH[:, :, 0], COUNTS: both_RCBH[:, :, 1]}


def _best_half_life(statistics: Statistics, root: Path, window: str) -> tuple[int, float]:
    """The half-life whose count orders the window's shown items best, and the largest count there."""
    head, counts, labels = statistics.domain.head_names.index(statistics.domain.positive_head), [], []
    for batch in WindowReader(root, [window], statistics.domain, 1, rates=False).in_order(BATCH_REQUESTS):
        counts.append(statistics.popularity(batch.requests))
        labels.append(batch.label_NH[:, head])
    count_NS, label_N = np.concatenate(counts), np.concatenate(labels)
    auc_S = [float(metrics.auc(count_N.astype(np.float32), label_N)[0]) for count_N in count_NS.T]
    best = int(np.argmax(np.nan_to_num(auc_S)))
    return best, float(count_NS[:, best].max(initial=1.0))


def _examples(statistics: Statistics, root: Path, windows: Sequence[str]) -> tuple[Floats, NDArray[np.float32]]:
    features, labels, size = [], [], 0
    for batch in _reader(root, windows, statistics.domain).batches(BATCH_REQUESTS, seed=0, epoch=0):
        features.append(statistics.features(batch.requests))
        labels.append(batch.label_NH)
        size += len(batch.label_NH)
        if size >= MAX_EXAMPLES:
            break
    return np.concatenate(features), np.concatenate(labels)


def _reader(root: Path, windows: Sequence[str], domain: Domain) -> WindowReader:
    """Sequences as long as the windows keep them."""
    kept = min(read_manifest(root / WINDOWS / name)["history_length"] for name in windows)
    return WindowReader(root, windows, domain, min(kept, HISTORY_LENGTH), rates=False, time_mask_ms=0)


def _logistic(x_NF: Floats, label_NH: NDArray[np.float32]) -> tuple[Floats, Floats]:
    """A logistic regression for each head, with a little weight decay."""
    x, y = torch.from_numpy(x_NF), torch.from_numpy(label_NH.astype(np.float64))
    weight = torch.zeros(x.shape[1], y.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(y.shape[1], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> float:
        optimiser.zero_grad()
        value = torch.nn.functional.binary_cross_entropy_with_logits(x @ weight + bias, y)
        value = value + WEIGHT_DECAY * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value.item()

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    return weight.detach().numpy(), bias.detach().numpy()


def _time(requests: Requests) -> NDArray[np.int64]:
    """Of each candidate's request."""
    return np.repeat(requests.timestamp_ms_R, requests.sizes)


def _mean(value_VF: Floats, number_V: NDArray[np.int64], size: int) -> Floats:
    """Means over the values of each of `size` candidates, whose numbers ascend; zeros for one without any."""
    count_N = np.bincount(number_V, minlength=size)
    mean_NF = np.zeros((size, value_VF.shape[1]))
    if len(number_V):
        some_N = count_N > 0
        first_N = (np.cumsum(count_N) - count_N)[some_N]
        mean_NF[some_N] = np.add.reduceat(value_VF, first_N, axis=0) / count_N[some_N, None]
    return mean_NF


def _matches(
    group_A: NDArray[np.int64], key_A: NDArray[np.uint64], group_Q: NDArray[np.int64], key_Q: NDArray[np.uint64]
) -> NDArray[np.int64]:
    """How many of A have the group and the key of each query. Keys are hashes, so group and key can be added up: that
    two pairs meet is as unlikely as that two ids do."""
    pair_A, pair_Q = (key + group.astype(np.uint64) * SPREAD for group, key in ((group_A, key_A), (group_Q, key_Q)))
    pair_P, count_P = np.unique(pair_A, return_counts=True)
    place_Q, known_Q = places_of(pair_P, pair_Q)
    matches_Q = np.zeros(len(pair_Q), np.int64)
    matches_Q[known_Q] = count_P[place_Q[known_Q]]
    return matches_Q
