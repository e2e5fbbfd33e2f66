"""The page at `/`: files of `deployments/web`, as they are. They hold no data, so they need no key; what the page then
asks of the API does."""

import hashlib
import importlib.resources
from typing import Final

from fastapi import APIRouter, Request
from fastapi.responses import Response

from deployments.http import Problem

INDEX: Final = "index.html"
MEDIA_TYPES: Final = {"html": "text/html", "js": "text/javascript", "css": "text/css"}
POLICY: Final = "; ".join(
    (
        *("default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self' data:", "connect-src 'self'"),
        *("base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"),
    )
)
HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # kept, and asked for again by its ETag: a new release shows at once
}


def page_routes() -> APIRouter:
    """`GET /` and `GET /web/FILE`."""
    router = APIRouter(include_in_schema=False)
    folder = importlib.resources.files("deployments") / "web"
    files = {file.name: file.read_bytes() for file in folder.iterdir() if file.name.count(".") == 1}
    etags = {name: f'"{hashlib.sha256(content).hexdigest()[:16]}"' for name, content in files.items()}

    def answer(request: Request, name: str) -> Response:
        if name not in files:
            raise Problem(404, "the page has no such file")
        headers = {**HEADERS, "ETag": etags[name]}
        known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
        if etags[name] in known:
            return Response(status_code=304, headers=headers)
        kind = MEDIA_TYPES[name.rpartition(".")[2]]
        return Response(files[name], headers=headers, media_type=kind)

    @router.get("/")
    async def home(request: Request) -> Response:
        return answer(request, INDEX)

    @router.get("/web/{name}")
    async def file(name: str, request: Request) -> Response:
        return answer(request, name)

    return router
