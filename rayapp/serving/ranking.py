"""Ranking calls, as every replica answers them: cut the sequence, read the statistics, score; alone or several at once.

Shapes: C candidates, H heads, E vector width, K statistics.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayapp.contracts.config import Domain
from rayapp.contracts.hashing import hash64
from rayapp.features.requests import Requests, context_row
from rayapp.features.sequence import at_request
from rayapp.model.batched import Scores
from rayapp.registry.models import LoadedModel
from rayapp.serving.fresh_statistics import FreshStatistics, Read
from rayapp.store import UserSequence


@dataclass(frozen=True, slots=True)
class RankCall:
    """What the ranker is asked, but for the model."""

    user_id: str
    user: UserSequence
    timestamp_ms: int
    """The sequence is cut as of this time."""
    item_hash_C: NDArray[np.uint64]
    context: dict[str, Any]

    @staticmethod
    def of(
        user_id: str, user: UserSequence, timestamp_ms: int, item_ids: Sequence[str], context: dict[str, Any]
    ) -> "RankCall":
        """For items that nobody has hashed yet."""
        item_hash_C = np.fromiter((hash64(item_id) for item_id in item_ids), np.uint64, len(item_ids))
        return RankCall(user_id, user, timestamp_ms, item_hash_C, context)


@dataclass(frozen=True, slots=True)
class Ranking:
    """The ranker's answer: which model scored, over what sequence."""

    model_version: str
    probability_CH: NDArray[np.float32]
    """Of the model's heads, the first of the domain's: one that was appended since is not among them."""
    known_C: NDArray[np.bool_]
    """False for an item that the model's table does not hold, and for one that was put since without any attribute."""
    vector_CE: NDArray[np.float16]
    """Item vectors, for the diversity of the list."""
    sequence_length: int
    sequence_hash: int
    item_table: str
    statistics: Read
    """What was known of the user and the items."""


def rank(model: LoadedModel, statistics: FreshStatistics, domain: Domain, call: RankCall) -> Ranking:
    """Scores the call's items with `model`, over what its user had done before the call's time."""
    request, read = request_of(model, statistics, domain, call)
    return ranking_of(model, request, read, model.scorer.score(request))


def rank_many(
    held: Callable[[str], LoadedModel | None],
    statistics_of: Callable[[LoadedModel], FreshStatistics],
    domain: Domain,
    calls: Sequence[tuple[str, RankCall]],
) -> list[Ranking | Exception | None]:
    """`rank` of calls of several users, each with the model version it asks for; those of one version are scored at
    once. None where that version is not held. A call that can't be read fails alone, by its exception."""
    answers: list[Ranking | Exception | None] = [None] * len(calls)
    for version in dict.fromkeys(version for version, _ in calls):
        model = held(version)
        if model is None:
            continue
        made: dict[int, tuple[Requests, Read]] = {}
        for n, (asked, call) in enumerate(calls):
            if asked != version:
                continue
            try:
                made[n] = request_of(model, statistics_of(model), domain, call)
            except Exception as error:
                answers[n] = error
        try:
            scores = model.scorer.score_many([request for request, _ in made.values()])
        except Exception as error:
            scores = []
            answers = [error if n in made else answer for n, answer in enumerate(answers)]
        for (n, (request, read)), one in zip(made.items(), scores, strict=False):
            answers[n] = ranking_of(model, request, read, one)
    return answers


def request_of(
    model: LoadedModel, statistics: FreshStatistics, domain: Domain, call: RankCall
) -> tuple[Requests, Read]:
    """What the model reads of a call, and the statistics in it, which must be those of the model's own domain; `domain`
    is today's."""
    read = statistics.read(call.user_id, call.item_hash_C)
    return request_from(model, domain, call, read), read


def request_from(model: LoadedModel, domain: Domain, call: RankCall, read: Read) -> Requests:
    """What the model reads of a call with these statistics."""
    sequences = at_request(
        call.user.history,
        timestamp_ms=call.timestamp_ms,
        watermark=call.user.watermark,
        length=model.config.history_length,
        vocabulary=domain.vocabulary,
    )
    context = context_row(model.domain.context_attributes, call.timestamp_ms, call.context)
    return Requests.of_one(
        hash64(call.user_id), call.timestamp_ms, context, sequences, call.item_hash_C, read.user_K, read.item_CK
    )


def ranking_of(model: LoadedModel, request: Requests, read: Read, scores: Scores) -> Ranking:
    """The answer; the sequence is the first request's."""
    return Ranking(
        model.version,
        scores.probability_CH,
        scores.known & ~model.table.blank(scores.row_C),
        model.table.vectors_NE[scores.row_C].astype(np.float16),
        int(request.sequences.length_R[0]),
        request.sequences.hash_of(0),
        model.table.name,
        read,
    )
