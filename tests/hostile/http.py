"""Damaged HTTP and JSON, sent through uvicorn's protocol and the application without sockets."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from concurrent.futures import Future
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from rtm_kernels.engine import Solution
from rtm_kernels.serve.app import build_app
from rtm_kernels.serve.front import Front
from rtm_kernels.serve.limits import Limits
from rtm_kernels.serve.server import config
from tests.hostile.mutations import damage_json
from tests.hostile.targets import Attack, Target
from tests.serve.support import gated_solver

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
        if b"text/plain" in headers and status != 200:
            assert status == 400 and b"Invalid HTTP request received." in body, (data, received)  # uvicorn's own
        elif status >= 400:
            error = json.loads(body)["error"]
            assert error["code"] and error["message"].isprintable() and len(error["request_id"]) == 32, (data, body)
            assert b"x-request-id: " + error["request_id"].encode() in headers, (data, head)
    return taken


class Instant:
    """A service that answers every puzzle at once."""

    queued = running = 0

    async def queue_all(self, puzzles: list[str], **_: Any) -> list[Future[Solution]]:
        futures = [Future[Solution]() for _ in puzzles]
        for puzzle, future in zip(puzzles, futures, strict=True):
            future.set_result(Solution(task="reverse", input=puzzle, status="unverified"))
        return futures

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


def http() -> Target:
    """Requests through protocol, guard and routes on a loop of this process."""
    loop, state = asyncio.new_event_loop(), ServerState()
    front, instant = Front({"reverse": gated_solver()[0]}, Limits(read=0.3)), Instant()
    front.service.close()
    front.service, front.probe = instant, instant.probe  # type: ignore[assignment, method-assign]
    made = config(build_app(front, None), front.limits, lifespan="off")
    made.load()
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # it warns of each

    async def exchange(chunks: list[bytes]) -> bytes:
        wire = Wire()
        protocol = H11Protocol(config=made, server_state=state, app_state={}, _loop=loop)
        protocol.connection_made(wire)
        for chunk in chunks:
            patience = TURNS
            while wire.paused and not wire.closing and patience:
                patience -= 1
                await asyncio.sleep(0)
            if chunk and not wire.paused and not wire.closing:  # no transport hands over nothing
                try:
                    protocol.data_received(chunk)
                except h11.LocalProtocolError:  # asyncio closes the connection
                    wire.close()
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
