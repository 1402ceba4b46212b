"""A long run of `rtm serve` on loopback: wrong answers, errors, memory, descriptors, kills, overload, drain.

`make soak` sends 100,000 requests and writes profiles/<machine>/soak.json; `--requests 2000` is a quick look. Answers
are compared with those of a `Solver` in this process, bit for bit.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import random
import signal
import socket
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import machine
from benchmarks.soak_client import (
    TIMEOUT,
    Connection,
    Request,
    Server,
    Tally,
    get,
    judge,
    post,
    requests_of,
    tiny_model,
)
from rtm_kernels.data.sudoku import generate, to_text

SAMPLES = 10
KILLS = 3


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
        found = settle(server, fds)
        samples.append({"requests": tally.total, **{k: round(v, 3) for k, v in found.items()}})
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


def settle(server: Server, fds: float) -> dict[str, float]:
    """A sample once the front has noticed that the clients closed their connections, after ten seconds at most."""
    end = time.monotonic() + 10
    while (found := server.sample())["front_fds"] > fds and time.monotonic() < end:
        time.sleep(0.01)
    return found


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
        began, worker = time.perf_counter(), server.worker
        os.kill(worker, signal.SIGKILL)
        while server.worker == worker:  # until then /healthz may still tell of the worker before
            time.sleep(0.01)
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
            result = {"steady": steady(server, requests, count, clients), "pauses_seconds": server.pauses()}
            result["kills"] = kills(server, requests, max(400, count // 50), clients)
            result["overload"] = overload(server, clients=24, rounds=max(100, count // 200))
            result["idle_sockets"] = idle_sockets(server, requests, max(200, count // 50), clients, sockets)
            result["drain"] = drain(server, requests, clients)
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
