"""A long run of `rtm serve` on loopback: wrong answers, errors, memory, descriptors, refusals, overload, drain.

`make soak` sends 100,000 requests and writes profiles/<machine>/soak.json; `make soak ARGS="--requests 1000"` is a
quick look. Answers are compared bit for bit with those of a `Solver` in this process.
"""

from __future__ import annotations

import argparse
import http.client
import importlib.metadata
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
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
from rtm_kernels.serve.schema import Limits

BITS = ("answer", "status", "steps", "halt_probability", "residual")
TIMEOUT, STEPS, SAMPLES, LIMITS = 300.0, 2, 10, Limits()


@dataclass
class Request:
    """A request with a body or a GET, the status it must get, and the bits of its solutions."""

    status: int
    body: bytes | None = None
    path: str = "/v1/solve"
    bits: list[tuple[Any, ...]] | None = None

    def ask(self, connection: http.client.HTTPConnection) -> tuple[int, bytes]:
        """(status, body) of the answer."""
        method = "GET" if self.body is None else "POST"
        connection.request(method, self.path, self.body, {"content-type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read()


def post(status: int, bits: list[tuple[Any, ...]] | None = None, **values: Any) -> Request:
    """A request to solve; to the tiny model unless it says otherwise."""
    return Request(status, json.dumps({"puzzles": ["1"], "model": "tiny"} | values).encode(), bits=bits)


@dataclass
class Tally:
    """What clients saw. `late` answers met their deadline first; 503 is right wherever it comes."""

    statuses: Counter[int] = field(default_factory=Counter)
    verdicts: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)

    def add(self, status: int, verdict: str, seconds: float) -> None:
        self.statuses[status] += 1
        self.verdicts[verdict] += 1
        self.seconds.append(seconds)

    def summary(self) -> dict[str, Any]:
        return {
            "requests": len(self.seconds), "wrong": self.verdicts["wrong"], "late": self.verdicts["late"],
            "5xx_but_503": sum(n for status, n in self.statuses.items() if status >= 500 and status != 503),
            "statuses": {str(status): n for status, n in sorted(self.statuses.items())},
            **{f"p{q}_ms": round(1000 * float(np.percentile(self.seconds, q)), 3) for q in (50, 99) if self.seconds},
        }  # fmt: skip


class Server:
    """`rtm serve` in a process of its own, its log in a file."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "log.jsonl"
        command = [sys.executable, "-m", "rtm_kernels.cli.main", "serve", "--port", "0", "--json"]
        with self.log.open("w") as log:
            command += [f"--model=tiny={folder / 'tiny'}", "--model=sudoku"]
            self.process = subprocess.Popen(command, stderr=log, cwd=machine.ROOT)
        while not (found := re.search(r"http://127.0.0.1:(\d+)", self.log.read_text())):
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.05)
        self.port = int(found[1])

    def sample(self) -> dict[str, float]:
        """Memory in MiB, open descriptors, and seconds of processor time so far."""
        proc = Path(f"/proc/{self.process.pid}")
        rss = int(re.search(r"VmRSS:\s+(\d+)", (proc / "status").read_text())[1])  # type: ignore[index]
        stat = (proc / "stat").read_text().rsplit(")", 1)[1].split()
        cpu = (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")
        return {"rss_mib": round(rss / 1024, 3), "fds": len(os.listdir(proc / "fd")), "cpu_seconds": round(cpu, 2)}


def refusals() -> dict[str, Request]:
    """Limit -> a request over it."""
    full = LIMITS.body - 64
    return {
        "body": Request(413, b" " * (LIMITS.body + 1)),
        "depth": Request(400, b'{"puzzles":' + b"[" * full),
        "values": Request(422, b'{"puzzles":[' + b"[]," * (full // 3) + b"[]]}"),
        "puzzles": post(422, puzzles=["1"] * (LIMITS.puzzles + 1)),
        "text": post(422, puzzles=["1" * full]),
        "steps": post(422, max_steps=LIMITS.steps + 1),
        "field": post(422, **{"k" * 1000: 1}),
        "model": post(404, model="none"),
        "route": Request(404, path="/nope"),
    }


def requests_of(rng: random.Random, tiny: Path) -> list[Request]:
    """Different requests, whose bits are those of a solver in this process; most go to the tiny model."""
    found = [Request(200, path=path) for path in ("/healthz", "/v1/models", "/metrics")]
    found += [request for name, request in refusals().items() if name in ("puzzles", "model", "route", "steps")]
    for name, source, puzzles, count in (
        ("tiny", str(tiny), [to_text(board) for board in generate(64, seed=1, size=4)[0]], 380),
        ("sudoku", "sudoku", [puzzle.text for puzzle in example_puzzles()[:12]], 8),
    ):
        solved = Solver(RecursiveReasoner.from_pretrained(source), max_steps=STEPS).solve(puzzles)
        bits = {s.input: tuple(getattr(s, name) for name in BITS) for s in solved}
        for _ in range(count):
            chosen = rng.sample(puzzles, rng.choice((1, 1, 1, 2, 5)) if name == "tiny" else 1)
            found.append(post(200, [bits[text] for text in chosen], puzzles=chosen, model=name, max_steps=STEPS))
    rng.shuffle(found)
    return found


def judge(request: Request, status: int, body: bytes) -> str:
    """`right`, `late`, or `wrong`."""
    if status != request.status or request.bits is None:
        return "right" if status in (request.status, 503) else "wrong"
    pairs = list(zip(json.loads(body)["solutions"], request.bits, strict=True))
    if any(tuple(s[name] for name in BITS) != bits for s, bits in pairs if s["reason"] != "deadline"):
        return "wrong"
    return "late" if any(s["reason"] == "deadline" for s, _ in pairs) else "right"


def drive(port: int, requests: list[Request], count: int, clients: int, tally: Tally) -> list[threading.Thread]:
    """Threads that send `count` requests in all, each until its connection breaks."""

    def work(offset: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
        try:
            for i in range(offset, count, clients):
                request, began = requests[i % len(requests)], time.perf_counter()
                status, body = request.ask(connection)
                tally.add(status, judge(request, status, body), time.perf_counter() - began)
        except (OSError, http.client.HTTPException):
            tally.verdicts["broken"] += 1
        connection.close()

    threads = [threading.Thread(target=work, args=(offset,), daemon=True) for offset in range(clients)]
    for thread in threads:
        thread.start()
    return threads


def driven(server: Server, requests: list[Request], count: int, clients: int) -> Tally:
    tally = Tally()
    for thread in drive(server.port, requests, count, clients, tally):
        thread.join()
    return tally


def steady(server: Server, requests: list[Request], count: int, clients: int) -> dict[str, Any]:
    """The long phase: answers, and memory and descriptors at ten points."""
    total, samples, began = Tally(), [], time.perf_counter()
    for _ in range(SAMPLES):
        random.Random(len(samples)).shuffle(requests)
        tally = driven(server, requests, count // SAMPLES, clients)
        total.statuses += tally.statuses
        total.verdicts += tally.verdicts
        total.seconds += tally.seconds
        time.sleep(0.5)  # the server closes what the clients have closed
        samples.append({"requests": len(total.seconds), **server.sample()})
        print(json.dumps(samples[-1] | dict(total.verdicts)), flush=True)
    seconds, later = time.perf_counter() - began, samples[2:]  # the first fifth fills caches and pools
    slope = np.polyfit([s["requests"] / 10_000 for s in later], [s["rss_mib"] for s in later], 1)[0]
    return total.summary() | {
        "broken_connections": total.verdicts["broken"], "mib_per_10000": round(float(slope), 4),
        "requests_per_second": round(len(total.seconds) / seconds, 1),
        "fds_constant": len({s["fds"] for s in samples}) == 1, "samples": samples,
    }  # fmt: skip


def drain(server: Server, requests: list[Request], clients: int) -> dict[str, Any]:
    """SIGTERM under load: seconds to the end of the process, its exit code, and what clients saw until then."""
    tally = Tally()
    threads = drive(server.port, requests, 1 << 16, clients, tally)
    while len(tally.seconds) < 64:
        time.sleep(0.005)
    began = time.perf_counter()
    server.process.send_signal(signal.SIGTERM)
    code, seconds = server.process.wait(TIMEOUT), time.perf_counter() - began
    for thread in threads:
        thread.join()
    return {"seconds": round(seconds, 3), "exit_code": code} | tally.summary()


def run(count: int, clients: int = 12, seed: int = 0) -> dict[str, Any]:
    """The whole run; `count` requests in its long phase."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    config = ModelConfig(vocab_size=6, seq_len=16, hidden_size=16, num_heads=1, H_cycles=1, L_cycles=1)
    large = post(200, puzzles=["1..4.4.1.1.44.1."] * 64, max_steps=64)
    with tempfile.TemporaryDirectory() as name:
        tiny = RecursiveReasoner(config).save_pretrained(Path(name) / "tiny")
        requests, server = requests_of(random.Random(seed), tiny), Server(Path(name))
        try:
            result = {"steady": steady(server, requests, count, clients)}
            result["refusals"] = {name: driven(server, [r], 40, 1).summary() for name, r in refusals().items()}
            result["overload"] = driven(server, [large], max(100, count // 200), 24).summary()
            result["drain"] = drain(server, requests, clients)
            result["unexpected_log_lines"] = server.log.read_text().count("request failed")
        finally:
            server.process.kill()
    return result


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--out", type=Path, help="default profiles/<machine>/soak.json")
    options = parser.parse_args()
    packages = {p: importlib.metadata.version(p) for p in ("fastapi", "starlette", "uvicorn", "h11", "pydantic")}
    head = {"commit": machine.commit(), "device": machine.device_name("cpu"), **machine.versions(), **packages}
    result = head | run(options.requests)
    out = options.out or machine.ROOT / "profiles" / machine.slug("cpu") / "soak.json"
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({name: part for name, part in result.items() if name != "steady"}, indent=1))


if __name__ == "__main__":
    main()
