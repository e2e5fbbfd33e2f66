"""Answers as the OpenAPI document tells of them, with examples. The routes write them as plain JSON: a feed's answer is
not checked again on its way out, and a test holds what is written to what is told here."""

from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict

AT: Final = "2026-05-04T10:15:00.000+00:00"
SEQUENCE: Final = {"length": 12, "last_event_at": AT, "watermark": 40, "hash": "00f3a1b2c4d5e6f7"}
"""No example holds a null: FastAPI leaves them out of the document."""


def _like(example: dict[str, Any]) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [example]})


class Mistake(BaseModel):
    """One field that is wrong; `index` names the value of a batch."""

    index: int | None = None
    field: str | None
    code: str
    message: str


class ProblemAnswer(BaseModel):
    """What every error looks like (RFC 9457)."""

    model_config = _like(
        {
            "type": "about:blank",
            "title": "Invalid fields",
            "status": 422,
            "detail": "title is missing",
            "instance": "/v1/items/i1",
            "request_id": "6b1f0a7e-3a0b-4a53-9a3c-2f8f3b8f8d11",
            "errors": [{"field": "title", "code": "missing_field", "message": "title is missing"}],
        }
    )

    type: str
    title: str
    status: int
    detail: str
    instance: str
    request_id: str | None
    errors: list[Mistake]


class Rejection(BaseModel):
    """One value of a batch that was not taken."""

    index: int
    code: str
    field: str | None
    message: str


class EventsAnswer(BaseModel):
    """How many events are durable now, and why the others are not."""

    model_config = _like({"accepted": 1, "duplicates": 0, "rejected": []})

    accepted: int
    duplicates: int
    rejected: list[Rejection]


class ItemsAnswer(BaseModel):
    """How many items are durable now, and why the others are not."""

    model_config = _like(
        {
            "accepted": 1,
            "rejected": [{"index": 1, "code": "missing_field", "field": "item_id", "message": "item_id is missing"}],
        }
    )

    accepted: int
    rejected: list[Rejection]


class ItemAnswer(BaseModel):
    """The item that was put."""

    model_config = _like({"item_id": "i1"})

    item_id: str


class SimilarItem(BaseModel):
    """One neighbour."""

    item_id: str
    rank: int
    similarity: float
    """Cosine of the two items' vectors, from 0 to 1."""


class SimilarAnswer(BaseModel):
    """The nearest items that are available, the nearest first."""

    model_config = _like(
        {"item_id": "i1", "model_version": "v1", "items": [{"item_id": "i4", "rank": 1, "similarity": 0.93}]}
    )

    item_id: str
    model_version: str
    items: list[SimilarItem]


class SequenceSeen(BaseModel):
    """What the answer saw of the user."""

    length: int
    last_event_at: str | None
    watermark: int
    hash: str | None


class FeedItem(BaseModel):
    """One item of a feed. `probabilities` with `explain`, `fields` where they were asked for."""

    item_id: str
    rank: int
    score: float | None
    sources: list[str]
    probabilities: dict[str, float] | None = None
    fields: dict[str, Any] | None = None


class RankedItem(BaseModel):
    """One of the caller's items. `known`: whether the model knows anything of it; null where nothing ranked in time."""

    item_id: str
    rank: int
    score: float | None
    known: bool | None
    probabilities: dict[str, float] | None = None
    fields: dict[str, Any] | None = None


class RankAnswer(BaseModel):
    """The caller's items, best first."""

    model_config = _like(
        {
            "request_id": "6b1f0a7e-3a0b-4a53-9a3c-2f8f3b8f8d11",
            "items": [{"item_id": "i2", "rank": 1, "score": 0.31, "known": True}],
            "model_version": "v1",
            "statistics_at": AT,
            "degraded": False,
            "fallback_reason": "unknown_user",
            "sequence": SEQUENCE,
        }
    )

    request_id: str
    items: list[RankedItem]
    model_version: str | None
    statistics_at: str | None
    degraded: bool
    fallback_reason: str | None
    sequence: SequenceSeen


class RecommendationsAnswer(BaseModel):
    """A page of a feed, best first."""

    model_config = _like(
        {
            "request_id": "6b1f0a7e-3a0b-4a53-9a3c-2f8f3b8f8d11",
            "items": [{"item_id": "i2", "rank": 1, "score": 0.31, "sources": ["nearest"]}],
            "model_version": "v1",
            "statistics_at": AT,
            "experiment": "first/treatment",
            "ordering": "score",
            "degraded": False,
            "fallback_reason": "unknown_user",
            "sequence": SEQUENCE,
            "next_page_token": "AQ0Xm2c",
        }
    )

    request_id: str
    items: list[FeedItem]
    model_version: str | None
    statistics_at: str | None
    experiment: str | None
    ordering: Literal["score", "random"]
    degraded: bool
    fallback_reason: str | None
    sequence: SequenceSeen
    next_page_token: str | None


