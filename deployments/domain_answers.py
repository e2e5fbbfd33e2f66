"""Answers that tell what a feed is about and who its users are, as the OpenAPI document shows them."""

from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict

EXAMPLE: Final[dict[str, Any]] = {
    "name": "films",
    "actions": [{"name": "save", "kind": "positive", "in_sequence": True}],
    "heads": [{"name": "save", "actions": ["save"], "utility": 1.0}],
    "positive_head": "save",
    "title": "title",
    "attributes": [{"name": "title", "kind": "text"}, {"name": "genres", "kind": "categories"}],
    "context_attributes": [{"name": "device", "kind": "categories"}],
    "categories": {"genres": [{"value": "Comedy", "items": 505}]},
}


class SampledUser(BaseModel):
    """A user and how many actions are stored of them."""

    user_id: str
    length: int


class SampleAnswer(BaseModel):
    """A few users of each size, those with the fewest actions first."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"users": [{"user_id": "ann", "length": 12}]}]})

    users: list[SampledUser]


class DomainAction(BaseModel):
    """`in_sequence`: whether it takes a place in a user's sequence. Impressions do not."""

    name: str
    kind: Literal["positive", "negative", "neutral"]
    in_sequence: bool


class DomainHead(BaseModel):
    """One probability of the ranker: that any of the actions follows; `utility` is its weight in the score."""

    name: str
    actions: list[str]
    utility: float


class DomainAttribute(BaseModel):
    """An attribute of items or of a request's context."""

    name: str
    kind: Literal["text", "categories", "number"]


class DomainCategory(BaseModel):
    """A value of a categorical attribute, and how many items have it."""

    value: str
    items: int


class DomainAnswer(BaseModel):
    """What a client needs to draw a feed. `categories` holds the most frequent values of each attribute, and nothing
    while no replica that knows the items answers."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    name: str
    actions: list[DomainAction]
    heads: list[DomainHead]
    positive_head: str
    title: str
    attributes: list[DomainAttribute]
    context_attributes: list[DomainAttribute]
    categories: dict[str, list[DomainCategory]]
