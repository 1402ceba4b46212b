"""The outermost layer: who may ask, limits while a request is read, its time, its id, its line in the log."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import numpy as np

from rtm_kernels.access import Token
from rtm_kernels.serve.connection import headers_too_large
from rtm_kernels.serve.limits import Limits
from rtm_kernels.serve.metrics import Metrics
from rtm_kernels.serve.refusal import COMMON, Message, Refused, Send, new_id, refuse, unauthorized, unavailable

log = logging.getLogger("rtm.serve")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_ROUTE = "/healthz"
"""The one route that never asks for a token."""

ROUTES = ("/v1/solve", "/v1/stream", "/v1/models", "/metrics", "/openapi.json", OPEN_ROUTE)
LOCAL_NAMES = {"localhost", "127.0.0.1", "[::1]"}
CHUNK = 1 << 14
STEP = np.zeros(256, dtype=np.int8)
STEP[list(b"[{")], STEP[list(b"]}")] = 1, -1
PART = np.zeros(256, dtype=bool)
PART[list(b",:")] = True


class Guard:
    """ASGI middleware around `app`. `token`: None on loopback without one."""

    def __init__(self, app: App, limits: Limits, metrics: Metrics, token: Token | None) -> None:
        self.app, self.limits, self.metrics, self.token = app, limits, metrics, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, whatever it is."""
        began, request_id, status = time.monotonic(), new_id(), 0
        scope.setdefault("state", {})["request_id"] = request_id

        async def tagged(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode()), *COMMON]
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
            raise headers_too_large(limits)
        found = dict(headers)
        if self.token is not None:
            if scope["path"] != OPEN_ROUTE and not self.token.opens(headers):
                raise unauthorized()
        elif host_name(found.get(b"host", b"")) not in LOCAL_NAMES:  # a page that points its own name at loopback
            raise Refused(421, "wrong_host", "without a token the Host header has to be a loopback name")
        if scope["method"] == "POST":
            if found.get(b"content-type", b"").split(b";")[0].strip().lower() != b"application/json":
                raise Refused(415, "not_json", "send Content-Type: application/json")
            if int_of(found.get(b"content-length", b"0")) > limits.body:
                raise too_large(limits)

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
        levels, values = shape(body)
        if levels > self.limits.json_depth:
            raise Refused(400, "json_too_deep", f"at most {self.limits.json_depth} levels of JSON are read")
        if values > self.limits.json_values:
            raise Refused(400, "json_too_long", f"at most {self.limits.json_values} names and values are read")
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


def shape(body: bytes | bytearray) -> tuple[int, int]:
    """How deep arrays and objects nest in JSON text, and how many values commas and colons part; strings left out.

    In linear time and little memory.
    """
    deepest = level = parts = 0
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
        deepest, level = max(deepest, int(levels.max())), int(levels[-1])
        parts += int(np.count_nonzero(PART[chunk] & (within == 0)))
        inside = bool(within[-1])
    return deepest, parts + 1


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
