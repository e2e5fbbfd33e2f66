"""An answer as the client reads it and as the request log keeps it.

Shapes: P items shown, H heads.
"""

import dataclasses
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from rayapp.serving.explaining import KEPT
from rayapp.serving.feed import Answer, ExplainAnswer, Shown
from rayapp.serving.ranking import Ranking
from rayapp.statistics.logged import pack
from rayapp.store import UserSequence


def feed_body(answer: Answer, head_names: tuple[str, ...], *, explain: bool) -> dict[str, Any]:
    """JSON of `POST /v1/recommendations`."""
    items = []
    for rank, shown in enumerate(answer.shown, 1):
        item: dict[str, Any] = {
            "item_id": shown.item_id,
            "rank": rank,
            "score": shown.score,
            "sources": [shown.source],
        }
        if explain:
            item["probabilities"] = _probabilities(shown, head_names)
        if answer.ask.fields:
            item["fields"] = answer.described[rank - 1] if answer.described else None
        items.append(item)
    return {
        "request_id": answer.ask.request_id,
        "items": items,
        **model_fields(answer.ranking),
        "experiment": answer.assignment.label if answer.assignment else None,
        "ordering": "random" if answer.random_order else "score",
        "degraded": answer.degraded,
        "fallback_reason": answer.reason,
        "sequence": sequence_body(answer.user, answer.ranking),
        "next_page_token": answer.next_page_token,
    }


def explain_body(answer: ExplainAnswer, item_ids: Sequence[str], head_names: tuple[str, ...]) -> dict[str, Any]:
    """JSON of `POST /v1/explain`, items in the caller's order."""
    explanation, run = answer.explanation, answer.run
    items: list[dict[str, Any]] = []
    for c, item_id in enumerate(item_ids):
        item: dict[str, Any] = {"item_id": item_id, "score": None, "rank": None, "probabilities": {}, "reasons": []}
        if explanation is not None:
            one = explanation.items[c]
            reasons = [
                {name: value for name, value in dataclasses.asdict(reason).items() if value is not None}
                for reason in one.reasons
            ]
            probabilities = dict(zip(head_names, one.probability_H.tolist(), strict=False))
            item |= {"score": one.score, "rank": one.rank, "probabilities": probabilities, "reasons": reasons}
        items.append(item)
    ranking = explanation.ranking if explanation is not None else None
    return {
        "request_id": str(uuid.uuid4()),
        "items": items,
        "kept": list(KEPT),
        **model_fields(ranking),
        "degraded": bool(run.reasons),
        "fallback_reason": run.reasons[0] if run.reasons else None,
        "sequence": sequence_body(answer.user, ranking),
    }


def model_fields(ranking: Ranking | None) -> dict[str, Any]:
    """What answers say of the model behind them; nulls without one."""
    return {
        "model_version": ranking.model_version if ranking else None,
        "statistics_at": _iso(ranking.statistics.at_ms) if ranking else None,
    }


def _iso(timestamp_ms: int | None) -> str | None:
    return (
        None
        if timestamp_ms is None
        else datetime.fromtimestamp(timestamp_ms / 1000, UTC).isoformat(timespec="milliseconds")
    )


def _probabilities(shown: Shown, head_names: tuple[str, ...]) -> dict[str, float] | None:
    if shown.probability_H is None:
        return None
    return dict(zip(head_names, shown.probability_H.tolist(), strict=False))  # a model may know the first heads alone


def sequence_body(user: UserSequence, ranking: Ranking | None) -> dict[str, Any]:
    """Proof of freshness: what the answer saw of the user."""
    last_ms = int(user.history.timestamp_ms_E[0]) if len(user.history) else None
    return {
        "length": ranking.sequence_length if ranking else len(user.history),
        "last_event_at": _iso(last_ms),
        "watermark": user.watermark,
        "hash": f"{ranking.sequence_hash:016x}" if ranking else None,
    }


def request_row(answer: Answer) -> dict[str, Any]:
    """The row of the request log (`schema.REQUEST_SCHEMA`); labels are joined later, from events."""
    ask, ranking = answer.ask, answer.ranking
    row: dict[str, Any] = {
        **ask.context,
        "request_id": ask.request_id,
        "user_id": ask.user_id,
        "timestamp_ms": ask.at_ms,
        "surface": ask.surface,
        "item_ids": [shown.item_id for shown in answer.shown],
        "sources": [shown.source for shown in answer.shown],
        "propensities": [shown.propensity for shown in answer.shown],
        "experiment": answer.assignment.label if answer.assignment else None,
        "fallback_reason": answer.reason,
        "random_order": answer.random_order,
    }
    if ranking is not None:
        probability_PH = np.array([shown.probability_H for shown in answer.shown], np.float32)
        row |= {
            "probabilities": probability_PH.ravel().tolist(),
            "model_version": ranking.model_version,
            "item_table": ranking.item_table,
            "statistics_at_ms": ranking.statistics.at_ms,
            "statistics": pack(ranking.statistics.item_CK[[s.place for s in answer.shown]], ranking.statistics.user_K),
        }
        if not answer.store_failed:  # what was never read can't be cut again from the log
            row |= {"sequence_hash": ranking.sequence_hash, "watermark": answer.user.watermark}
    return row


def add_shadow(row: dict[str, Any], shadow: Ranking) -> None:
    """What another model says of the items that were shown. Its ranking is over `row["item_ids"]`, in order."""
    row["shadow_version"] = shadow.model_version
    row["shadow_probabilities"] = shadow.probability_CH.ravel().tolist()
