"""Refusals: whatever is not answered is told in one form, from the first byte of a request on."""

from __future__ import annotations

import http
import json
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]

COMMON = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))
"""Headers of every answer."""


class Refused(Exception):
    """A request that is answered with `status` and an error of `code`, and with `retry_after` seconds where given."""

    def __init__(self, status: int, code: str, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.retry_after = status, code, message, retry_after


def unavailable(code: str, message: str, retry_after: int = 1) -> Refused:
    """503: nothing is wrong with the request, and later it may be taken."""
    return Refused(503, code, message, retry_after)


def unauthorized() -> Refused:
    """401: the token is missing or wrong."""
    return Refused(401, "unauthorized", "send the token as Authorization: Bearer TOKEN")


def new_id() -> str:
    """The id of a request, which its answer and its line in the log carry."""
    return uuid.uuid4().hex


def body_of(error: Refused, request_id: str) -> bytes:
    """`{"error": {"code", "message", "request_id"}}`."""
    return json.dumps({"error": {"code": error.code, "message": error.message, "request_id": request_id}}).encode()


def headers_of(error: Refused, body: bytes) -> list[tuple[bytes, bytes]]:
    """The headers that go with the body."""
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if error.retry_after is not None:
        headers.append((b"retry-after", str(error.retry_after).encode()))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return headers


async def refuse(send: Send, error: Refused, request_id: str) -> None:
    """Send a refusal through ASGI."""
    body = body_of(error, request_id)
    await send({"type": "http.response.start", "status": error.status, "headers": headers_of(error, body)})
    await send({"type": "http.response.body", "body": body})


def response(error: Refused, request_id: str) -> bytes:
    """The bytes of a refusal, for what does not get as far as ASGI; the connection is to be closed after it."""
    body = body_of(error, request_id)
    headers = [*headers_of(error, body), *COMMON, (b"x-request-id", request_id.encode()), (b"connection", b"close")]
    lines = b"".join(b"%b: %b\r\n" % header for header in headers)
    return b"HTTP/1.1 %d %b\r\n%b\r\n%b" % (error.status, http.HTTPStatus(error.status).phrase.encode(), lines, body)
