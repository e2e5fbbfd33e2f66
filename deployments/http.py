"""The HTTP surface's shapes: request bodies, the one error form (RFC 9457), and the limit on body sizes."""

import logging
import re
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Annotated, Any, Final
from urllib.parse import unquote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from rayapp.contracts.schema import id_problem

log = logging.getLogger(__name__)
MAX_BODY_BYTES = 2 * 1024 * 1024
MAX_RANK_ITEMS = 1_000
MAX_EXCLUDED = 1_000
MAX_UTILITY = 100.0
DEADLINE_MS = 2_000
PROBLEM_JSON = "application/problem+json"
REQUEST_ID = "rayapp.request_id"
"""Where an ASGI scope keeps the request's id."""
TITLES = {
    400: "Malformed request",
    401: "Key missing or unknown",
    403: "Not allowed",
    404: "Not found",
    405: "Method not allowed",
    409: "Conflict",
    410: "Expired",
    413: "Body too large",
    415: "Media type",
    422: "Invalid fields",
    429: "Too many requests",
    500: "Internal error",
    503: "Unavailable",
}


def _check_id(value: str) -> str:
    if problem := id_problem(value):
        raise ValueError(problem)
    return value


Id = Annotated[str, AfterValidator(_check_id)]


ENCODED_SLASH: Final = "\x01"
"""Stands for `%2F` while a path is taken apart; no id holds it."""
PathId = Annotated[str, AfterValidator(lambda value: value.replace(ENCODED_SLASH, "/"))]
"""An id inside a path, where its `/` is written `%2F`."""


Context = Annotated[
    dict[str, Any], Field(max_length=64, description="The domain's context attributes: device, tab, country")
]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


Utilities = Annotated[
    dict[str, Annotated[float, Field(ge=-MAX_UTILITY, le=MAX_UTILITY, allow_inf_nan=False)]] | None,
    Field(description="Weight of each head in the feed score; heads left out keep theirs"),
]
Deadline = Annotated[int, Field(ge=10, le=30_000, description="Milliseconds; stages that are late are left out")]


class RecommendationsBody(_Body):
    """Ask for a feed. An unknown user gets a popular one that says so."""

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


class RankBody(_Body):
    """Rank the caller's own candidates. Items that are not in the catalogue are scored cold and say so."""

    user_id: Id
    item_ids: Annotated[list[Id], Field(min_length=1, max_length=MAX_RANK_ITEMS)]
    model: str | None = Field(None, description="An alias or a version that is loaded; the champion if absent")
    context: Context = {}
    utilities: Utilities = None
    deadline_ms: Deadline = DEADLINE_MS
    explain: bool = False


class MergeBody(_Body):
    """Names the anonymous user whose actions are to become a known user's."""

    anonymous_id: Id


class Problem(Exception):
    """An answer in the form of RFC 9457; `errors` name the fields."""

    def __init__(
        self, status: int, detail: str, *, errors: list[dict[str, Any]] | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.errors, self.retry_after_s = status, detail, errors or [], retry_after_s


def invalid(field: str, message: str, code: str = "invalid") -> Problem:
    """A 422 that names one field."""
    return Problem(422, message, errors=[{"field": field, "code": code, "message": message}])


def problem_response(request: Request, problem: Problem) -> JSONResponse:
    """The one error shape of the API."""
    body = {
        "type": "about:blank",
        "title": TITLES.get(problem.status, "Error"),
        "status": problem.status,
        "detail": problem.detail,
        "instance": request.url.path.replace(ENCODED_SLASH, "%2F"),
        "request_id": request.scope.get(REQUEST_ID),
        "errors": problem.errors,
    }
    headers = {"Retry-After": str(problem.retry_after_s)} if problem.retry_after_s else {}
    if problem.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body, status_code=problem.status, media_type=PROBLEM_JSON, headers=headers)


def install_errors(app: FastAPI) -> None:
    """Makes every error of `app` a problem+json answer."""

    async def on_problem(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, Problem)
        return problem_response(request, error)

    async def on_invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        rows = error.errors()
        if rows and rows[0]["type"] == "json_invalid":
            detail = f"the body is not JSON: {rows[0].get('ctx', {}).get('error', rows[0]['msg'])}"
            return problem_response(request, Problem(400, detail))
        if rows and rows[0]["type"] == "model_attributes_type" and rows[0]["loc"] == ("body",):
            return problem_response(request, Problem(415, "send a JSON object, with Content-Type: application/json"))
        errors = [
            {"field": ".".join(str(p) for p in row["loc"] if p != "body"), "code": row["type"], "message": row["msg"]}
            for row in rows[:20]
        ]
        fields = ", ".join(sorted({e["field"].split(".")[0] for e in errors} - {""})) or "the body"
        return problem_response(request, Problem(422, f"{fields}: not valid", errors=errors))

    async def on_http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return problem_response(request, Problem(error.status_code, str(error.detail)))

    async def on_any(request: Request, error: Exception) -> JSONResponse:
        log.error("request %s failed", request.scope.get(REQUEST_ID), exc_info=error)
        return problem_response(request, Problem(500, "an internal error happened; it is in the server's log"))

    app.add_exception_handler(Problem, on_problem)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(Exception, on_any)


Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class LimitBody:
    """ASGI middleware: 413 for a body over the limit, whether or not it announced its length."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], max_bytes: int = MAX_BODY_BYTES) -> None:
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        chunks: list[bytes] = []
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return  # the client went away
            chunks.append(message.get("body", b""))
            size, more = size + len(chunks[-1]), message.get("more_body", False)
            if size > self._max_bytes:
                too_large = Problem(413, f"the body is larger than {self._max_bytes} bytes")
                await problem_response(Request(scope), too_large)(scope, receive, send)
                return
        body: bytes | None = b"".join(chunks)

        async def replay() -> Message:
            nonlocal body
            if body is None:
                return await receive()
            message, body = {"type": "http.request", "body": body, "more_body": False}, None
            return message

        await self._app(scope, replay, send)


class RequestIds:
    """ASGI middleware: every request has an id for logs and error bodies, the caller's `X-Request-ID` or one that Serve
    made. Serve itself repeats it in the answer's headers."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
            usable = given.isascii() and id_problem(given) is None
            scope[REQUEST_ID] = given if usable else str(uuid.uuid4())
        await self._app(scope, receive, send)


class EncodedSlashes:
    """ASGI middleware: `%2F` is a part of an id, `/` parts the path. A server hands both on as `/`."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raw = scope.get("raw_path") or b""
        if b"%01" in raw or b"%2f" in raw.lower():
            own = raw.replace(b"%01", b"%02")  # a client's own: refused as any other control character
            scope = {**scope, "path": unquote(re.sub(b"%2[fF]", b"%01", own).decode("ascii"))}
        await self._app(scope, receive, send)
