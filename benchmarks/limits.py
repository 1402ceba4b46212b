"""What a request over each limit of `rtm serve` costs: milliseconds, processor time and memory, on loopback.

`python -m benchmarks.limits` writes profiles/<machine>/limits.json. Memory is the highest that the front had while it
answered, over what it had before (Linux resets that mark on request); processor time is the front's.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import random
import re
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import machine
from benchmarks.soak_client import TIMEOUT, Connection, Server, get, post, tiny_model
from rtm_kernels import ModelConfig, RecursiveReasoner
from rtm_kernels.serve.limits import Limits

REPEATS = 40
MOST_MS, MOST_MIB = 10.0, 2.0
"""What a refusal may cost."""

LIMITS = Limits()
TEXT = "1..4.4.1.1.44.1."
HOST = b"Host: localhost\r\nContent-Type: application/json\r\n"


def head(lines: bytes, body: bytes = b"") -> bytes:
    return b"POST /v1/solve HTTP/1.1\r\n" + HOST + lines + b"\r\n" + body


def raw(body: bytes) -> bytes:
    return head(b"Content-Length: %d\r\n" % len(body), body)


def chunked(body: bytes, size: int) -> bytes:
    parts = [body[i : i + size] for i in range(0, len(body), size)]
    return head(b"Transfer-Encoding: chunked\r\n", b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in parts))


def cases() -> dict[str, tuple[bytes, int]]:
    """Limit -> a request just over it, or as far over it as the limits before it let through, and its status."""
    full, rng = LIMITS.body - 64, random.Random(0)
    wide = "1" * (LIMITS.text + 1)
    large = "\U0001f600" + "1" * (full // 5)
    largest = {"puzzles": ["\U0001f600" + "1" * (LIMITS.text - 1)] * 60 + ["1"] * 5}
    return {
        "header block": (head(b"X: " + b"a" * LIMITS.header_block + b"\r\n"), 431),
        "header block without an end": (b"GET / HTTP/1.1\r\nX: " + b"a" * (2 * LIMITS.header_block), 431),
        "headers": (head(b"".join(b"X-%d: 1\r\n" % i for i in range(LIMITS.headers + 1))), 431),
        "request line": (b"GET /" + b"a" * (64 << 10) + b" HTTP/1.1\r\n" + HOST + b"\r\n", 431),
        "not HTTP": (rng.randbytes(4096).replace(b"\n", b"n") + b"\r\n\r\n", 400),
        "chunk that is none": (head(b"Transfer-Encoding: chunked\r\n", b"zz\r\n"), 400),
        "body, by its length": (raw(b" " * (LIMITS.body + 1)), 413),
        "body, as it is read": (chunked(b" " * (LIMITS.body + 1), 1 << 14), 413),
        "depth": (raw(b'{"puzzles":' + b"[" * full), 400),
        "values": (raw(b'{"puzzles":[' + b"[]," * (full // 3) + b"[]]}"), 400),
        "puzzles": (post({"puzzles": [TEXT] * (LIMITS.puzzles + 1), "model": "tiny"}), 422),
        "puzzles, most as large as may be": (raw(json.dumps(largest, ensure_ascii=False).encode()), 422),
        "text": (post({"puzzles": [wide], "model": "tiny"}), 422),
        "text as large as the body": (raw(json.dumps({"puzzles": [large] * 4}, ensure_ascii=False).encode()), 422),
        "steps": (post({"puzzles": [TEXT], "max_steps": LIMITS.steps + 1, "model": "tiny"}), 422),
        "deadline": (post({"puzzles": [TEXT], "deadline": LIMITS.request + 1, "model": "tiny"}), 422),
        "unknown field": (post({"puzzles": [TEXT], "k" * 1000: 1}), 422),
        "puzzles x cells x steps": (post({"puzzles": [TEXT] * 64, "max_steps": 64, "model": "maze"}), 413),
        "model": (post({"puzzles": [TEXT], "model": "none"}), 404),
        "route": (get("/v1/load_model"), 404),
    }


def measured(server: Server, data: bytes, status: int, repeats: int) -> dict[str, Any]:
    """Cost of one kind of request; every answer has to have the status."""
    seconds, more, busy = [], [], []
    for _ in range(repeats):
        connection = Connection(server.port)
        before = memory(server, reset=True)[0]
        began, before_cpu = time.perf_counter(), cpu_ms(server)
        try:
            found, _ = connection.ask(data)
        finally:
            connection.close()
        seconds.append(time.perf_counter() - began)
        busy.append(cpu_ms(server) - before_cpu)
        more.append(memory(server)[1] - before)
        assert found == status, (found, status, data[:200])
    ms = 1000 * np.array(seconds)
    return {
        "bytes": len(data), "status": status, "ms_least": round(float(ms.min()), 3),
        "ms_median": round(float(np.median(ms)), 3), "cpu_ms_median": round(float(np.median(busy)), 3),
        "cpu_ms_most": round(max(busy), 3), "mib_most": round(max(more), 3),
    }  # fmt: skip


def cpu_ms(server: Server) -> float:
    """Milliseconds that the front's thread has run."""
    return int(Path(f"/proc/{server.process.pid}/schedstat").read_text().split()[0]) / 1e6


