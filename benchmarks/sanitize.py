"""python -m benchmarks.sanitize: compute-sanitizer over tiny shapes, after it has found two planted defects.

Every test of `tests/gpu/test_tiny.py` runs under every tool, each pair in a process of its own, the 16-bit kernels with
wgmma first. A pair that was clean at this commit is not run again.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from benchmarks import machine, report
from benchmarks.gpu_tests import pytest_command
from benchmarks.run import UNFINISHED

FOUND = 9
"""Exit status of compute-sanitizer when it has found something."""
LATE = -99

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
TINY = "tests/gpu/test_tiny.py"
PLANTED = """
__global__ void beyond(int* out) { out[threadIdx.x + 1] = 1; }
__global__ void race(int* out) {
    __shared__ int cell[64];
    cell[threadIdx.x] = threadIdx.x;
    out[threadIdx.x % 8] = cell[63 - threadIdx.x];
}
int main(int argc, char**) {
    int* out;
    cudaMalloc(&out, 64 * sizeof(int));
    if (argc > 1) race<<<1, 64>>>(out);
    else beyond<<<1, 64>>>(out);
    return cudaDeviceSynchronize() != cudaSuccess;
}
"""
"""Writes one element beyond a buffer, or with an argument reads shared memory without a barrier."""


def cases() -> list[str]:
    """The tests of `TINY` by their ids, those in bfloat16 first."""
    done = subprocess.run(
        pytest_command("--collect-only", "-q", TINY), cwd=machine.ROOT, capture_output=True, text=True, check=True
    )
    found = [line for line in done.stdout.splitlines() if line.startswith(TINY)]
    return sorted(found, key=lambda name: "bfloat16" not in name)


def sanitizer(tool: str, command: list[str], seconds: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Run `command` under a tool of compute-sanitizer; exit status `LATE` when it takes longer."""
    options = ["--tool", tool, "--error-exitcode", str(FOUND), "--target-processes", "all"]
    # else the caching allocator hides accesses beyond a tensor and reads of memory that nothing has written
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    whole = ["compute-sanitizer", *options, *command]
    try:
        return subprocess.run(whole, cwd=machine.ROOT, env=environment, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(whole, LATE, "", f"not done after {seconds:.0f} s")


def self_test() -> list[str]:
    """What keeps the tools from being believed: a planted defect that they do not find."""
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder) / "planted.cu", str(Path(folder) / "planted")
        source.write_text(PLANTED)
        built = subprocess.run(["nvcc", "-arch=native", "-o", program, str(source)], capture_output=True, text=True)
        if built.returncode != 0:
            return [f"the planted defects do not compile: {built.stderr.strip()[-200:]}"]
        planted = {"memcheck": [program], "racecheck": [program, "race"]}
        missed = [tool for tool, command in planted.items() if sanitizer(tool, command).returncode != FOUND]
    return [f"{tool} does not find the planted defect" for tool in missed]


def main(argv: Sequence[str] | None = None) -> int:
    """The self-test, then every case under every tool, side by side; 0 when none of them found anything."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sanitize", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="folder of sanitizer.json")
    parser.add_argument("--limit", type=float, default=220.0, help="seconds")
    args = parser.parse_args(argv)
    until, write = time.monotonic() + args.limit, args.folder / "sanitizer.json"
    clean = {name: ok for name, ok in (report.earlier(write) or {"clean": {}})["clean"].items() if ok}
    missed = [] if "self-test" in clean else self_test()
    clean["self-test"] = not missed
    report.save(write, "cuda", clean=clean)
    print("; ".join(missed) or "the planted defects are found", flush=True)
    if missed:
        return 1
    wanted = [(case, tool) for case in cases() for tool in TOOLS if f"{tool} {case}" not in clean]

    def run(case: str, tool: str) -> subprocess.CompletedProcess[str] | None:
        left = until - time.monotonic()
        return sanitizer(tool, pytest_command("-q", "-x", case), left) if left > 0 else None

    left = 0
    with ThreadPoolExecutor(len(TOOLS)) as pool:
        running = {pool.submit(run, *one): one for one in wanted}
        for one in as_completed(running):
            (case, tool), done = running[one], one.result()
            if done is None or done.returncode == LATE:
                left += 1
                continue
            text = (done.stdout + done.stderr).strip()
            summary = [line for line in text.splitlines() if "ERROR SUMMARY" in line or "RACECHECK SUMMARY" in line]
            last = " ".join((summary or text.splitlines())[-1:])
            told = f"{tool} {case}: exit {done.returncode}: {last}"
            print(told + (f"\n{text[-3000:]}" if done.returncode else ""), flush=True)
            clean[f"{tool} {case}"] = done.returncode == 0
            report.save(write, "cuda", clean=clean)
    wrong = [name for name, ok in clean.items() if not ok]
    print(f"{len(clean) - len(wrong)} clean, {left} left" + (f"; not clean: {', '.join(wrong)}" if wrong else ""))
    return int(bool(wrong)) or (UNFINISHED if left else 0)


if __name__ == "__main__":
    raise SystemExit(main())
