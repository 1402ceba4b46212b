"""Log lines, sockets, uvicorn and an orderly end."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
import sys
import traceback
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from rtm_kernels.access import VARIABLE, Token, is_loopback
from rtm_kernels.engine import Service
from rtm_kernels.errors import BackendUnavailable, require
from rtm_kernels.serve.schema import Limits

log = logging.getLogger("rtm.serve")


class Lines(logging.Formatter):
    """One line per record: its message and the mapping that it carries as `fields`."""

    def __init__(self, as_json: bool) -> None:
        super().__init__(datefmt="%H:%M:%S")
        self.as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        """JSON with `time` in seconds since 1970, or `time level message field=value ...`."""
        values = {name: value for name, value in getattr(record, "fields", {}).items() if value != ""}
        if record.exc_info and record.exc_info[1] is not None:
            last = traceback.extract_tb(record.exc_info[2])[-1]
            values["error"] = f"{type(record.exc_info[1]).__name__} in {last.name}:{last.lineno}"
        level, text = record.levelname.lower(), record.getMessage()
        if self.as_json:
            return json.dumps({"time": round(record.created, 3), "level": level, "event": text} | values)
        return " ".join([self.formatTime(record, self.datefmt), level, text, *(f"{k}={v}" for k, v in values.items())])


def configure_log(as_json: bool) -> None:
    """Send the log to standard error, uvicorn's and asyncio's only errors."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines(as_json))
    for name, level in (("rtm.serve", logging.INFO), ("uvicorn", logging.ERROR), ("asyncio", logging.ERROR)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)


def bind(host: str, port: int, token: Token | None) -> socket.socket:
    """A bound socket. Errors: `InputError` for a bad port or a public address without a token, `OSError`."""
    require(0 <= port < 1 << 16, "port", port, "from 0 to 65535")
    allowed = f"an address other than loopback needs a token (--token-file, or {VARIABLE})"
    require(is_loopback(host) or token is not None, "host", host, allowed)
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


def config(app: ASGIApp, limits: Limits, **options: Any) -> uvicorn.Config:
    """uvicorn with the limits. It answers bytes that are not HTTP with a plain 400, too many connections with 503."""
    fixed: dict[str, Any] = {"http": "h11", "ws": "none", "loop": "asyncio", "log_config": None, "access_log": False,
                             "proxy_headers": False, "server_header": False, "backlog": 128}  # fmt: skip
    return uvicorn.Config(
        app,
        limit_concurrency=limits.connections,
        h11_max_incomplete_event_size=limits.header_block,
        timeout_keep_alive=limits.keep_alive,
        timeout_graceful_shutdown=int(limits.drain + 1),
        **fixed,
        **options,
    )


class Server(uvicorn.Server):
    """uvicorn's server. It ends when the service fails; `drain` seconds after a signal it refuses unsolved puzzles."""

    def __init__(self, app: ASGIApp, limits: Limits, service: Service, **options: Any) -> None:
        super().__init__(config(app, limits, **options))
        self.limits, self.service = limits, service

    def run_on(self, bound: socket.socket) -> None:
        """Take requests until SIGTERM or SIGINT, then drain. Errors: `BackendUnavailable` when the service fails."""
        bound.listen()
        host, port = bound.getsockname()[:2]
        log.info("listening", extra={"fields": {"address": f"http://{f'[{host}]' if ':' in host else host}:{port}"}})
        for signum in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises them again after the drain
            signal.signal(signum, self.handle_exit)
        self.run(sockets=[bound])
        self.service.close(drain=False, timeout=10)  # a process that exits inside a native step crashes
        if self.service.failure is not None:
            raise BackendUnavailable(self.service.failure)
        log.info("stopped")

    async def on_tick(self, counter: int) -> bool:
        """See `uvicorn.Server.on_tick`."""
        return await super().on_tick(counter) or self.service.failure is not None

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See `uvicorn.Server.shutdown`."""
        log.info("draining")
        close = lambda: self.service.close(drain=False, timeout=0)  # noqa: E731
        asyncio.get_running_loop().call_later(self.limits.drain, close)
        await super().shutdown(sockets)
