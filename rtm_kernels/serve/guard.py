"""The outermost layer: who may ask, limits while a request is read, its time, its id, its line in the log."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import numpy as np

from rtm_kernels.serve.limits import Limits, Refused, unavailable
from rtm_kernels.serve.metrics import Metrics

log = logging.getLogger("rtm.serve")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_ROUTE = "/healthz"
"""The one route that never asks for a token."""

ROUTES = ("/v1/solve", "/v1/stream", "/v1/models", "/metrics", "/openapi.json", OPEN_ROUTE)
LOCAL_NAMES = {"localhost", "127.0.0.1", "[::1]"}
CHUNK = 1 << 16
STEP = np.zeros(256, dtype=np.int8)
STEP[list(b"[{")], STEP[list(b"]}")] = 1, -1
HEADERS = [(b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff")]


class Guard:
    """ASGI middleware around `app`. `token_digest`: sha256 of the token, None on loopback without one."""

    def __init__(self, app: App, limits: Limits, metrics: Metrics, token_digest: bytes | None) -> None:
        self.app, self.limits, self.metrics, self.token_digest = app, limits, metrics, token_digest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, whatever it is."""
        began, request_id, status = time.monotonic(), uuid.uuid4().hex, 0
        scope.setdefault("state", {})["request_id"] = request_id

        async def tagged(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode()), *HEADERS]
            await send(message)

        code = ""
        try:
            await self._answer(scope, receive, tagged)
        except Refused as error:
            code = error.code
            if not status:
                await refuse(tagged, error, request_id)
        except Gone:
            code = "client_gone"
        except Exception:
            code = "internal"
            log.exception("request failed", extra={"request_id": request_id})
            if not status:
                await refuse(tagged, Refused(500, "internal", "the server failed on this request"), request_id)
        finally:
            self._record(scope, request_id, status, scope["state"].get("code", code), time.monotonic() - began)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._check_head(scope)
        try:
            body = await asyncio.wait_for(self._read(receive), self.limits.read)
        except asyncio.TimeoutError:
            raise Refused(408, "read_timeout", f"the body did not arrive within {self.limits.read:g} s") from None
        await self._run(scope, body, receive, send)

    def _check_head(self, scope: Scope) -> None:
        headers, limits = scope["headers"], self.limits
        size = len(scope["raw_path"]) + len(scope["query_string"]) + sum(len(k) + len(v) + 4 for k, v in headers)
        if len(headers) > limits.headers or size > limits.header_block:
            allowed = f"{limits.headers} headers of {limits.header_block} bytes in all"
            raise Refused(431, "headers_too_large", f"at most {allowed} are read")
        found = dict(headers)
        if self.token_digest is not None:
            if scope["path"] != OPEN_ROUTE and not self._has_token(found.get(b"authorization", b"")):
                raise Refused(401, "unauthorized", "send the token as Authorization: Bearer TOKEN")
        elif host_name(found.get(b"host", b"")) not in LOCAL_NAMES:  # a page that points its own name at loopback
            raise Refused(421, "wrong_host", "without a token the Host header has to be a loopback name")
        if scope["method"] == "POST":
            if found.get(b"content-type", b"").split(b";")[0].strip().lower() != b"application/json":
                raise Refused(415, "not_json", "send Content-Type: application/json")
            if int_of(found.get(b"content-length", b"0")) > limits.body:
                raise too_large(limits)

    def _has_token(self, value: bytes) -> bool:
        scheme, _, token = value.partition(b" ")
        assert self.token_digest is not None
        equal = hmac.compare_digest(hashlib.sha256(token.strip()).digest(), self.token_digest)
        return scheme.lower() == b"bearer" and equal

    async def _read(self, receive: Receive) -> bytes:
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Gone
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self.limits.body:
                raise too_large(self.limits)
        if depth(body) > self.limits.json_depth:
            raise Refused(400, "json_too_deep", f"at most {self.limits.json_depth} levels of JSON are read")
        return bytes(body)

    async def _run(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        """The app with the body already read; it is cancelled when the client goes away or the time is over."""
        gone, unread = asyncio.Event(), [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            if unread:
                return unread.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            gone.set()

        running, watching = asyncio.ensure_future(self.app(scope, replay, send)), asyncio.ensure_future(watch())
        try:
            seconds = self.limits.request + 2 * self.limits.grace
            done, _ = await asyncio.wait({running, watching}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if running in done:
                return running.result()
            raise Gone if watching in done else unavailable("deadline", "the request took too long")
        finally:
            for task in (running, watching):
                task.cancel()
            await asyncio.gather(running, watching, return_exceptions=True)

    def _record(self, scope: Scope, request_id: str, status: int, code: str, seconds: float) -> None:
        route = scope["path"] if scope["path"] in ROUTES else "other"
        self.metrics.requests.labels(route, str(status or "none")).inc()
        self.metrics.seconds.labels(route).observe(seconds)
        if code:
            self.metrics.refused.labels(code).inc()
        log.info(
            "request",
            extra={
                "request_id": request_id, "route": route, "method": scope["method"][:10], "status": status,
                "code": code, "seconds": round(seconds, 4), **scope["state"].get("log", {}),
            },
        )  # fmt: skip


class Gone(Exception):
    """The client closed the connection before it had its answer."""


async def refuse(send: Send, error: Refused, request_id: str) -> None:
    """Send a refusal as JSON."""
    body = json.dumps({"error": {"code": error.code, "message": error.message, "request_id": request_id}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if error.retry_after is not None:
        headers.append((b"retry-after", str(error.retry_after).encode()))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def depth(body: bytes | bytearray) -> int:
    """How deep arrays and objects nest in JSON text, strings left out; in linear time and little memory."""
    deepest = level = 0
    inside = escaped = False
    for start in range(0, len(body), CHUNK):
        chunk = np.frombuffer(body, dtype=np.uint8, count=min(CHUNK, len(body) - start), offset=start)
        slash = chunk == ord("\\")
        quote = chunk == ord('"')
        if escaped or slash.any():
            real, escaped = unescaped(slash, escaped)
            quote &= real
        within = (np.cumsum(quote) + inside) & 1
        levels = level + np.cumsum(np.where(within, 0, STEP[chunk]), dtype=np.int64)
        deepest, level, inside = max(deepest, int(levels.max())), int(levels[-1]), bool(within[-1])
    return deepest


def unescaped(slash: np.ndarray, escaped: bool) -> tuple[np.ndarray, bool]:
    """Which characters no backslash escapes, given where backslashes are, and whether the character after is escaped.

    In a run of backslashes every second one is escaped itself, so a character is escaped when the run before it,
    with one that escaped the first character of all, is of odd length.
    """
    padded = np.concatenate(([escaped], slash))
    positions = np.arange(len(padded))
    last_other = np.maximum.accumulate(np.where(padded, -1, positions))
    odd = (positions - last_other) % 2 == 1  # length of the run of backslashes that ends here
    odd &= padded
    return ~odd[:-1], bool(odd[-1])


def host_name(value: bytes) -> str:
    """The name in a Host header, without its port."""
    text = value.decode("latin-1").lower()
    return text[: text.find("]") + 1] if text.startswith("[") else text.partition(":")[0]


def int_of(value: bytes) -> int:
    """A Content-Length; h11 has refused what is not a number."""
    return int(value) if value.isdigit() and len(value) < 20 else 1 << 62


def too_large(limits: Limits) -> Refused:
    return Refused(413, "body_too_large", f"at most {limits.body} bytes are read")
