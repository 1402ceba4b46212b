"""Sockets: how many, how long one may take for each stage of a request, and what HTTP itself refuses."""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import TYPE_CHECKING, Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from rtm_kernels.serve.limits import Limits
from rtm_kernels.serve.refusal import Refused, new_id, response, unavailable

if TYPE_CHECKING:
    from rtm_kernels.serve.metrics import Metrics

log = logging.getLogger("rtm.serve")

LINGER = 1.0
"""Seconds in which a client that was refused may read why; what it sends meanwhile is dropped."""


def connection_class(limits: Limits, metrics: Metrics | None = None) -> type[H11Protocol]:
    """uvicorn's HTTP/1.1 protocol with a bound on connections, a clock for each, and refusals in our form.

    When all are taken, a new connection displaces the one that has waited longest without having sent a whole
    request head, so clients that open sockets and send nothing cannot keep others out. When every one is at work,
    the new one is told so with 503.
    """

    class Connection(H11Protocol):
        clock: asyncio.TimerHandle | None = None
        since = 0.0
        refused = False

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self.since = self.loop.time()
            self._wind(limits.read)
            if len(self.connections) > limits.connections and not self._displace():
                self._tell(unavailable("too_many_connections", "every connection is taken"))
                self.connections.discard(self)
                transport.close()
            self._count()

        def data_received(self, data: bytes) -> None:
            if self.refused:
                return
            before = self.cycle
            super().data_received(data)
            if self.cycle is not before:
                self._wind(limits.read + limits.request + 3 * limits.grace)

        def send_400_response(self, msg: str) -> None:
            """What is no HTTP request, told while uvicorn handles the error of h11 that says so."""
            if getattr(sys.exc_info()[1], "error_status_hint", 400) == 431:
                error = headers_too_large(limits)
            else:
                error = Refused(400, "bad_request", "this is not a valid HTTP/1.1 request")
            if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                self._tell(error)
            if self.cycle is not None:
                self.cycle.disconnected = True
                self.cycle.message_event.set()
            self.refused = True
            self.transport.write_eof()
            self._wind(LINGER)

        def on_response_complete(self) -> None:
            cycle = self.cycle
            self._wind(limits.read)
            super().on_response_complete()
            if self.cycle is not cycle:  # a pipelined request has begun
                self._wind(limits.read + limits.request + 3 * limits.grace)

        def connection_lost(self, exc: Exception | None) -> None:
            if self.clock is not None:
                self.clock.cancel()
            super().connection_lost(exc)
            self._count()

        def _tell(self, error: Refused) -> None:
            """Send a refusal, and enter it in log and metrics as those of requests."""
            request_id = new_id()
            self.transport.write(response(error, request_id))
            if metrics is not None:
                metrics.requests.labels("other", str(error.status)).inc()
                metrics.refused.labels(error.code).inc()
            log.info("request", extra={"request_id": request_id, "status": error.status, "code": error.code})

        def _count(self) -> None:
            if metrics is not None:
                metrics.connections.set(len(self.connections))

        def _wind(self, seconds: float) -> None:
            """Give the stage that begins now so many seconds, after which the connection is cut."""
            if self.clock is not None:
                self.clock.cancel()
            self.clock = self.loop.call_later(seconds, self.transport.abort)

        def _displace(self) -> bool:
            every: list[Any] = [connection for connection in self.connections if connection is not self]
            idle = [connection for connection in every if connection.cycle is None or connection.refused]
            if idle:
                oldest = min(idle, key=lambda connection: connection.since)
                self.connections.discard(oldest)
                oldest.transport.abort()
            return bool(idle)

    return Connection


def headers_too_large(limits: Limits) -> Refused:
    """431: the head of a request."""
    allowed = f"{limits.headers} headers of {limits.header_block} bytes in all"
    return Refused(431, "headers_too_large", f"at most {allowed} are read")