def memory(server: Server, reset: bool = False) -> tuple[float, float]:
    """MiB that the front has now, and the most it had since the last reset."""
    if reset:
        Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")
    text = Path(f"/proc/{server.process.pid}/status").read_text()
    now, most = (int(re.search(rf"{key}:\s+(\d+)", text)[1]) / 1024 for key in ("VmRSS", "VmHWM"))  # type: ignore[index]
    return now, most


def maze_model(folder: Path) -> Path:
    """900 cells, the most that is served, and random weights."""
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=6, seq_len=900, hidden_size=16, num_heads=1, H_cycles=1, L_cycles=1, layers={"L_level": 1}
    )
    return RecursiveReasoner(config).save_pretrained(folder / "maze")


def full_queue(server: Server, repeats: int) -> dict[str, Any]:
    """Requests of 64 puzzles while four others have filled the queue."""
    text = "S" + "." * 898 + "G"
    steps = LIMITS.work // (64 * 900)
    busy = [Connection(server.port) for _ in range(4)]
    try:
        for connection in busy:
            connection.socket.sendall(post({"puzzles": [text] * 64, "model": "maze", "max_steps": steps}))
        while waiting(server) <= LIMITS.queued - 64:
            time.sleep(0.01)
        return measured(server, post({"puzzles": [TEXT] * 64, "model": "tiny"}), 503, repeats)
    finally:
        for connection in busy:
            connection.close()


def waiting(server: Server) -> float:
    """Puzzles that wait for a slot."""
    connection = Connection(server.port)
    page = connection.ask(get("/metrics"))[1].decode()
    connection.close()
    return float(re.search(r"^rtm_puzzles_waiting (\S+)", page, re.MULTILINE)[1])  # type: ignore[index]


def connections(server: Server, repeats: int) -> dict[str, Any]:
    """A connection more than are taken, all the others being at work."""
    streams = []
    data = post({"puzzles": [TEXT] * 8, "model": "tiny", "max_steps": 64}, "/v1/stream")
    for _ in range(LIMITS.connections):
        opened = socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT)
        opened.sendall(data[:-1])  # a whole head, and never the whole body
        streams.append(opened)
    time.sleep(0.2)
    try:
        return measured(server, get("/healthz"), 503, repeats)
    finally:
        for opened in streams:
            opened.close()


def run(repeats: int = REPEATS) -> dict[str, Any]:
    """Every limit."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = Server(folder, [f"tiny={tiny_model(folder)}", f"maze={maze_model(folder)}"])
        try:
            for data, status in cases().values():
                measured(server, data, status, 2)
            found = {limit: measured(server, data, status, repeats) for limit, (data, status) in cases().items()}
            found["connections"] = connections(server, repeats)
            found["queue"] = full_queue(server, min(repeats, 10))
        finally:
            server.kill()
    return found


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--out", type=Path, help="default profiles/<machine>/limits.json")
    options = parser.parse_args()
    packages = {p: importlib.metadata.version(p) for p in ("fastapi", "starlette", "uvicorn", "h11", "pydantic")}
    head = {"commit": machine.commit(), "device": machine.device_name("cpu"), **machine.versions(), **packages}
    found = run(options.repeats)
    result = head | {"load_average": round(os.getloadavg()[1], 1), "repeats": options.repeats, "limits": found}
    out = options.out or machine.ROOT / "profiles" / machine.slug("cpu") / "limits.json"
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
