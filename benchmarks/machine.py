"""The machine that a figure belongs to: its name, versions, commit, clocks, energy counters and measured limits."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import os
import platform
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import Clock, interleave
from rtm_kernels.energy import board, energy_counter

ROOT = Path(__file__).resolve().parent.parent
MICROARCHITECTURES: dict[tuple[str, int], tuple[tuple[range, str], ...]] = {
    ("AuthenticAMD", 23): ((range(0x30), "Zen"), (range(0x30, 0x100), "Zen2")),
    ("AuthenticAMD", 25): (
        (range(0x10, 0x20), "Zen4"), (range(0x60, 0x80), "Zen4"), (range(0xA0, 0xB0), "Zen4"), (range(0x100), "Zen3")
    ),
    ("AuthenticAMD", 26): ((range(0x100), "Zen5"),),
}  # fmt: skip
"""(vendor, family) -> models and the name of what they share; the first range that holds the model counts."""

CPU_CLOCK = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq")


def device_name(device: str) -> str:
    """`NVIDIA H200`, or the processor with the number of cores that this process may use: `AMD EPYC, Zen5, 2 cores`."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{processor()}, {len(os.sched_getaffinity(0))} cores"


def processor(cpuinfo: str | None = None) -> str:
    """Model name and microarchitecture, `AMD EPYC, Zen5`: in virtual machines the model name alone tells neither.

    A processor of x86 that `MICROARCHITECTURES` lacks is named by its family and model. `cpuinfo` is the text of
    /proc/cpuinfo.
    """
    if cpuinfo is None:
        cpuinfo = ""
        with contextlib.suppress(OSError):
            cpuinfo = Path("/proc/cpuinfo").read_text()
    found: dict[str, str] = dict(re.findall(r"(?m)^(vendor_id|cpu family|model|model name)\s*:\s*(.+?)\s*$", cpuinfo))
    name = found.get("model name") or platform.processor() or platform.machine()
    if not {"vendor_id", "cpu family", "model"} <= found.keys():
        return name
    family, model = int(found["cpu family"]), int(found["model"])
    known = MICROARCHITECTURES.get((found["vendor_id"], family), ())
    return f"{name}, {next((arch for models, arch in known if model in models), f'family {family} model {model}')}"


def slug(device: str) -> str:
    """The folder below profiles/ that figures of this machine go to: `nvidia-h200`, `amd-epyc-zen5-2-cores`."""
    return re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")


@functools.cache
def commit() -> str:
    """The commit of the checkout, with `+` when files differ from it; outside of git the `digest` of the sources."""
    try:
        run = functools.partial(subprocess.run, cwd=ROOT, capture_output=True, text=True, check=True)
        head = run(["git", "rev-parse", "--short=12", "HEAD"]).stdout.strip()
        changed = run(["git", "status", "--porcelain", "--untracked-files=no", "rtm_kernels", "csrc"]).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return f"tree-{digest()}"
    return head + ("+" if changed else "")


@functools.cache
def digest() -> str:
    """12 hex digits of the sources of package and native code: which tree was measured, also where git is missing."""
    total = hashlib.sha256()
    for folder in ("rtm_kernels", "csrc"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".h", ".cpp", ".cu"):
                total.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return total.hexdigest()[:12]


@functools.cache
def versions() -> dict[str, str]:
    """Versions of what decides speed, `none` for what is not installed."""
    found = {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda or "none"}
    found["sources"] = digest()
    for package in ("triton", "numpy", "liger_kernel", "flash_attn", "onnxruntime"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "none"
    return found


def facts(device: str) -> dict[str, Any]:
    """Where and on what a row of a summary was measured."""
    name, found = device_name(device), versions()
    return {
        "commit": commit(), "torch": found["torch"], "triton": found["triton"], "machine": name,
        "gpu": name if device == "cuda" else None, "threads": torch.get_num_threads(), "clock_mhz": clock_mhz(device),
    }  # fmt: skip


def clock_mhz(device: str) -> int | None:
    """Clock of the GPU or of the first core now, or None where it cannot be read (most virtual machines)."""
    if device == "cuda":
        counters = board()
        return counters.clock_mhz() if counters else None
    return int(CPU_CLOCK.read_text()) // 1000 if os.access(CPU_CLOCK, os.R_OK) else None


def energy(call: Any, device: str, seconds: float = 30.0) -> dict[str, float | str] | None:
    """Joules per call over a window of at least `seconds`, and watts; None where no counter can be read.

    Gross: what the idle machine draws is included, see `idle_watts`.
    """
    counter = energy_counter(device)
    if counter is None:
        return None
    call(0)
    _synchronize(device)
    count, start, begin = 0, counter.joules(), time.perf_counter()
    while (elapsed := time.perf_counter() - begin) < seconds:
        for _ in range(4):
            call(count)
            count += 1
        _synchronize(device)
    joules = counter.joules() - start
    if joules <= 0:  # the counter does not move
        return None
    return {"joules_per_call": joules / count, "watts": joules / elapsed, "window_s": elapsed, "covers": counter.covers}


@functools.cache
def idle_watts(device: str, seconds: float = 10.0) -> float | None:
    """Watts while nothing is submitted, or None where no counter can be read; measured once per process."""
    counter = energy_counter(device)
    if counter is None:
        return None
    _synchronize(device)
    start, begin = counter.joules(), time.perf_counter()
    time.sleep(seconds)
    return float((counter.joules() - start) / (time.perf_counter() - begin))


def why_not_threads(threads: int) -> str | None:
    """Why a case of so many threads would time something else now, or None: whether a product gains from them.

    Threads that wait for a core that another program uses make a call hundreds of times slower.
    """
    a, out = torch.randn(768, 768), torch.empty(768, 768)

    def product(n: int) -> Any:
        return lambda i: (torch.set_num_threads(n), torch.mm(a, a, out=out))

    calls = {n: product(n) for n in (1, threads)}
    best = {n: min(times) for n, times in interleave(calls, Clock("cpu"), seconds=0.5).items()}  # type: ignore[arg-type,type-var]
    gain = best[1] / best[threads]
    return None if gain > 1.2 else f"{threads} threads do a matrix product {gain:.2f} times as fast as one here, now"


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def limits(device: str, dtype: str) -> dict[str, float]:
    """The best of many samples, here and now, on random data: `tflops` of a matrix product, `gbs` of a copy.

    With the threads that PyTorch has now; measured once per process for each number of them.
    """
    return dict(_limits(device, dtype, torch.get_num_threads()))


@functools.cache
def _limits(device: str, dtype: str, threads: int) -> dict[str, float]:
    n, elements = (8192, 1 << 30) if device == "cuda" else (512, 1 << 24)
    a, b = (torch.randn(n, n, device=device, dtype=getattr(torch, dtype)) for _ in range(2))
    source = torch.randn(elements, device=device, dtype=torch.float32)
    target, out = torch.empty_like(source), torch.empty_like(a)
    calls = {"gemm": lambda i: torch.mm(a, b, out=out), "copy": lambda i: target.copy_(source)}
    best = {name: min(times) for name, times in interleave(calls, Clock(device), seconds=2.0).items()}
    return {"tflops": 2 * n**3 / best["gemm"] / 1e12, "gbs": 2 * 4 * elements / best["copy"] / 1e9}
