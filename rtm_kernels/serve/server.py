"""Sockets, uvicorn and an orderly end."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from typing import TYPE_CHECKING, Any

import uvicorn

from rtm_kernels.access import Token, check_address
from rtm_kernels.errors import BackendUnavailable, require
from rtm_kernels.serve.guard import App
from rtm_kernels.serve.limits import Limits

if TYPE_CHECKING:
    from rtm_kernels.serve.front import Front

log = logging.getLogger("rtm.serve")


def bind(host: str, port: int, token: Token | None) -> socket.socket:
    """A bound socket. Errors: `InputError` for a bad port or a public address without a token, `OSError`."""
    require(0 <= port < 1 << 16, "port", port, "from 0 to 65535")
    check_address(host, token)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # for TCP asyncio sets TCP_NODELAY
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        error.filename = f"{host}:{port}"
        raise
    return bound


def address_of(bound: socket.socket) -> str:
    """`http://host:port`."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def config(app: App, limits: Limits, **options: Any) -> uvicorn.Config:
    """uvicorn with the limits. It answers bytes that are not HTTP with a plain 400, too many connections with 503."""
    return uvicorn.Config(
        app,
        http="h11",
        ws="none",
        loop="asyncio",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=128,
        limit_concurrency=limits.connections,
        h11_max_incomplete_event_size=limits.header_block,
        timeout_keep_alive=limits.keep_alive,
        timeout_graceful_shutdown=int(limits.drain + 1),
        **options,
    )


class Server(uvicorn.Server):
    """uvicorn's server. It ends when the solver fails. `drain` seconds after a signal it refuses unsolved puzzles."""

    def __init__(self, front: Front, token: Token | None) -> None:
        from rtm_kernels.serve.app import build_app

        super().__init__(config(build_app(front, token), front.limits, lifespan="off"))
        self.front = front

    def run_on(self, bound: socket.socket) -> None:
        """Take requests until SIGTERM or SIGINT, then drain. Errors: `BackendUnavailable` when the solver fails."""
        for signum in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises them again after the drain
            signal.signal(signum, self.handle_exit)
        self.run(sockets=[bound])
        self.front.service.close(drain=False, timeout=10)  # a process that exits inside a native step crashes
        if self.front.service.failure is not None:
            raise BackendUnavailable(self.front.service.failure)
        log.info("stopped")

    async def on_tick(self, counter: int) -> bool:
        """See `uvicorn.Server.on_tick`."""
        return await super().on_tick(counter) or self.front.service.failure is not None

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See `uvicorn.Server.shutdown`."""
        log.info("draining")
        asyncio.get_running_loop().call_later(self.front.limits.drain, self.front.stop)
        await super().shutdown(sockets)


def end_at_once(*_: object) -> None:
    """Signal handler while models load: no request was taken yet, so nothing has to be finished."""
    log.info("stopped")
    os._exit(0)
