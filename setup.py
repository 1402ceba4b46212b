"""Native extensions: built where PyTorch and a compiler are, left out with one line saying why elsewhere.

A failing compiler never fails an install, because every op has a PyTorch implementation; `make native` does fail.
Source archives, and wheels made from them, have the same bytes whenever and wherever they are made.
"""

from __future__ import annotations

import glob
import gzip
import os
import runpy
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.sdist import sdist

os.environ.setdefault("SOURCE_DATE_EPOCH", "1767225600")  # 2026-01-01, the date of every file in a wheel or archive
os.umask(0o022)  # and their mode
CPU_FLAGS = ["-O3", "-g0", "-std=c++17", "-ffp-contract=off"]
NVCC_FLAGS = ["-O3", "-gencode=arch=compute_80,code=sm_80", "-gencode=arch=compute_90a,code=sm_90a"]


def note(name: str, reason: object) -> None:
    print(f"note: rtm_kernels.{name} is not built: {reason}", file=sys.stderr)


def compiles_openmp(compiler: str) -> bool:
    """Whether the compiler finds OpenMP; clang does only where its libomp is installed."""
    command = [compiler, "-fopenmp", "-fsyntax-only", "-x", "c++", "-"]
    found = subprocess.run(command, input="#include <omp.h>\n", text=True, capture_output=True).returncode == 0
    if not found:
        print(f"note: rtm_kernels._cpu is built for one thread: {compiler} has no OpenMP (for clang: libomp)",
              file=sys.stderr)  # fmt: skip
    return found


def cpu_extension(cpp_extension: Any) -> Extension | None:
    sources = sorted(glob.glob("csrc/cpu/*.cpp"))
    if not sources:
        note("_cpu", "csrc/cpu has no sources")
        return None
    openmp = ["-fopenmp"] if sys.platform == "linux" and compiles_openmp(cpp_extension.get_cxx_compiler()) else []
    return cpp_extension.CppExtension(
        "rtm_kernels._cpu",
        sources,
        depends=sorted(glob.glob("csrc/cpu/*.h")),
        extra_compile_args={"cxx": CPU_FLAGS + openmp},
        extra_link_args=openmp,
        optional=True,
    )


def write_digest(folder: Path) -> str:
    """A source that tells the extension what it was built from, so that a stale one is noticed (`why_not`)."""
    digest = runpy.run_path("rtm_kernels/recursion/sources.py")["digest"]
    text = f'extern const char* const kSources;\nconst char* const kSources = "{digest(Path("csrc/cpu"))}";'
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sources.cpp").write_text(f"namespace rtm {{\n{text}\n}}\n")
    return str(folder / "sources.cpp")


def cuda_extension(cpp_extension: Any, cuda: str | None) -> Extension | None:
    sources = sorted(glob.glob("csrc/cuda/*.cpp") + glob.glob("csrc/cuda/*.cu"))
    if not sources:
        return None
    if cuda is None:
        note("_cuda", "this PyTorch is built without CUDA")
        return None
    if cpp_extension.CUDA_HOME is None or shutil.which("nvcc", path=f"{cpp_extension.CUDA_HOME}/bin") is None:
        note("_cuda", "nvcc was not found")
        return None
    return cpp_extension.CUDAExtension(
        "rtm_kernels._cuda",
        sources,
        depends=sorted(glob.glob("csrc/cuda/*.h") + glob.glob("csrc/cuda/*.cuh")),
        extra_compile_args={"cxx": CPU_FLAGS, "nvcc": NVCC_FLAGS},
        optional=True,
    )


def native() -> dict[str, Any]:
    """Arguments of `setup` for the extensions that this machine can build."""
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError:
        note("_cpu", "PyTorch is not importable here (install it first, then with --no-build-isolation)")
        return {}
    compiler = cpp_extension.get_cxx_compiler()
    if shutil.which(compiler) is None:
        note("_cpu", f"no C++ compiler ({compiler} was not found)")
        return {}

    class BuildNative(cpp_extension.BuildExtension):
        """Builds every extension by itself and turns its failure into a note."""

        def build_extensions(self) -> None:
            with failure_noted("_cpu"):
                super().build_extensions()

        def build_extension(self, ext: Extension) -> None:
            if ext.name == "rtm_kernels._cpu":
                ext.sources = [*ext.sources, write_digest(Path(self.build_temp))]
            Path(self.get_ext_fullpath(ext.name)).unlink(missing_ok=True)  # no older build passes for this one
            with failure_noted(ext.name.rpartition(".")[2]):
                super().build_extension(ext)

    extensions = [cpu_extension(cpp_extension), cuda_extension(cpp_extension, torch.version.cuda)]
    return {"ext_modules": [e for e in extensions if e], "cmdclass": {"build_ext": BuildNative}}


class ReproducibleArchive(sdist):
    """A source archive whose entries are sorted and have one date, one owner and one of two modes."""

    def make_archive(self, base_name: Any, format: str, root_dir: Any = None, base_dir: Any = None, **_: Any) -> str:
        if format != "gztar":
            raise ValueError(f"format={format!r} is not allowed: expected gztar")
        path, date = f"{base_name}.tar.gz", int(os.environ["SOURCE_DATE_EPOCH"])

        def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
            entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname = date, 0, 0, "", ""
            entry.mode = 0o755 if entry.isdir() else 0o644
            return entry

        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with (
            open(path, "wb") as raw,
            gzip.GzipFile("", "wb", fileobj=raw, mtime=date) as packed,
            tarfile.open(fileobj=packed, mode="w") as archive,
        ):
            for entry in [Path(base_dir), *sorted(Path(base_dir).rglob("*"))]:
                archive.add(entry, recursive=False, filter=plain)
        return path


@contextmanager
def failure_noted(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        note(name, f"the build failed: {' '.join(str(error).split())[:300]}")


arguments = native()
arguments.setdefault("cmdclass", {})["sdist"] = ReproducibleArchive
setup(**arguments)
