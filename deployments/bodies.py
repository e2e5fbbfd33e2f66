"""Bodies of requests that FastAPI reads, and the ids inside paths."""

from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from deployments.http import ENCODED_SLASH
from rayapp.contracts.schema import id_problem

MAX_RANK_ITEMS: Final = 1_000
MAX_EXPLAINED: Final = 10
MAX_EXCLUDED: Final = 1_000
MAX_FIELDS: Final = 64
MAX_UTILITY: Final = 100.0
DEADLINE_MS: Final = 2_000


def _check_id(value: str) -> str:
    if problem := id_problem(value):
        raise ValueError(problem)
    return value


Id = Annotated[str, AfterValidator(_check_id)]


PathId = Annotated[str, AfterValidator(lambda value: value.replace(ENCODED_SLASH, "/"))]
"""An id inside a path, where its `/` is written `%2F`."""


Context = Annotated[
    dict[str, Any], Field(max_length=64, description="The domain's context attributes: device, tab, country")
]


def _like(example: dict[str, Any]) -> ConfigDict:
    return ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [example]})


Fields = Annotated[
    list[str],
    Field(
        max_length=MAX_FIELDS,
        description="Attributes of items, `available` or `created_at_ms`, to be answered with each item under `fields`",
    ),
]
Utilities = Annotated[
    dict[str, Annotated[float, Field(ge=-MAX_UTILITY, le=MAX_UTILITY, allow_inf_nan=False)]] | None,
    Field(description="Weight of each head in the feed score; heads left out keep theirs"),
]
Deadline = Annotated[int, Field(ge=10, le=30_000, description="Milliseconds; stages that are late are left out")]


class RecommendationsBody(BaseModel):
    """Ask for a feed. An unknown user gets a popular one that says so."""

    model_config = _like({"user_id": "ann", "num_results": 10, "exclude_item_ids": ["i7"]})

    user_id: Id
    num_results: Annotated[int, Field(ge=1, le=500)] = 20
    num_candidates: Annotated[int, Field(ge=1, le=1_000)] = 200
    surface: Id | None = None
    context: Context = {}
    exclude_item_ids: Annotated[list[Id], Field(max_length=MAX_EXCLUDED)] = []
    filter: Annotated[
        dict[str, Annotated[list[str], Field(min_length=1, max_length=64)]],
        Field(max_length=8, description="Categorical attribute of items -> values; an item must have one of them"),
    ] = {}
    page_token: str | None = Field(None, description="`next_page_token` of the page before; no page repeats an item")
    utilities: Utilities = None
    deadline_ms: Deadline = DEADLINE_MS
    explain: bool = False
    fields: Fields = []


class RankBody(BaseModel):
    """Rank the caller's own candidates. An item that the model does not know is scored by its attributes alone; one
    without any stands below all that it knows, with `known` false."""

    model_config = _like({"user_id": "ann", "item_ids": ["i1", "i2", "i3"]})

    user_id: Id
    item_ids: Annotated[list[Id], Field(min_length=1, max_length=MAX_RANK_ITEMS)]
    model: str | None = Field(None, description="An alias or a version that is loaded; the champion if absent")
    context: Context = {}
    utilities: Utilities = None
    deadline_ms: Deadline = DEADLINE_MS
    explain: bool = False
    fields: Fields = []


class ExplainBody(BaseModel):
    """Ask why items stand where they do for a user: each of the user's last 20 actions is left out in turn, and the
    model scores the items again."""

    model_config = _like({"user_id": "ann", "item_ids": ["i2"]})

    user_id: Id
    item_ids: Annotated[list[Id], Field(min_length=1, max_length=MAX_EXPLAINED)]
    context: Context = {}
    model: str | None = Field(None, description="An alias or a loaded version; the model of the user's feeds if absent")
    deadline_ms: Deadline = DEADLINE_MS


class MergeBody(BaseModel):
    """Names the anonymous user whose actions are to become a known user's."""

    model_config = _like({"anonymous_id": "visitor-5f2c"})

    anonymous_id: Id
