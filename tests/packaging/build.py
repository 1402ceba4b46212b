"""`make dist`: source archive, wheels and SBOMs into a folder, the same bytes from the same files."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from tests.packaging import sbom

NO_COMPILER = "/nonexistent"
TAGS = {machine: f"manylinux_2_28_{machine}" for machine in ("x86_64", "aarch64")}
"""Processor -> what a wheel with the C++ library may ask of a system: glibc 2.28, as the wheels of PyTorch do."""


def build(kind: str, source: Path, out: Path, compiler: str = NO_COMPILER, tag: str = "") -> tuple[Path, str]:
    """Build an sdist or a wheel of `source` in `out`; returns the archive and everything that the build printed."""
    out.mkdir(parents=True, exist_ok=True)
    config = {"--build-option": f"--plat-name={tag}"} if tag else {}
    code = f"from setuptools import build_meta\nprint('built', build_meta.build_{kind}({str(out)!r}, {config!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=source, env=os.environ | {"CXX": compiler, "CUDA_HOME": NO_COMPILER},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{kind} of {source}: {done.stdout}")
    name = next(line for line in done.stdout.splitlines() if line.startswith("built ")).removeprefix("built ")
    return out / name, done.stdout


def unpack(archive: Path, folder: Path) -> Path:
    """The one folder inside a source archive, unpacked into `folder`."""
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    (inner,) = folder.iterdir()
    return inner


def compiler_for(machine: str) -> str | None:
    """The C++ compiler of a processor, or None where it is not installed."""
    cross = shutil.which(f"{machine}-linux-gnu-g++")
    return cross or (shutil.which("g++") if machine == platform.machine() else None)


def tag_of(wheel: Path) -> str:
    """The oldest system that a wheel runs on, as auditwheel finds from the symbols of its library."""
    done = subprocess.run(
        [sys.executable, "-m", "auditwheel", "show", "--json", wheel], capture_output=True, text=True, check=True
    )
    return str(json.loads(done.stdout)["overall_tag"])


def native_wheel(source: Path, out: Path, machine: str) -> Path | None:
    """The wheel with the library for a processor. Raises where it asks more of a system than its tag says."""
    compiler = compiler_for(machine)
    if compiler is None:
        print(f"note: no wheel for {machine}: {machine}-linux-gnu-g++ was not found", file=sys.stderr)
        return None
    wheel, printed = build("wheel", source, out, compiler, TAGS[machine])
    if "_cpu is not built" in printed:
        raise RuntimeError(f"{wheel.name}: {printed}")
    oldest, allowed = tag_of(wheel), TAGS[machine]
    if not oldest.startswith("manylinux") or [int(n) for n in oldest.split("_")[1:3]] > [2, 28]:
        raise RuntimeError(f"{wheel.name} runs on {oldest}, and no older system; {allowed} is wanted")
    return wheel


def release(source: Path, out: Path, machines: tuple[str, ...] = tuple(TAGS)) -> list[Path]:
    """The archives of `source` in `out`: the wheels, pure and for `machines`, are made from the source archive."""
    archive, _ = build("sdist", source, out)
    with tempfile.TemporaryDirectory() as folder:
        unpacked = unpack(archive, Path(folder))
        wheels = [build("wheel", unpacked, out)[0], *(native_wheel(unpacked, out, machine) for machine in machines)]
    made = [wheel for wheel in wheels if wheel is not None]
    return [archive, *made, *map(sbom.write, made)]


if __name__ == "__main__":
    for path in release(sbom.ROOT, Path(sys.argv[1]).absolute()):
        print(f"{path.stat().st_size / 2**20:6.2f} MiB  {path}")
