"""python -m benchmarks.sanitize: compute-sanitizer over tiny shapes, after it has found two planted defects."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from benchmarks import machine, rows
from benchmarks.gpu_tests import pytest_command

FOUND = 9
"""Exit status of compute-sanitizer when it has found something."""

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
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


def sanitizer(tool: str, command: list[str], seconds: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Run `command` under a tool of compute-sanitizer; exit status -1 when it takes longer."""
    options = ["--tool", tool, "--error-exitcode", str(FOUND), "--target-processes", "all"]
    # else the caching allocator hides accesses beyond a tensor and reads of memory that nothing has written
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    whole = ["compute-sanitizer", *options, *command]
    try:
        return subprocess.run(whole, cwd=machine.ROOT, env=environment, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(whole, -1, "", f"not done after {seconds:.0f} s")


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
    """The self-test, then every tool over tests/gpu/test_tiny.py, side by side; 0 when none of them found anything."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sanitize", description=__doc__)
    parser.add_argument("--folder", type=Path, help="folder to write sanitizer.json to")
    parser.add_argument("--seconds", type=float, default=80.0, help="seconds that a tool may take")
    args = parser.parse_args(argv)
    missed = self_test()
    found = {f"self-test: {one}": False for one in missed}
    print("; ".join(missed) or "the planted defects are found", flush=True)
    command = pytest_command("-q", "-x", "tests/gpu/test_tiny.py")
    with ThreadPoolExecutor(len(TOOLS)) as pool:
        running = {pool.submit(sanitizer, tool, command, args.seconds): tool for tool in TOOLS if not missed}
        for one in as_completed(running):
            done, tool = one.result(), running[one]
            text = (done.stdout + done.stderr).strip()
            summary = [line for line in text.splitlines() if "ERROR SUMMARY" in line or "RACECHECK SUMMARY" in line]
            last = " ".join((summary or text.splitlines())[-1:])
            told = f"{tool}: exit {done.returncode}: {last}"
            print(told + (f"\n{text[-3000:]}" if done.returncode else ""), flush=True)
            found[tool] = done.returncode == 0
            _write(args.folder, found)
    _write(args.folder, found)
    wrong = [name for name, clean in found.items() if not clean]
    told = f"{len(found) - len(wrong)} of {len(TOOLS)} tools find nothing"
    print(told + (f"; not {', '.join(wrong)}" if wrong else ""))
    return int(bool(wrong) or not found)


def _write(folder: Path | None, found: Mapping[str, bool]) -> None:
    if folder is not None:
        facts = {"commit": machine.commit(), "versions": machine.versions(), "clean": dict(found)}
        rows.replace(folder / "sanitizer.json", json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