class ExplainReason(BaseModel):
    """One of the last actions, or several on one category, and where the item would stand without."""

    kind: Literal["action", "category"]
    item_id: str | None = None
    action: str | None = None
    """Of a category: the one action that all of them are, if they are one."""
    timestamp_ms: int | None = None
    category: str | None = None
    count: int
    score_without: float
    rank_without: int


class ExplainedItem(BaseModel):
    """One item; `rank` is its place by score among the candidates of the user's feed. `score` and `rank` are null where
    nothing scored in time."""

    item_id: str
    score: float | None
    rank: int | None
    probabilities: dict[str, float]
    reasons: list[ExplainReason]
    """At most 5, the largest change of the score first."""


class ExplainAnswer(BaseModel):
    """Why the caller's items stand where they do, in the caller's order. `kept`: what stays in while an action is left
    out."""

    model_config = _like(
        {
            "request_id": "6b1f0a7e-3a0b-4a53-9a3c-2f8f3b8f8d11",
            "items": [
                {
                    "item_id": "i2",
                    "score": 0.31,
                    "rank": 2,
                    "probabilities": {"save": 0.31},
                    "reasons": [
                        {
                            "kind": "action",
                            "item_id": "i7",
                            "action": "save",
                            "timestamp_ms": 1_760_000_000_000,
                            "count": 1,
                            "score_without": 0.12,
                            "rank_without": 11,
                        },
                        {
                            "kind": "category",
                            "category": "drama",
                            "count": 4,
                            "score_without": 0.2,
                            "rank_without": 7,
                        },
                    ],
                }
            ],
            "kept": ["statistics of items and their categories"],
            "model_version": "v1",
            "statistics_at": AT,
            "degraded": False,
            "fallback_reason": "candidates_timeout",
            "sequence": SEQUENCE,
        }
    )

    request_id: str
    items: list[ExplainedItem]
    kept: list[str]
    model_version: str | None
    statistics_at: str | None
    degraded: bool
    fallback_reason: str | None
    sequence: SequenceSeen


class UserAnswer(BaseModel):
    """From when on the attributes hold."""

    model_config = _like({"user_id": "ann", "effective_at_ms": 1_760_000_000_000})

    user_id: str
    effective_at_ms: int


class MergeAnswer(BaseModel):
    """How many actions became the user's with this call."""

    model_config = _like({"user_id": "ann", "merged": 3})

    user_id: str
    merged: int


class StoredAction(BaseModel):
    """One action; null where the domain does not know it any more."""

    item_id: str
    action: str | None
    timestamp_ms: int
    received_at_ms: int


class SequenceAnswer(BaseModel):
    """The user's stored actions, newest first; `length` counts those that `limit` leaves out too."""

    model_config = _like(
        {
            "user_id": "ann",
            "length": 1,
            "events": [
                {
                    "item_id": "i1",
                    "action": "save",
                    "timestamp_ms": 1_760_000_000_000,
                    "received_at_ms": 1_760_000_000_120,
                }
            ],
        }
    )

    user_id: str
    length: int
    events: list[StoredAction]


class ModelsAnswer(BaseModel):
    """What is published, what the aliases name, what answers, and what rankers refused."""

    model_config = _like({"serving": "v1", "aliases": {"champion": "v1"}, "refused": {}, "models": [{"version": "v1"}]})

    serving: str
    aliases: dict[str, str]
    refused: dict[str, str]
    models: list[dict[str, Any]]


class MovedAnswer(BaseModel):
    """Where an alias is now, and where it was."""

    model_config = _like({"alias": "champion", "version": "v2", "previous": "v1"})

    alias: str
    version: str
    previous: str | None


class LiveAnswer(BaseModel):
    """The process answers."""

    model_config = _like({"status": "live"})

    status: Literal["live"]


class ReadyAnswer(BaseModel):
    """`ok`, or what the stage is short of."""

    model_config = _like({"status": "ready", "model_version": "v1", "store": "ok", "candidates": "ok", "ranker": "ok"})

    status: Literal["ready"]
    model_version: str
    store: str
    candidates: str
    ranker: str
