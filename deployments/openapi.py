"""The OpenAPI document beyond what FastAPI reads off the routes: bodies that are read by hand, a domain's attributes
as schemas with examples, and the one error form."""

import json
from collections.abc import Sequence
from typing import Any, Final

from fastapi import FastAPI

from deployments.answers import ProblemAnswer
from deployments.http import PROBLEM_JSON
from rayapp.contracts.config import Domain
from rayapp.contracts.schema import Attribute, AttributeKind
from rayapp.serving.attribute_checks import MAX_CATEGORY, MAX_TEXT, MAX_VALUES
from rayapp.serving.events import MAX_EVENTS, NDJSON

Schema = dict[str, Any]
JSON: Final = "application/json"
PROBLEM: Final = "Problem"
_PROBLEM: Final[Schema] = {"content": {PROBLEM_JSON: {"schema": {"$ref": f"#/components/schemas/{PROBLEM}"}}}}
ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    "4XX": {"description": "The request can't be answered; the body says why and names the field", **_PROBLEM},
    "5XX": {"description": "The graph can't answer now; `Retry-After` says when to send it again", **_PROBLEM},
}
"""Of every route."""
NUMBER: Final[Schema] = {"type": ["number", "null"]}
TEXT: Final[Schema] = {"type": ["string", "null"], "maxLength": MAX_TEXT}
CATEGORIES: Final[Schema] = {
    "type": ["array", "null"],
    "maxItems": MAX_VALUES,
    "items": {"type": "string", "minLength": 1, "maxLength": MAX_CATEGORY},
}
ITEM_ID: Final[Schema] = {"type": "string", "description": "1-128 bytes of UTF-8 without control characters"}
OWN: Final[dict[str, Schema]] = {
    "available": {"type": "boolean", "description": "false: in no feed"},
    "created_at_ms": {"type": "integer", "description": "Milliseconds since 1970 UTC; not in a feed before then"},
}
EXAMPLE_MS: Final = 1_760_000_000_000


def add_problem(api: FastAPI) -> None:
    """Names the error form among the schemas; call it when all routes are there."""
    document = api.openapi()
    schema = ProblemAnswer.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas |= schema.pop("$defs", {}) | {PROBLEM: schema}


def body(schema: Schema, example: Any, *, lines: bool = False) -> dict[str, Any]:
    """`openapi_extra` of a route that reads its body by hand; `lines`: NDJSON too."""
    content: dict[str, Any] = {JSON: {"schema": schema, "example": example}}
    if lines:
        one = example[0] if isinstance(example, list) else example
        text = {"type": "string", "description": "One JSON object a line"}
        content[NDJSON] = {"schema": text, "example": json.dumps(one) + "\n"}
    return {"requestBody": {"required": True, "content": content}}


def many(schema: Schema) -> Schema:
    """One value, or a list of up to MAX_EVENTS."""
    return {"anyOf": [schema, {"type": "array", "items": schema, "maxItems": MAX_EVENTS}]}


def answer(schema: Schema, example: Any, description: str = "Successful Response") -> dict[int | str, dict[str, Any]]:
    """`responses` of a route whose answer holds a domain's own attributes."""
    return {200: {"description": description, "content": {JSON: {"schema": schema, "example": example}}}}


def whole_item(domain: Domain, *, named: bool = False) -> tuple[Schema, dict[str, Any]]:
    """Schema and example of an item as it is put; `named`: with its id."""
    properties, example = _attributes(domain.attributes)
    ids, of_id = ({"item_id": ITEM_ID}, {"item_id": "i1"}) if named else ({}, {})
    return _object({**ids, **properties, **OWN}, [*ids, *properties]), {**of_id, **example}


def item_changes(domain: Domain) -> tuple[Schema, dict[str, Any]]:
    """Schema and example of what PATCH takes."""
    return _object({**_attributes(domain.attributes)[0], **OWN}, []), {"available": False}


def stored_item(domain: Domain) -> tuple[Schema, dict[str, Any]]:
    """Schema and example of an item as it is shown."""
    properties, example = _attributes(domain.attributes)
    shown = {"item_id": ITEM_ID, **OWN, **properties}
    return _object(shown, list(shown)), {"item_id": "i1", "available": True, "created_at_ms": EXAMPLE_MS, **example}


def user_attributes(domain: Domain, *, stored: bool = False) -> tuple[Schema, dict[str, Any]]:
    """Schema and example of a user's attributes, as they are put or as they are shown."""
    properties, example = _attributes(domain.user_attributes)
    moment = {"type": "integer", "minimum": 0, "description": "From when on they hold, milliseconds since 1970 UTC"}
    ids, of_id = ({"user_id": ITEM_ID}, {"user_id": "ann"}) if stored else ({}, {})
    properties = {**ids, "effective_at_ms": moment, **properties}
    return _object(properties, ["user_id", "effective_at_ms"] if stored else []), {
        **of_id,
        "effective_at_ms": EXAMPLE_MS,
        **example,
    }


def _attributes(attributes: Sequence[Attribute]) -> tuple[dict[str, Schema], dict[str, Any]]:
    schemas = {AttributeKind.NUMBER: NUMBER, AttributeKind.TEXT: TEXT, AttributeKind.CATEGORIES: CATEGORIES}
    examples = {AttributeKind.NUMBER: 12.5, AttributeKind.TEXT: "A title", AttributeKind.CATEGORIES: ["a", "b"]}
    return {a.name: schemas[a.kind] for a in attributes}, {a.name: examples[a.kind] for a in attributes}


def _object(properties: dict[str, Schema], required: list[str]) -> Schema:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
