"""The middleware of `rtm serve` and `rtm mcp`: token, host, body size, request id, and one line in the log."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Callable

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rtm_kernels.access import Token, is_local_name
from rtm_kernels.serve.schema import Limits, Refused, unavailable

log = logging.getLogger("rtm.serve")

OPEN_ROUTE = "/healthz"
"""The one route that needs no token and is answered however busy the server is."""

ROUTES = ("/v1/solve", "/v1/stream", "/v1/models", "/metrics", "/openapi.json", "/mcp", OPEN_ROUTE)
COMMON = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))

Record = Callable[[str, int, str, float], None]
"""Counts a request: route, status (0: the client had no answer), error code, seconds."""


class Gone(Exception):
    """The client closed the connection before it had its answer."""


class Guard:
    """ASGI middleware around `app`. It reads the body, and cancels the request when the client disconnects.

    Without a `token` the Host header must be a loopback name, so that no web page reaches the server through DNS.
    """

    def __init__(self, app: ASGIApp, limits: Limits, token: Token | None, record: Record | None = None) -> None:
        self.app, self.limits, self.token, self.record, self.at_work = app, limits, token, record, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        began, request_id, status, unread = time.monotonic(), uuid.uuid4().hex, 0, True
        route = scope["path"] if scope["path"] in ROUTES else "other"
        fields = {"request_id": request_id, "route": route, "method": scope["method"][:10], "code": ""}
        scope.setdefault("state", {}).update(request_id=request_id, log=fields)

        async def tagged(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", request_id.encode()),
                    *COMMON,
                ]
            await send(message)

        self.at_work += 1
        try:
            body = await self._admit(scope, receive)
            unread = False
            await self._run(scope, body, receive, tagged)
        except Gone:
            fields["code"] = "client_gone"
        except Exception as error:
            if not isinstance(error, Refused):
                log.exception("request failed", extra={"fields": {"request_id": request_id}})
                error = Refused(500, "internal", "the server failed on this request")
            fields["code"] = error.code
            if not status:
                await self._refuse(error.response(request_id), receive if unread else None, tagged)
        finally:
            self.at_work -= 1
            seconds = time.monotonic() - began
            if self.record is not None:
                self.record(route, status, fields["code"], seconds)
            log.info("request", extra={"fields": fields | {"status": status, "seconds": round(seconds, 4)}})

    async def _admit(self, scope: Scope, receive: Receive) -> bytes:
        """The body of a request that keeps to the limits."""
        if self.at_work > self.limits.requests and scope["path"] != OPEN_ROUTE:
            raise unavailable("overloaded", f"the server already works on {self.limits.requests} requests")
        found = dict(scope["headers"])
        if self.token is None and not is_local_name(found.get(b"host", b"")):
            raise Refused(421, "wrong_host", "without a token the Host header must be a loopback name")
        opens = self.token is None or self.token.opens(found.get(b"authorization", b""))
        if not opens and scope["path"] != OPEN_ROUTE:
            text = "send the token as Authorization: Bearer TOKEN"
            raise Refused(401, "unauthorized", text, {"www-authenticate": "Bearer"})
        if scope["method"] == "POST":
            if found.get(b"content-type", b"").split(b";")[0].strip().lower() != b"application/json":
                raise Refused(415, "not_json", "send Content-Type: application/json")
            self._check_size(int(found.get(b"content-length", b"0")))
        try:
            return await asyncio.wait_for(self._read(receive), self.limits.read)
        except asyncio.TimeoutError:
            raise Refused(408, "read_timeout", f"the body did not arrive within {self.limits.read:g} s") from None

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
        unread = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return unread.pop() if unread else await asyncio.Future()

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

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

    async def _refuse(self, response: Response, unread: Receive | None, send: Send) -> None:
        await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
        await send({"type": "http.response.body", "body": response.body, "more_body": True})
        if unread is not None:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._drop(unread), self.limits.read)
        await send({"type": "http.response.body", "body": b""})

    async def _drop(self, receive: Receive) -> None:
        """Read the rest of the body: a client that sends all before it reads would lose the answer if the connection
        closed before that."""
        left, more = self.limits.dropped, True
        while more and left > 0:
            message = await receive()
            left -= len(message.get("body", b""))
            more = message.get("more_body", False)
