"""One ranking call, as every replica answers it: cut the sequence, look up the rates, score.

Shapes: C candidates.
"""

import numpy as np

from rayapp.config import Domain
from rayapp.features.requests import Requests, context_row
from rayapp.features.sequence import at_request
from rayapp.hashing import hash64
from rayapp.registry.models import LoadedModel
from rayapp.serving.rates import LiveRates
from rayapp.serving.stages import RankCall, Ranking


def rank(model: LoadedModel, rates: LiveRates, domain: Domain, call: RankCall) -> Ranking:
    """Scores the call's items with `model`, over what its user had done before the call's time."""
    sequences = at_request(
        call.user.history,
        timestamp_ms=call.timestamp_ms,
        watermark=call.user.watermark,
        length=model.config.history_length,
        vocabulary=domain.vocabulary,
    )
    candidate_hash_C = np.fromiter((hash64(i) for i in call.item_ids), np.uint64, len(call.item_ids))
    user_rate_R, item_rate_CR, day = rates.features(call.user_id, candidate_hash_C)
    request = Requests(
        np.array([hash64(call.user_id)], np.uint64),
        np.array([call.timestamp_ms]),
        context_row(domain.context_attributes, call.timestamp_ms, call.context),
        sequences,
        candidate_hash_C[None],
        user_rate_R[None],
        item_rate_CR[None],
    )
    probability_CH, known_C = model.scorer.score(request)
    return Ranking(
        model.version,
        probability_CH,
        known_C,
        model.table.vectors_NE[model.table.rows_of(candidate_hash_C)].astype(np.float16),
        int(sequences.length_R[0]),
        sequences.hash_of(0),
        model.table.name,
        day,
    )
