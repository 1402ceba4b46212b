"""Requests that nobody meant: bytes of HTTP and of JSON changed, through the whole front without sockets and with."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import socket
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.server import ServerState

from rtm_kernels.serve.app import build_app
from rtm_kernels.serve.child import Setup
from rtm_kernels.serve.connection import connection_class
from rtm_kernels.serve.limits import Limits
from rtm_kernels.serve.metrics import Metrics
from rtm_kernels.serve.pool import Pool
from tests.hostile.mutations import damage_json

if TYPE_CHECKING:
    from tests.hostile.targets import Attack, Target
    from tests.serve.support import Running

HEAD = b"POST /v1/solve HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
VALUES: list[dict[str, Any]] = [
    {"puzzles": ["1000", "2000"], "model": "reverse", "max_steps": 3, "deadline": 5.0},
    {"puzzles": ["7007"] * 9},
]
BODIES = [*(json.dumps(value).encode() for value in VALUES), b'{"puzzles": ["\\u0031000"], "max_steps": 1e0}']
WHOLE = [
    HEAD + b"Content-Length: %d\r\n\r\n" % len(BODIES[0]) + BODIES[0],
    HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(BODIES[1]) + BODIES[1] + b"\r\n0\r\n\r\n",
    HEAD.replace(b"solve", b"stream") + b"Content-Length: %d\r\n\r\n" % len(BODIES[1]) + BODIES[1],
    b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /metrics HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n",
]
PIECES = [
    b"\r\n", b"\0", b'"', b"\\", b"[" * 20, b"}", b"9" * 400, b"\xff\xfe", b"\xed\xa0\x80", b"-1", b"NaN", b"%00",
    b"Expect: 100-continue\r\n", b"Upgrade: websocket\r\nConnection: upgrade\r\n", b"Content-Length: 3\r\n", b"..",
]  # fmt: skip
SWOLLEN = 0.002
TURNS = 8
"""Turns of the loop for what waits for bytes that do not come."""

SOLUTION = {"task": "reverse", "input": "", "answer": None, "status": "unverified", "steps": 1, "seconds": 0.0,
            "halt_probability": None, "reason": "max_steps", "answer_step": 0, "residual": None}  # fmt: skip


def mutated(rng: random.Random, data: bytes) -> bytes:
    """`data` with bytes changed, pieces put in, parts cut, doubled or swapped."""
    result = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at, end = sorted((rng.randrange(len(result) + 1), rng.randrange(len(result) + 1)))
        match rng.randrange(6):
            case 0:
                result[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                result[at:at] = rng.choice(PIECES)
            case 2:
                del result[at : min(end, at + 30)]
            case 3:
                result[at:at] = result[at : min(end, at + 200)]
            case 4:
                del result[at:]
            case 5:
                result[at:end] = result[at:end][::-1]
    return bytes(result)


def request(rng: random.Random) -> bytes:
    """A request damaged anywhere, or a sound one whose body is damaged."""
    if rng.random() < 0.5:
        return mutated(rng, rng.choice(WHOLE))
    if rng.random() < 0.5:
        body = mutated(rng, rng.choice(BODIES))
    else:
        body = json.dumps(damage_json(rng.choice(VALUES), rng)).encode("utf-8", "surrogatepass")
    return HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body


def check(data: bytes, received: bytes) -> bool:
    """Whether the first answer was a success; raises unless each is one, or a refusal in the promised form."""
    taken, rest = False, received
    while rest:
        head, _, rest = rest.partition(b"\r\n\r\n")
        status, headers = int(head.split(b" ", 2)[1]), head.lower()
        assert head.startswith(b"HTTP/1.1 ") and (status < 500 or status == 503), (data, received)
        assert b"Traceback" not in received and b"site-packages" not in received, (data, received)
        if status == 100:
            continue
        taken = taken or status == 200
        if b"content-length: " in headers:
            length = int(headers.partition(b"content-length: ")[2].split(b"\r\n")[0])
            body, rest = rest[:length], rest[length:]
        else:
            body, _, rest = rest.partition(b"\r\n0\r\n\r\n") if b"chunked" in headers else (rest, b"", b"")
        if status >= 400:
            error = json.loads(body)["error"]
            assert error["code"] and error["message"].isprintable() and len(error["request_id"]) == 32, (data, body)
            assert b"x-request-id: " + error["request_id"].encode() in headers, (data, head)
    return taken


class Answering(Pool):
    """A pool that answers every puzzle at once, without a worker."""

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        super().__init__(Setup((("reverse", "unused"),)), limits, metrics)
        self.models = {"reverse": {"name": "reverse", "cells": 4, "default_max_steps": 8, "task": "reverse"}}

    def _feed(self) -> None:
        for ticket in self._queues["reverse"].take():
            ticket.job.results.put_nowait((ticket.index, SOLUTION | {"input": ticket.text}))

    async def probe(self) -> None:
        """The golden puzzle is left out."""


class Wire(asyncio.Transport):
    """A transport that keeps what the server writes."""

    def __init__(self) -> None:
        super().__init__()
        self.sent, self.closing, self.paused = bytearray(), False, False

    def write(self, data: Any) -> None:
        self.sent += data

    def write_eof(self) -> None:
        """The server sends no more, and reads on."""

    def close(self) -> None:
        self.closing = True

    abort = close

    def is_closing(self) -> bool:
        return self.closing

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


def front() -> Target:
    """Requests through protocol, guard and routes on a loop of this process."""
    loop, limits, metrics = asyncio.new_event_loop(), Limits(read=0.3), Metrics()
    connection = connection_class(limits, metrics)

    async def start() -> uvicorn.Config:
        app = build_app(Answering(limits, metrics), limits, metrics, None)
        return uvicorn.Config(app, http=connection, ws="none", lifespan="off", log_config=None, access_log=False,
                              proxy_headers=False, h11_max_incomplete_event_size=limits.header_block)  # fmt: skip

    config, state = loop.run_until_complete(start()), ServerState()
    config.load()
    logging.getLogger("uvicorn").setLevel(logging.ERROR)  # it warns of each

    async def exchange(chunks: list[bytes]) -> bytes:
        wire = Wire()
        protocol = connection(config=config, server_state=state, app_state={}, _loop=loop)
        protocol.connection_made(wire)
        for chunk in chunks:
            patience = TURNS
            while wire.paused and not wire.closing and patience:
                patience -= 1
                await asyncio.sleep(0)
            if chunk and not wire.paused and not wire.closing:  # no transport hands over nothing
                protocol.data_received(chunk)
                await asyncio.sleep(0)
        patience = TURNS
        while state.tasks and not wire.closing and patience:
            patience -= protocol.cycle.more_body
            await asyncio.sleep(0)
        protocol.connection_lost(None)
        if state.tasks:
            await asyncio.wait_for(asyncio.gather(*state.tasks), 60)
        assert not state.connections
        return bytes(wire.sent)

    def make(rng: random.Random) -> Attack:
        data = request(rng)
        at = rng.randrange(len(data) + 1) if rng.random() < 0.2 else len(data)
        chunks = [data[:at], data[at:]] if at < len(data) else [data]
        if rng.random() < SWOLLEN:
            chunks[1:1] = [rng.choice((b"a", b"[]", b'"\\', b"\0", b"1,")) * 8192] * rng.randint(1, 40)
        return lambda: (repr(data[:300]), check(data, loop.run_until_complete(exchange(chunks))))

    return make


def answer_to(server: Running, data: bytes, timeout: float = 300.0) -> bytes:
    """What comes back until the server closes, which it does soon after a whole answer, and when a request stops."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=timeout) as connection:
        received = b""
        try:
            connection.sendall(data)
            while piece := connection.recv(1 << 16):
                received += piece
        except (ConnectionResetError, BrokenPipeError):
            pass
        return received


def sockets(server: Running) -> Target:
    """The same over real sockets."""

    def make(rng: random.Random) -> Attack:
        data = request(rng)
        return lambda: (repr(data[:300]), check(data, answer_to(server, data)))

    return make
