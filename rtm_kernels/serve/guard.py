"""The middleware of `rtm serve` and `rtm mcp`: token, host, body size, request id, and one line in the log."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from rtm_kernels.access import Token, is_local_name
from rtm_kernels.serve.limits import Limits
from rtm_kernels.serve.refusal import Message, Refused, Send, unavailable

if TYPE_CHECKING:
    from rtm_kernels.serve.metrics import Metrics

log = logging.getLogger("rtm.serve")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_ROUTE = "/healthz"
"""The one route that needs no token and is answered however busy the server is."""

ROUTES = ("/v1/solve", "/v1/stream", "/v1/models", "/metrics", "/openapi.json", "/mcp", OPEN_ROUTE)
COMMON = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))


class Gone(Exception):
    """The client closed the connection before it had its answer."""


class Guard:
    """ASGI middleware around `app`. It reads the body, and cancels the request when the client disconnects.

    Without a `token` the Host header must be a loopback name, so that no web page reaches the server through DNS.
    """

    def __init__(self, app: App, limits: Limits, token: Token | None, metrics: Metrics | None = None) -> None:
        self.app, self.limits, self.token, self.metrics = app, limits, token, metrics
        self.at_work = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        began, request_id, status, code = time.monotonic(), uuid.uuid4().hex, 0, ""
        state = scope.setdefault("state", {})
        state["request_id"] = request_id

        async def tagged(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode()), *COMMON]
            await send(message)

        try:
            await self._answer(scope, receive, tagged)
        except Gone:
            code = "client_gone"
        except Exception as error:
            if not isinstance(error, Refused):
                log.exception("request failed", extra={"request_id": request_id})
                error = Refused(500, "internal", "the server failed on this request")
            code = error.code
            if not status:
                await self._refuse(error, request_id, receive if "read" not in state else None, tagged)
        finally:
            self._record(scope, request_id, status, state.get("code", code), time.monotonic() - began)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.at_work += 1
        try:
            if self.at_work > self.limits.requests and scope["path"] != OPEN_ROUTE:
                raise unavailable("overloaded", f"{self.limits.requests} requests are at work already")
            self._check_head(scope)
            try:
                body = await asyncio.wait_for(self._read(receive), self.limits.read)
            except asyncio.TimeoutError:
                raise Refused(408, "read_timeout", f"no whole body within {self.limits.read:g} s") from None
            scope["state"]["read"] = True
            await self._run(scope, body, receive, send)
        finally:
            self.at_work -= 1

    def _check_head(self, scope: Scope) -> None:
        found = dict(scope["headers"])
        if self.token is not None:
            if scope["path"] != OPEN_ROUTE and not self.token.opens(scope["headers"]):
                raise Refused(401, "unauthorized", "send the token as Authorization: Bearer TOKEN")
        elif not is_local_name(found.get(b"host", b"")):
            raise Refused(421, "wrong_host", "without a token the Host header must be a loopback name")
        if scope["method"] == "POST":
            if found.get(b"content-type", b"").split(b";")[0].strip().lower() != b"application/json":
                raise Refused(415, "not_json", "send Content-Type: application/json")
            self._check_size(int(found.get(b"content-length", b"0")))

    def _check_size(self, size: int) -> None:
        if size > self.limits.body:
            raise Refused(413, "body_too_large", f"a body has at most {self.limits.body} bytes")

    async def _read(self, receive: Receive) -> bytes:
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Gone
            body += message.get("body", b"")
            more = message.get("more_body", False)
            self._check_size(len(body))
        return bytes(body)

    async def _run(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        """The app with the body already read; cancelled when the client disconnects or the time is over."""
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

        tasks = [asyncio.ensure_future(self.app(scope, replay, send)), asyncio.ensure_future(watch())]
        try:
            seconds = self.limits.request + self.limits.read
            done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                raise unavailable("deadline", "the request took too long")
            if tasks[0] not in done:
                raise Gone
            tasks[0].result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _refuse(self, error: Refused, request_id: str, unread: Receive | None, send: Send) -> None:
        """Answer with `error`, then read and drop the rest of the body: a client that sends all before it reads would
        lose the answer if the connection closed before that."""
        body, headers = error.body(request_id), [(k.encode(), v.encode()) for k, v in error.headers().items()]
        headers.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": error.status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": True})
        if unread is not None:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._drop(unread), self.limits.read)
        await send({"type": "http.response.body", "body": b""})

    async def _drop(self, receive: Receive) -> None:
        left, more = self.limits.dropped, True
        while more and left > 0:
            message = await receive()
            left -= len(message.get("body", b""))
            more = message.get("more_body", False)

    def _record(self, scope: Scope, request_id: str, status: int, code: str, seconds: float) -> None:
        route = scope["path"] if scope["path"] in ROUTES else "other"
        if self.metrics is not None:
            self.metrics.record(route, status, code, seconds)
        log.info(
            "request",
            extra={
                "request_id": request_id, "route": route, "method": scope["method"][:10], "status": status,
                "code": code, "seconds": round(seconds, 4), **scope["state"].get("log", {}),
            },
        )  # fmt: skip
