"""Everything together: socket, worker, application, and an orderly end."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType

import uvicorn

from rtm_kernels.access import Token, check_address
from rtm_kernels.errors import require
from rtm_kernels.serve.app import build_app
from rtm_kernels.serve.child import Setup
from rtm_kernels.serve.connection import connection_class
from rtm_kernels.serve.limits import Limits
from rtm_kernels.serve.metrics import Metrics
from rtm_kernels.serve.pool import Pool

log = logging.getLogger("rtm.serve")

KEEP_ALIVE = 5
BACKLOG = 128
ACCEPTED_AT_ONCE = 16
"""Connections taken per turn of the loop: fewer than the limit, so that each can be read before others displace it."""


@dataclass(frozen=True)
class Options:
    """Where to listen, with which token, and what the worker loads.

    Errors: `InputError` for an address that is not loopback without a token.
    """

    setup: Setup
    host: str = "127.0.0.1"
    port: int = 8000
    token: Token | None = None
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        require(0 <= self.port < 1 << 16, "port", self.port, "0 to 65535")
        check_address(self.host, self.token)


class Server(uvicorn.Server):
    """uvicorn's server; when told to stop it also stops taking puzzles."""

    def __init__(self, config: uvicorn.Config, pool: Pool) -> None:
        super().__init__(config)
        self.pool = pool

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See `uvicorn.Server.startup`."""
        await super().startup(sockets)
        for listening in sockets or ():
            listening.listen(BACKLOG)  # asyncio has set its length to what is accepted at once

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See `uvicorn.Server.shutdown`."""
        log.info("draining")
        self.pool.drain()
        await super().shutdown(sockets)


def run(options: Options, on_ready: Callable[[str, Server], None]) -> None:
    """Serve until SIGTERM or SIGINT, then drain and return. `on_ready` gets the address once requests are taken.

    Errors: `InputError` for a model, `BackendUnavailable` for a worker that does not start, `OSError` for the address.
    """
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((options.host, options.port))
        except OSError as error:
            error.filename = f"{options.host}:{options.port}"
            raise
        asyncio.run(serve(options, listening, on_ready))


async def serve(options: Options, listening: socket.socket, on_ready: Callable[[str, Server], None]) -> None:
    """Start the worker, then take requests until a signal; one that comes while models load ends it at once."""
    metrics, told = Metrics(), list[int]()
    pool = Pool(options.setup, options.limits, metrics)
    try:
        if await started(pool, told):
            await take_requests(options, pool, metrics, listening, on_ready, told)
    finally:
        await pool.stop()
    log.info("stopped")


async def started(pool: Pool, told: list[int]) -> bool:
    """Start the pool; False when SIGTERM or SIGINT, which are put into `told`, arrives before it is ready.

    Errors: those of `Pool.start`.
    """
    loop, starting = asyncio.get_running_loop(), asyncio.ensure_future(pool.start())

    def stop(signum: int, frame: FrameType | None) -> None:
        told.append(signum)
        loop.call_soon_threadsafe(starting.cancel)

    if threading.current_thread() is threading.main_thread():
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, stop)
    try:
        await starting
    except asyncio.CancelledError:
        if not told:
            raise
    return not told


async def take_requests(
    options: Options, pool: Pool, metrics: Metrics, listening: socket.socket,
    on_ready: Callable[[str, Server], None], told: list[int],
) -> None:  # fmt: skip
    """Serve what the started pool can solve, until a signal, also one that is in `told` already."""
    limits = options.limits
    config = uvicorn.Config(
        build_app(pool, limits, metrics, options.token),
        http=connection_class(limits, metrics),
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=ACCEPTED_AT_ONCE,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=int(limits.drain + 1),
        h11_max_incomplete_event_size=limits.header_block,
    )
    host, port = listening.getsockname()[:2]
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    listening.listen(BACKLOG)
    server = Server(config, pool)
    if threading.current_thread() is threading.main_thread():
        for signum in (signal.SIGTERM, signal.SIGINT):  # now, and when uvicorn raises them again after the drain
            signal.signal(signum, server.handle_exit)
    server.should_exit = bool(told)
    on_ready(address, server)
    await server.serve(sockets=[listening])
