"""python -m benchmarks.sanitize: compute-sanitizer over tiny shapes, after it has found two planted defects."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import machine

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


def sanitizer(tool: str, command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run `command` under a tool of compute-sanitizer."""
    options = ["--tool", tool, "--error-exitcode", str(FOUND), "--target-processes", "all"]
    # else the caching allocator hides accesses beyond a tensor and reads of memory that nothing has written
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    whole = ["compute-sanitizer", *options, *command]
    return subprocess.run(whole, cwd=machine.ROOT, env=environment, capture_output=True, text=True)


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


def main() -> int:
    """The self-test, then every tool over tests/gpu/test_tiny.py."""
    failures = self_test()
    for tool in TOOLS if not failures else ():
        tests = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/gpu/test_tiny.py"]
        done = sanitizer(tool, tests)
        last = (done.stdout + done.stderr).strip().splitlines()[-1:]
        print(f"{tool}: exit {done.returncode}: {' '.join(last)}", flush=True)
        if done.returncode != 0:
            failures.append(f"{tool}: exit {done.returncode}")
    print("; ".join(failures) or "both planted defects found, nothing else")
    return int(bool(failures))


if __name__ == "__main__":
    raise SystemExit(main())
