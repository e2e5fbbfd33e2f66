"""What every request passes before its route: its id, its body whole and unpacked, its path with `%2F` inside ids."""

import re
import uuid
import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final
from urllib.parse import unquote

from fastapi import Request

from deployments.http import REQUEST_ID, Problem, problem_response
from rayapp.contracts.schema import id_problem

MAX_BODY_BYTES: Final = 2 * 1024 * 1024
GZIP_BITS: Final = 16 + zlib.MAX_WBITS
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


class ReadBody:
    """ASGI middleware: the whole body, unpacked where it came as gzip, before anything else reads it. 413 where that is
    over the limit, whether or not it announced its length; 415 for a packing that nobody reads here."""

    def __init__(self, app: Application, max_bytes: int = MAX_BODY_BYTES) -> None:
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            packing = _packing(scope)
            body: bytes | None = await self._read(receive, Unpacked(self._max_bytes, gzip=packing == "gzip"))
        except Problem as problem:
            await problem_response(Request(scope), problem)(scope, receive, send)
            return
        if body is None:
            return  # the client went away

        async def replay() -> Message:
            nonlocal body
            if body is None:
                return await receive()
            message, body = {"type": "http.request", "body": body, "more_body": False}, None
            return message

        if packing == "gzip":
            headers = [row for row in scope["headers"] if row[0] not in (b"content-encoding", b"content-length")]
            scope = {**scope, "headers": [*headers, (b"content-length", str(len(body)).encode())]}
        await self._app(scope, replay, send)

    async def _read(self, receive: Receive, body: "Unpacked") -> bytes | None:
        more = True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return None
            body.add(message.get("body", b""))
            more = message.get("more_body", False)
        return body.whole()


class Unpacked:
    """A body as it comes in, never more of it than is allowed."""

    def __init__(self, max_bytes: int, *, gzip: bool) -> None:
        self._max_bytes, self._gzip, self._chunks = max_bytes, gzip, list[bytes]()
        self._received = self._size = 0
        self._member: Any = None
        """Of gzip, which may hold several, end to end."""

    def add(self, chunk: bytes) -> None:
        """Raises:
        Problem: 413 or 400.
        """
        self._received += len(chunk)
        self._refuse_over(self._received, "")
        if not self._gzip:
            self._keep(chunk)
            return
        while chunk:
            self._member = self._member or zlib.decompressobj(wbits=GZIP_BITS)
            try:
                self._keep(self._member.decompress(chunk, self._max_bytes + 1 - self._size))
            except zlib.error as error:
                raise Problem(400, f"the body is not the gzip that Content-Encoding says: {error}") from None
            chunk = self._member.unused_data if self._member.eof else self._member.unconsumed_tail
            self._member = None if self._member.eof else self._member

    def whole(self) -> bytes:
        """Raises:
        Problem: 400 where the gzip is cut off.
        """
        if self._member is not None:
            raise Problem(400, "the body's gzip is cut off; send it again")
        return b"".join(self._chunks)

    def _keep(self, part: bytes) -> None:
        self._chunks.append(part)
        self._size += len(part)
        self._refuse_over(self._size, " once it is unpacked" if self._gzip else "")

    def _refuse_over(self, size: int, when: str) -> None:
        if size > self._max_bytes:
            raise Problem(413, f"the body is larger than {self._max_bytes} bytes{when}")


def _packing(scope: Scope) -> str:
    """Raises:
    Problem: 415.
    """
    given = b",".join(value for name, value in scope["headers"] if name == b"content-encoding").decode("latin-1")
    packing = given.strip().lower()
    if packing in ("", "identity"):
        return "identity"
    if packing in ("gzip", "x-gzip"):
        return "gzip"
    raise Problem(415, f"Content-Encoding {given[:64]!r} is not read; send the body as it is, or as gzip")


class RequestIds:
    """ASGI middleware: every request has an id for logs and error bodies, the caller's `X-Request-ID` or one that Serve
    made. Serve itself repeats it in the answer's headers."""

    def __init__(self, app: Application) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
            usable = given.isascii() and id_problem(given) is None
            scope[REQUEST_ID] = given if usable else str(uuid.uuid4())
        await self._app(scope, receive, send)


class EncodedSlashes:
    """ASGI middleware: `%2F` is a part of an id, `/` parts the path. A server hands both on as `/`."""

    def __init__(self, app: Application) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raw = scope.get("raw_path") or b""
        if b"%01" in raw or b"%2f" in raw.lower():
            own = raw.replace(b"%01", b"%02")  # a client's own: refused as any other control character
            scope = {**scope, "path": unquote(re.sub(b"%2[fF]", b"%01", own).decode("ascii"))}
        await self._app(scope, receive, send)
