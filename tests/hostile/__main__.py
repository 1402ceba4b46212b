"""A long campaign of damaged inputs: `python -m tests.hostile` (`make hostile`) tries a million and writes the result.

Every kind of input runs in a process of its own, which writes what it has every thousand inputs; the same command
continues where it was cut off. Attack i of seed s is the same in every run. Writes profiles/<machine>/hostile.json.

Memory of one input is the highest that the process had while it was tried, over what it had before (Linux resets that
mark on request). What stays is told apart from it: growth is the slope of the memory over the second half of the
inputs that one process has tried, the first half of which fills caches and the allocator's pools.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from tests.hostile.build import TARGETS
from tests.hostile.targets import Target

ROOT = Path(__file__).resolve().parents[2]
CPU_SECONDS = 1.0
"""Processor time that no single input may take; an input that hangs is far above it."""

SHARES = {
    "model_files": 0.038, "data_sets": 0.08, "trace_files": 0.3, "command_line": 0.002, "tool_arguments": 0.18,
    "http": 0.398, "http_sockets": 0.002,
}  # fmt: skip
LIMITS_MIB = {
    "model_files": 16, "data_sets": 32, "trace_files": 128, "command_line": 32, "tool_arguments": 16, "http": 2,
    "http_sockets": 2,
}  # fmt: skip
"""What one input may add to the memory of a process, as SECURITY.md says it."""
GROWTH_MIB = 1.0
"""What 10,000 inputs may leave behind, as in the soak of the server."""

ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}
WARM_UP = 200
EVERY = 1000
LEAST = 30_000
"""Inputs of one process from which its growth is told: over HTTP the 33,000 after the first 20,000 left 0.8 MiB."""
CUT = 10.0
"""Processor seconds after which an input is stopped, so that the others get their turn."""


class Stuck(BaseException):
    """An input took `CUT` seconds of processor time."""


def stop(*_: object) -> None:
    raise Stuck(f"still running after {CUT:g} s of processor time")


def memory_mib(key: str) -> float:
    """`VmRSS`: the memory that this process has; `VmHWM`: the most that it had since `reset_peak`."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{key}:")[2].split(None, 1)[0]) / 1024


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def fresh(name: str, seed: int) -> dict[str, Any]:
    return {"target": name, "seed": seed, "inputs": 0, "taken": 0, "refused": 0, "failures": [], "cpu_seconds": 0.0,
            "peak_mib": 0.0, "peak_number": None, "slowest_seconds": 0.0, "slowest_number": None, "slowest": "",
            "growth_inputs": 0, "growth_mib_per_10000": None}  # fmt: skip


def attack(name: str, seed: int, count: int, path: Path) -> None:
    """Try the attacks of one kind that `path` does not hold yet."""
    found = json.loads(path.read_text()) if path.exists() else fresh(name, seed)
    signal.signal(signal.SIGPROF, stop)
    with tempfile.TemporaryDirectory() as folder, TARGETS[name](Path(folder)) as target:
        os.chdir(folder)
        for number in range(WARM_UP):
            target(random.Random(f"warm {number}"))()
        samples = []
        while found["inputs"] < count:
            one(target, found)
            if found["inputs"] % EVERY == 0 or found["inputs"] == count:
                samples.append(memory_mib("VmRSS"))
                enter_growth(found, samples)
                path.write_text(json.dumps(found, indent=1) + "\n")
        os.chdir("/")


def one(target: Target, found: dict[str, Any]) -> None:
    """One attack, entered in `found`."""
    number = found["inputs"]
    attack, tried = target(random.Random(f"{found['seed']} {number}")), ""
    reset_peak()
    before = memory_mib("VmRSS")
    signal.setitimer(signal.ITIMER_PROF, CUT)
    start = time.process_time()
    try:
        tried, taken = attack()
        found["taken" if taken else "refused"] += 1
    except (Exception, Stuck) as error:
        found["failures"].append(f"{number}: {error!r:.500}")
        if len(found["failures"]) >= 50:
            raise
    seconds = time.process_time() - start
    signal.setitimer(signal.ITIMER_PROF, 0)
    found["inputs"] += 1
    found["cpu_seconds"] += seconds
    if seconds > found["slowest_seconds"]:
        found |= {"slowest_seconds": round(seconds, 4), "slowest_number": number, "slowest": tried[:160]}
    if (over := round(memory_mib("VmHWM") - before, 2)) > found["peak_mib"]:
        found |= {"peak_mib": over, "peak_number": number}


def enter_growth(found: dict[str, Any], samples: list[float]) -> None:
    """Of the process that has tried the most so far; `samples`: its memory every `EVERY` inputs."""
    inputs = len(samples) * EVERY
    if inputs >= max(LEAST, found["growth_inputs"]):
        later = samples[len(samples) // 2 :]
        slope = np.polyfit(np.arange(len(later)) * EVERY / 10_000, later, 1)[0]
        found |= {"growth_inputs": inputs, "growth_mib_per_10000": round(float(slope), 4)}


def verdict(found: dict[str, Any]) -> dict[str, Any]:
    """Of one kind: the figures, and whether they hold."""
    limit = LIMITS_MIB[found["target"]]
    hangs = found["slowest_seconds"] > CPU_SECONDS
    grows = (found["growth_mib_per_10000"] or 0) > GROWTH_MIB
    holds = not found["failures"] and not hangs and not grows and found["peak_mib"] <= 2 * limit
    return found | {"cpu_seconds": round(found["cpu_seconds"], 1), "limit_mib": limit, "holds": holds}


def main() -> int:
    """Run, write, print; 1 when something does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000, help="inputs in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", choices=SHARES, action="append", help="only these kinds, at their share")
    parser.add_argument("--jobs", type=int, default=1, help="kinds at a time")
    parser.add_argument("--out", type=Path, help="default profiles/<machine>/hostile.json")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder = ROOT / ".benchmarks" / f"hostile-{options.seed}-{options.count}"
    folder.mkdir(parents=True, exist_ok=True)
    names = options.target or list(SHARES)
    paths = {name: folder / f"{name}.json" for name in SHARES}
    if options.child:
        count = round(options.count * SHARES[options.child])
        attack(options.child, options.seed, count, paths[options.child])
        return 0
    waiting, running, codes = list(names), list[subprocess.Popen[bytes]](), list[int]()
    while waiting or running:
        while waiting and len(running) < options.jobs:
            running.append(subprocess.Popen([sys.executable, "-m", "tests.hostile", *sys.argv[1:], "--child",
                                             waiting.pop(0)], cwd=ROOT, env=ONE_THREAD))  # fmt: skip
        codes.append(running.pop(0).wait())
    from benchmarks import machine

    parts = {name: verdict(json.loads(path.read_text())) for name, path in paths.items() if path.exists()}
    total = sum(part["inputs"] for part in parts.values())
    head = {"commit": machine.commit(), "device": machine.device_name("cpu"), **machine.versions(), "inputs": total}
    result = head | {"holds": not any(codes) and all(part["holds"] for part in parts.values()), "targets": parts}
    if set(parts) == set(SHARES):
        out = options.out or ROOT / "profiles" / machine.slug("cpu") / "hostile.json"
        out.write_text(json.dumps(result, indent=1) + "\n")
    shown = ("inputs", "refused", "failures", "cpu_seconds", "slowest_seconds", "peak_mib", "growth_mib_per_10000",
             "holds")  # fmt: skip
    for name, part in parts.items():
        print(name, {key: part[key] for key in shown})
    return 0 if result["holds"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
