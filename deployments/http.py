"""The one form of errors, RFC 9457, and how everything that goes wrong takes it."""

import logging
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

log = logging.getLogger(__name__)
PROBLEM_JSON: Final = "application/problem+json"
REQUEST_ID: Final = "rayapp.request_id"
"""Where an ASGI scope keeps the request's id."""
ENCODED_SLASH: Final = "\x01"
"""Stands for `%2F` while a path is taken apart; no id holds it."""
TITLES: Final = {
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
