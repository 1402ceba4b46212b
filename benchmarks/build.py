"""python -m benchmarks.build: csrc/cuda compiled in place by nvcc alone, for a machine that installs nothing."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from pathlib import Path

import torch

from benchmarks import machine

SOURCES = ("while_graph.cu", "binding.cpp")
TARGETS = ("-gencode=arch=compute_80,code=sm_80", "-gencode=arch=compute_90a,code=sm_90a")


def why_not() -> str | None:
    """What keeps csrc/cuda from being compiled here, or None."""
    return None if shutil.which("nvcc") else "nvcc is not on the PATH"


def compile_cuda(folder: Path, optimise: str = "-O3") -> Path:
    """csrc/cuda as the Python extension `_cuda` in `folder`. Errors: `RuntimeError` with what nvcc said."""
    includes = [Path(torch.__file__).parent / "include", sysconfig.get_paths()["include"]]
    flags = [optimise, "-std=c++17", "-Xcompiler", "-fPIC", "-DTORCH_EXTENSION_NAME=_cuda"]
    library = folder / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    sources = [str(machine.ROOT / "csrc" / "cuda" / name) for name in SOURCES]
    command = ["nvcc", *flags, *TARGETS, *(f"-I{path}" for path in includes), "-shared", "-o", str(library), *sources]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"nvcc failed: {(done.stdout + done.stderr).strip()[-1000:]}")
    return library


def main() -> int:
    """Compile, load and say what is still missing; 1 where WHILE nodes cannot run then."""
    reason = why_not()
    if reason is not None:
        print(reason)
        return 1
    library = compile_cuda(machine.ROOT / "rtm_kernels")
    from rtm_kernels.recursion import graph

    reason = graph.why_not_loop()
    print(f"built {library.name}" + (f"; WHILE nodes cannot run: {reason}" if reason else ", WHILE nodes can run"))
    return int(reason is not None)


if __name__ == "__main__":
    raise SystemExit(main())
