"""Sockets: how many, and how long one may take for each stage of a request."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from rtm_kernels.serve.limits import Limits
from rtm_kernels.serve.metrics import Metrics

FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
    b"retry-after: 1\r\nconnection: close\r\n\r\n%b"
)
FULL_BODY = b'{"error":{"code":"too_many_connections","message":"every connection is taken","request_id":"none"}}'


def connection_class(limits: Limits, metrics: Metrics) -> type[H11Protocol]:
    """uvicorn's HTTP/1.1 protocol with a bound on connections and a clock for each.

    When all are taken, a new connection displaces the one that has waited longest without having sent a whole
    request head, so clients that open sockets and send nothing cannot keep others out. When every one is at work,
    the new one is told so with 503.
    """

    class Connection(H11Protocol):
        clock: asyncio.TimerHandle | None = None
        since = 0.0

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self.since = self.loop.time()
            self._wind(limits.read)
            if len(self.connections) > limits.connections and not self._displace():
                transport.write(FULL % (len(FULL_BODY), FULL_BODY))
                self.connections.discard(self)
                transport.close()
            metrics.connections.set(len(self.connections))

        def data_received(self, data: bytes) -> None:
            before = self.cycle
            super().data_received(data)
            if self.cycle is not before:
                self._wind(limits.read + limits.request + 3 * limits.grace)

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
