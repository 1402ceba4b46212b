"""What the soak of `rtm serve` sends, what it must get back, and the server it talks to."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import machine
from rtm_kernels import ModelConfig, RecursiveReasoner, Solver
from rtm_kernels.data.examples import example_puzzles
from rtm_kernels.data.sudoku import generate, to_text

BITS = ("answer", "status", "steps", "halt_probability", "residual")
TIMEOUT = 300.0
STEPS = 2


@dataclass
class Request:
    """The bytes of a request, the status it must get, and the bits of its solutions."""

    data: bytes
    status: int
    bits: list[tuple[Any, ...]] | None = None


@dataclass
class Tally:
    """What clients saw."""

    statuses: Counter[int] = field(default_factory=Counter)
    wrong: int = 0
    late: int = 0
    broken: int = 0
    seconds: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, status: int, verdict: str, seconds: float) -> None:
        with self.lock:
            self.statuses[status] += 1
            self.wrong += verdict == "wrong"
            self.late += verdict == "late"
            self.seconds.append(seconds)

    @property
    def total(self) -> int:
        return sum(self.statuses.values())

    def quantile(self, q: float) -> float | None:
        return round(1000 * float(np.quantile(self.seconds, q)), 3) if self.seconds else None


class Connection:
    """One keep-alive connection; reads answers with a Content-Length."""

    def __init__(self, port: int) -> None:
        self.port, self.buffer = port, b""
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT)

    def ask(self, data: bytes) -> tuple[int, bytes]:
        """(status, body). Errors: `OSError` when the connection ends before the answer."""
        self.socket.sendall(data)
        while b"\r\n\r\n" not in self.buffer:
            self._more()
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        found = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        length = int(found[1]) if found else 0
        while len(self.buffer) < length:
            self._more()
        body, self.buffer = self.buffer[:length], self.buffer[length:]
        return int(head.split(b" ", 2)[1]), body

    def _more(self) -> None:
        received = self.socket.recv(1 << 16)
        if not received:
            raise ConnectionError("closed")
        self.buffer += received

    def close(self) -> None:
        self.socket.close()


class Server:
    """`rtm serve` in a process of its own, its log in a file."""

    def __init__(self, folder: Path, models: list[str]) -> None:
        self.log = folder / "log.jsonl"
        command = [sys.executable, "-m", "rtm_kernels.cli.main", "serve", "--port", "0", "--json"]
        command += [f"--model={model}" for model in models]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, stderr=log, cwd=machine.ROOT)
        self.port = int(self.wait_for("listening")["address"].rsplit(":", 1)[1])

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = self.log.read_text().splitlines()
        return [json.loads(line) for line in lines if f'"event": "{name}"' in line]

    def wait_for(self, name: str) -> dict[str, Any]:
        end = time.monotonic() + TIMEOUT
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log.read_text()
            if found := self.events(name):
                return found[-1]
            time.sleep(0.02)
        raise TimeoutError(f"no {name} in the log")

    @property
    def worker(self) -> int:
        return int(self.events("worker ready")[-1]["worker"])

    def sample(self) -> dict[str, float]:
        """Memory in MiB and open descriptors of the front and of the worker."""
        found: dict[str, float] = {}
        for name, pid in (("front", self.process.pid), ("worker", self.worker)):
            status = Path(f"/proc/{pid}/status").read_text()
            found[f"{name}_rss_mib"] = int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]
            found[f"{name}_fds"] = len(os.listdir(f"/proc/{pid}/fd"))
        return found

    def pauses(self) -> list[float]:
        """Gaps of over five seconds between requests: the machine, or a person, had stopped the processes."""
        times = [line["time"] for line in self.events("request")]
        return [round(b - a, 1) for a, b in itertools.pairwise(times) if b - a > 5]

    def cpu_seconds(self) -> dict[str, float]:
        """Processor time of the front and of the worker so far."""
        tick = os.sysconf("SC_CLK_TCK")
        pids = {"front": self.process.pid, "worker": self.worker}
        stats = {name: Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split() for name, pid in pids.items()}
        return {name: (int(values[11]) + int(values[12])) / tick for name, values in stats.items()}

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def post(body: dict[str, Any], path: str = "/v1/solve") -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(data)}"
    return head.encode() + b"\r\n\r\n" + data


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def tiny_model(folder: Path) -> Path:
    """A 4x4 Sudoku model of random weights: it answers at once, and rarely right, so steps and bits vary."""
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=6, seq_len=16, hidden_size=16, num_heads=1, H_cycles=1, L_cycles=1, layers={"L_level": 1}
    )
    return RecursiveReasoner(config).save_pretrained(folder / "tiny")


def requests_of(rng: random.Random, tiny: Path) -> list[Request]:
    """Different requests, whose bits are those of a solver in this process; most go to the tiny model."""
    found = []
    boards = generate(64, seed=1, size=4)[0]
    for solver, name, puzzles, count in (
        (Solver(RecursiveReasoner.from_pretrained(tiny), max_steps=STEPS), "tiny", [to_text(b) for b in boards], 380),
        (Solver(RecursiveReasoner.from_pretrained("sudoku"), max_steps=STEPS), "sudoku",
         [p.text for p in example_puzzles()[:12]], 8),
    ):  # fmt: skip
        bits = {s.input: tuple(getattr(s, name) for name in BITS) for s in solver.solve(puzzles)}
        for _ in range(count):
            chosen = rng.sample(puzzles, rng.choice((1, 1, 1, 2, 5) if name == "tiny" else (1,)))
            body = {"puzzles": chosen, "model": name, "max_steps": STEPS}
            found.append(Request(post(body), 200, [bits[text] for text in chosen]))
    found += [Request(get("/healthz"), 200), Request(get("/v1/models"), 200), Request(get("/metrics"), 200)]
    found += [Request(get("/nope"), 404), Request(post({"puzzles": []}), 422), Request(post({"model": 7}), 422)]
    found += [Request(post({"puzzles": ["1"], "model": "none"}), 404)]
    rng.shuffle(found)
    return found


def judge(request: Request, status: int, body: bytes) -> str:
    """`right`, `late` for solutions that say they met their deadline first, else `wrong`; 503 is right here."""
    if status != request.status:
        return "right" if status == 503 else "wrong"
    if request.bits is None:
        return "right"
    solutions = json.loads(body)["solutions"]
    if [tuple(s[name] for name in BITS) for s in solutions] == request.bits:
        return "right"
    on_time = [(s, bits) for s, bits in zip(solutions, request.bits, strict=True) if s["reason"] != "deadline"]
    return "wrong" if any(tuple(s[name] for name in BITS) != bits for s, bits in on_time) else "late"
