"""Why an item stands where it does: each of the user's last actions is left out, and the very model scores again.

An action is left out of everything that the ranker reads of a history: the sequence that encoders and matching sums
read, what is known without counting, and the user's own statistics. KEPT says what stays. Other items keep their
scores, so a rank says how far this item alone moves among them.

Shapes: E events of the history, R histories (0 is the whole one), P places of the encoded sequence, C explained items,
O other candidates of the user's feed, H heads.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from rayapp.contracts.config import Domain
from rayapp.contracts.schema import FIRST_ACTION_ID, UNKNOWN, AttributeKind
from rayapp.features.sequence import Sequences, at_request, point_in_time
from rayapp.model.batched import Scores
from rayapp.registry.models import LoadedModel
from rayapp.serving.fresh_statistics import FreshStatistics
from rayapp.serving.ranking import RankCall, Ranking, ranking_of, request_from

NUM_ACTIONS: Final = 20
"""Newest actions that are left out, one at a time."""
NUM_CATEGORIES: Final = 10
"""Categories whose actions are left out together, those with the most actions first."""
NUM_REASONS: Final = 5
LEAST_CHANGE: Final = 1e-4
"""Of a score; less is no reason."""
ROUNDING: Final = 1e-6
"""Of a score: items that differ by less, as two of the same attributes do, stand at one place."""
HISTORIES_AT_ONCE: Final = 8
"""A feed that asks meanwhile waits for no more."""
KEPT: Final = (
    "statistics of items and their categories",
    "how often the user was shown anything",
    "actions before the last 20",
    "attributes of the user, the items and the request",
    "the candidates of the feed",
)
"""What stays in while an action is left out."""


@dataclass(frozen=True, slots=True)
class ExplainCall:
    """What the ranker is asked: `call` names the items to explain."""

    call: RankCall
    other_hash_O: NDArray[np.uint64]
    """Candidates of the user's feed, among which the items have their ranks."""
    utilities: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Reason:
    """One action, or several on one category, and what the item would be without."""

    kind: Literal["action", "category"]
    count: int
    score_without: float
    rank_without: int
    item_id: str | None = None
    action: str | None = None
    """Of several actions the one that all are; None where they differ, or the domain does not know it any more."""
    timestamp_ms: int | None = None
    category: str | None = None


@dataclass(frozen=True, slots=True)
class Explained:
    """One item."""

    score: float
    rank: int
    probability_H: NDArray[np.float32]
    reasons: list[Reason]


