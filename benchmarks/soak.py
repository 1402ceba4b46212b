"""A long run of `rtm serve` on loopback: wrong answers, errors, memory, descriptors, kills, overload, drain.

`make soak` sends 100,000 requests and writes profiles/<machine>/soak.json; `--requests 2000` is a quick look. Answers
are compared with those of a `Solver` in this process, bit for bit.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import os
import random
import re
import signal
import socket
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
from rtm_kernels.pretrained import save_pretrained

BITS = ("answer", "status", "steps", "halt_probability", "residual")
SAMPLES = 10
TIMEOUT = 300.0
KILLS = 3
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
    return save_pretrained(RecursiveReasoner(config), folder / "tiny")


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


def drive(port: int, requests: list[Request], count: int, clients: int, tally: Tally) -> list[threading.Thread]:
    """Threads that send `count` requests in all; a connection that ends is counted and opened again."""

    def work(offset: int) -> None:
        connection = None
        for i in range(offset, count, clients):
            request = requests[i % len(requests)]
            began = time.perf_counter()
            try:
                connection = connection or Connection(port)
                status, body = connection.ask(request.data)
            except OSError:
                with tally.lock:
                    tally.broken += 1
                connection = None
                continue
            tally.add(status, judge(request, status, body), time.perf_counter() - began)
        if connection is not None:
            connection.close()

    threads = [threading.Thread(target=work, args=(offset,), daemon=True) for offset in range(clients)]
    for thread in threads:
        thread.start()
    return threads


def join(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join()


def healthy_again(port: int, began: float) -> float:
    """Seconds from `began` until /healthz answers 200 on a fresh connection."""
    while time.perf_counter() - began < TIMEOUT:
        connection = Connection(port)
        try:
            if connection.ask(get("/healthz"))[0] == 200:
                return time.perf_counter() - began
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.02)
    raise TimeoutError("not healthy again")


def steady(server: Server, requests: list[Request], count: int, clients: int) -> dict[str, Any]:
    """The long phase: answers, and memory and descriptors at ten points."""
    tally, samples, fds, began = Tally(), [], server.sample()["front_fds"], time.perf_counter()
    for number in range(SAMPLES):
        shifted = requests[number * 37 % len(requests) :] + requests[: number * 37 % len(requests)]
        join(drive(server.port, shifted, count // SAMPLES, clients, tally))
        settle(server, fds)
        samples.append({"requests": tally.total, **{k: round(v, 3) for k, v in server.sample().items()}})
        print(json.dumps(samples[-1] | {"wrong": tally.wrong, "statuses": tally.statuses}), flush=True)
    later = samples[2:]  # the first fifth fills caches and pools
    x = np.array([sample["requests"] for sample in later]) / 10_000
    slopes = {
        f"{name}_mib_per_10000": round(float(np.polyfit(x, [s[f"{name}_rss_mib"] for s in later], 1)[0]), 4)
        for name in ("front", "worker")
    }
    seconds = time.perf_counter() - began
    return summary(tally) | slopes | {
        "requests_per_second": round(tally.total / seconds, 1), "seconds": round(seconds, 1),
        "cpu_ms_per_request": {k: round(1000 * v / tally.total, 3) for k, v in server.cpu_seconds().items()},
        "fds_constant": len({(s["front_fds"], s["worker_fds"]) for s in samples}) == 1, "samples": samples,
    }  # fmt: skip


def settle(server: Server, fds: float) -> None:
    """Wait until the front has noticed that the clients closed their connections, for a second at most."""
    end = time.monotonic() + 1
    while server.sample()["front_fds"] > fds and time.monotonic() < end:
        time.sleep(0.01)


def summary(tally: Tally) -> dict[str, Any]:
    server_errors = {status: n for status, n in tally.statuses.items() if status >= 500 and status != 503}
    return {
        "requests": tally.total, "wrong": tally.wrong, "late": tally.late, "broken_connections": tally.broken,
        "5xx_but_503": sum(server_errors.values()), "503": tally.statuses[503],
        "statuses": {str(k): v for k, v in sorted(tally.statuses.items())},
        "p50_ms": tally.quantile(0.5), "p99_ms": tally.quantile(0.99),
    }  # fmt: skip


def kills(server: Server, requests: list[Request], count: int, clients: int) -> dict[str, Any]:
    """The worker is killed under load: every request is still answered, and right."""
    tally, seconds = Tally(), []
    threads = drive(server.port, requests, count, clients, tally)
    for number in range(KILLS):
        while tally.total < count * (number + 1) // (KILLS + 1):
            time.sleep(0.005)
        began = time.perf_counter()
        os.kill(server.worker, signal.SIGKILL)
        seconds.append(round(healthy_again(server.port, began), 3))
    join(threads)
    return summary(tally) | {"healthy_after_seconds": seconds}


def overload(server: Server, clients: int, rounds: int) -> dict[str, Any]:
    """Many large requests at once: what does not fit is refused with 503, what is taken is answered."""
    text = to_text(generate(1, seed=2, size=4)[0][0])
    large = Request(post({"puzzles": [text] * 64, "model": "tiny", "max_steps": 64}), 200)
    tally = Tally()
    join(drive(server.port, [large], rounds, clients, tally))
    return summary(tally)


def idle_sockets(server: Server, requests: list[Request], count: int, clients: int, sockets: int) -> dict[str, Any]:
    """p99 of normal requests alone, and while `sockets` connections send half a head and wait."""
    alone, beside = Tally(), Tally()
    join(drive(server.port, requests, count, clients, alone))
    opened = []
    threads = drive(server.port, requests, count, clients, beside)
    for _ in range(sockets):
        idle = socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT)
        idle.sendall(b"POST /v1/solve HTTP/1.1\r\nX: ")
        opened.append(idle)
    join(threads)
    for idle in opened:
        idle.close()
    return {"sockets": sockets, "alone": summary(alone), "beside": summary(beside)}


def drain(server: Server, requests: list[Request], clients: int) -> dict[str, Any]:
    """SIGTERM under load: seconds to the end of the process, its exit code, and what clients saw until then."""
    tally = Tally()
    threads = drive(server.port, requests, 1 << 12, clients, tally)
    while tally.total < 64:
        time.sleep(0.005)
    began = time.perf_counter()
    server.process.send_signal(signal.SIGTERM)
    code = server.process.wait(TIMEOUT)
    seconds = time.perf_counter() - began
    join(threads)
    found = summary(tally)
    return {"seconds": round(seconds, 3), "exit_code": code} | {k: found[k] for k in ("wrong", "5xx_but_503", "503")}


def run(count: int, clients: int = 12, sockets: int = 1000, seed: int = 0) -> dict[str, Any]:
    """The whole run; `count` requests in its long phase."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        requests = requests_of(random.Random(seed), tiny_model(folder))
        server = Server(folder, [f"tiny={folder / 'tiny'}", "sudoku"])
        try:
            result = {"steady": steady(server, requests, count, clients)}
            result["kills"] = kills(server, requests, max(400, count // 50), clients)
            result["overload"] = overload(server, clients=24, rounds=max(100, count // 200))
            result["idle_sockets"] = idle_sockets(server, requests, max(200, count // 50), clients, sockets)
            result["drain"] = drain(server, requests, clients)
            result["pauses_seconds"] = server.pauses()
            result["unexpected_log_lines"] = len(server.events("request failed"))
        finally:
            server.kill()
    return result


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--out", type=Path, help="default profiles/<machine>/soak.json")
    options = parser.parse_args()
    packages = {p: importlib.metadata.version(p) for p in ("fastapi", "starlette", "uvicorn", "h11", "pydantic")}
    head = {"commit": machine.commit(), "device": machine.device_name("cpu"), **machine.versions(), **packages}
    result = head | run(options.requests, options.clients)
    out = options.out or machine.ROOT / "profiles" / machine.slug("cpu") / "soak.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
