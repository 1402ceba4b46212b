"""Sockets: how many, how long one may take for each stage of a request, how one ends, and what HTTP itself refuses."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from rtm_kernels.serve.limits import Limits
from rtm_kernels.serve.refusal import Refused, new_id, response, unavailable

if TYPE_CHECKING:
    from rtm_kernels.serve.metrics import Metrics

log = logging.getLogger("rtm.serve")


class Closing:
    """A transport that closes as it is told; everything else is that of `transport`."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self.transport, self.close = transport, close

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transport, name)


def connection_class(limits: Limits, metrics: Metrics | None = None) -> type[H11Protocol]:
    """uvicorn's HTTP/1.1 protocol with a bound on connections, a clock for each, and refusals in our form.

    When all are taken, a new connection displaces the one that has waited longest without having sent a whole
    request head, so clients that open sockets and send nothing cannot keep others out. When every one is at work,
    the new one is told so with 503.

    A socket that is closed with bytes unread is reset, and its client may lose the answer. So a connection that ends
    before its request was read sends no more, and drops what comes for some seconds and up to some size. As many as
    there may be connections can be at that stage, and are no longer counted as connections; one more cuts the oldest.
    """
    leaving: dict[Any, None] = {}

    class Connection(H11Protocol):
        clock: asyncio.TimerHandle | None = None
        since = 0.0
        dropped = 0

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(Closing(transport, self._close))  # type: ignore[arg-type]
            self.inner = transport
            self.since = self.loop.time()
            if (found := transport.get_extra_info("socket")) is not None:
                # head and body of an answer are two writes; the second would wait for an ACK that comes 40 ms late
                found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._wind(limits.read)
            if len(self.connections) > limits.connections and not self._displace():
                self._tell(unavailable("too_many_connections", "every connection is taken"))
                self._leave()
            self._count()

        def data_received(self, data: bytes) -> None:
            if self in leaving or self._unread():
                self.dropped += len(data)
                if self.dropped > limits.dropped:
                    self.transport.abort()
                    return
            if self in leaving:
                return
            before = self.cycle
            super().data_received(data)
            if self.cycle is not before:
                self._begin()

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
            self._leave()

        def on_response_complete(self) -> None:
            if self in leaving:
                return
            cycle = self.cycle
            self._wind(limits.read)
            super().on_response_complete()
            if self.cycle is not cycle:  # a pipelined request has begun
                self._begin()

        def connection_lost(self, exc: Exception | None) -> None:
            leaving.pop(self, None)
            if self.clock is not None:
                self.clock.cancel()
            super().connection_lost(exc)
            self._count()

        def _begin(self) -> None:
            """The head of a request is here."""
            self.dropped = 0
            self._wind(limits.read + limits.request + 3 * limits.grace)

        def _unread(self) -> bool:
            """Whether a request was answered before its body was read."""
            answered = self.cycle is not None and self.cycle.response_complete
            return answered and self.conn.their_state is h11.SEND_BODY

        def _close(self) -> None:
            """Close, but where the client still sends."""
            if not self._unread() or self.inner.is_closing():
                self.inner.close()
            elif self not in leaving:
                self._leave()

        def _leave(self) -> None:
            """Send no more, and drop what comes until the client closes."""
            self.connections.discard(self)
            leaving[self] = None
            if len(leaving) > limits.connections:
                oldest = next(iter(leaving))
                del leaving[oldest]
                oldest.transport.abort()
            self._wind(limits.linger)
            self.flow.resume_reading()
            try:
                self.inner.write_eof()
            except OSError:  # the client is gone
                self.inner.abort()

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
            idle = [connection for connection in every if connection.cycle is None]
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