@dataclass(frozen=True, slots=True)
class Explanation:
    """The ranker's answer."""

    ranking: Ranking
    items: list[Explained]


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What one history lacks."""

    gone_E: NDArray[np.bool_]
    reason: dict[str, Any]
    """The fields of `Reason` that say so."""


def left_out(call: RankCall, model: LoadedModel, domain: Domain) -> list[LeftOut]:
    """The last actions one by one, then those on one category together. What shares its item and millisecond with an
    action is left out with it: it would only take its place."""
    history = call.user.history
    places = at_request(
        history,
        timestamp_ms=call.timestamp_ms,
        watermark=call.user.watermark,
        length=NUM_ACTIONS,
        vocabulary=domain.vocabulary,
    )
    single: list[LeftOut] = []
    for p in range(int(places.length_R[0])):
        timestamp_ms, action = int(places.timestamp_ms_RL[0, p]), int(places.action_RL[0, p])
        same_item_E = history.item_hash_E == places.item_hash_RL[0, p]
        gone_E = same_item_E & (history.timestamp_ms_E == timestamp_ms)
        item_id = call.user.item_ids[int(gone_E.argmax())]
        name = domain.vocabulary.names[action - FIRST_ACTION_ID] if action > UNKNOWN else None
        reason = {"kind": "action", "count": 1, "item_id": item_id, "action": name, "timestamp_ms": timestamp_ms}
        single.append(LeftOut(gone_E, reason))
    row_P = model.table.rows_of(places.item_hash_RL[0, : len(single)])
    return single + _by_category(single, [model.table.item(row) if row else {} for row in row_P.tolist()], domain)


def _by_category(single: Sequence[LeftOut], items: Sequence[Any], domain: Domain) -> list[LeftOut]:
    """Categories that two or more of the actions share; of those with the very same actions, the first."""
    on: dict[tuple[str, str], list[int]] = {}
    for name in (a.name for a in domain.attributes if a.kind is AttributeKind.CATEGORIES):
        for p, item in enumerate(items):
            for value in dict.fromkeys(item.get(name) or ()):
                on.setdefault((name, value), []).append(p)
    distinct = {tuple(places): value for (_, value), places in reversed(on.items()) if len(places) > 1}
    groups: list[LeftOut] = []
    for places, value in sorted(distinct.items(), key=lambda group: (-len(group[0]), group[0]))[:NUM_CATEGORIES]:
        names = {single[p].reason["action"] for p in places}
        action = names.pop() if len(names) == 1 else None
        gone_E = np.logical_or.reduce([single[p].gone_E for p in places])
        groups.append(LeftOut(gone_E, {"kind": "category", "count": len(places), "category": value, "action": action}))
    return groups


class Explaining:
    """One explanation, in steps that each take the ranker's thread for a few milliseconds: make it, `score` each of
    `parts`, read the `explanation`."""

    def __init__(self, model: LoadedModel, statistics: FreshStatistics, domain: Domain, asked: ExplainCall) -> None:
        call, history = asked.call, asked.call.user.history
        self._model, self._asked = model, asked
        self._left_out = left_out(call, model, domain)
        keep_RE = np.ones((1 + len(self._left_out), len(history)), bool)
        for r, left in enumerate(self._left_out, 1):
            keep_RE[r] = ~left.gone_E
        self._read, user_RK = statistics.read_without(call.user_id, call.item_hash_C, history, keep_RE)
        whole = request_from(model, domain, call, self._read)
        others = dataclasses.replace(call, item_hash_C=asked.other_hash_O)
        self._others: Scores | None = None
        if len(asked.other_hash_O):
            of_others = statistics.read(call.user_id, asked.other_hash_O)
            self._others = model.scorer.score(request_from(model, domain, others, of_others))
        self._requests = dataclasses.replace(
            whole.take(np.zeros(len(keep_RE), np.int64)),
            sequences=sequences_without(call, keep_RE, model.config.history_length, domain),
            user_statistic_RK=user_RK,
        )
        num_heads = len(model.domain.heads)  # the first of today's
        self._utility_H = np.asarray(asked.utilities, np.float32)[:num_heads]
        self._probability_RCH = np.zeros((len(keep_RE), len(call.item_hash_C), num_heads), np.float32)

    def parts(self) -> Iterator[NDArray[np.int64]]:
        """Numbers of histories that are scored at once."""
        for at in range(0, len(self._requests), HISTORIES_AT_ONCE):
            yield np.arange(at, min(at + HISTORIES_AT_ONCE, len(self._requests)))

    def score(self, part: NDArray[np.int64]) -> None:
        """Scores the items over some of the histories, in one forward of the plain module: in float32 on the CPU
        wherever the ranker runs, since a change is smaller than what bf16 rounds."""
        logits_NH = self._model.scorer.logits(self._requests.take(part))
        self._probability_RCH[part] = (
            torch.sigmoid(logits_NH).numpy().reshape(len(part), *self._probability_RCH.shape[1:])
        )

    def explanation(self) -> Explanation:
        """Once all parts are scored."""
        row_C = self._model.table.rows_of(self._asked.call.item_hash_C)
        ranking = ranking_of(self._model, self._requests, self._read, Scores(self._probability_RCH[0], row_C))
        score_RC = self._probability_RCH @ self._utility_H
        rank_RC = self._ranks(score_RC, ranking.known_C)
        items = []
        for c in range(len(row_C)):
            reasons = [
                Reason(score_without=float(score_RC[r, c]), rank_without=int(rank_RC[r, c]), **one.reason)
                for r, one in enumerate(self._left_out, 1)
                if abs(score_RC[r, c] - score_RC[0, c]) >= LEAST_CHANGE
            ]
            score = float(score_RC[0, c])
            reasons.sort(key=lambda reason: -abs(reason.score_without - score))
            items.append(Explained(score, int(rank_RC[0, c]), ranking.probability_CH[c], reasons[:NUM_REASONS]))
        return Explanation(ranking, items)

    def _ranks(self, score_RC: NDArray[np.float32], known_C: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Places among the other candidates and the other explained items, which all keep the scores of the whole
        history. As in a feed, what the model knows stands above what it does not."""
        score_O, known_O, hash_O = score_RC[0], known_C, self._asked.call.item_hash_C
        if self._others is not None:
            new_O = ~np.isin(self._asked.other_hash_O, hash_O)
            others_OH, table = self._others.probability_CH[new_O], self._model.table
            row_O = self._others.row_C[new_O]
            score_O = np.append(score_O, others_OH @ self._utility_H)
            known_O = np.append(known_O, (row_O != 0) & ~table.blank(row_O))
        above_RCO = known_O & ~known_C[:, None] | (score_O > score_RC[:, :, None] + ROUNDING) & (
            known_O == known_C[:, None]
        )
        own_C = np.arange(len(known_C))
        above_RCO[:, own_C, own_C] = False
        return np.asarray(1 + above_RCO.sum(axis=2))


def sequences_without(call: RankCall, keep_RE: NDArray[np.bool_], length: int, domain: Domain) -> Sequences:
    """The sequence as it would be cut had only the kept actions happened, for each row of `keep_RE`."""
    history, num = call.user.history, len(keep_RE)
    row_N = np.nonzero(keep_RE)[1]
    end_R = np.cumsum(keep_RE.sum(axis=1))
    return point_in_time(
        history.take(row_N),
        end_R - keep_RE.sum(axis=1),
        end_R,
        timestamp_ms_R=np.full(num, call.timestamp_ms),
        watermark_R=np.full(num, call.user.watermark),
        mask_ms_R=np.zeros(num, np.int64),
        length=length,
        vocabulary=domain.vocabulary,
    )
