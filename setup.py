"""The C++ library: built where a compiler is, left out with one line saying why elsewhere.

It needs neither PyTorch nor the headers of Python, so any build has it, isolated ones too. A failing compiler never
fails an install, because every op has a PyTorch implementation; `make native` does fail. Source archives, and wheels
made from them, have the same bytes whenever and wherever they are made. CXX, CXXFLAGS and LDFLAGS are heeded.
"""

from __future__ import annotations

import glob
import gzip
import os
import runpy
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist

os.environ.setdefault("SOURCE_DATE_EPOCH", "1767225600")  # 2026-01-01, the date of every file in a wheel or archive
os.umask(0o022)  # and their mode
LIBRARY = {"win32": "_cpu.dll", "darwin": "_cpu.dylib"}.get(sys.platform, "_cpu.so")
CPU_FLAGS = ["-O3", "-g0", "-std=c++17", "-ffp-contract=off", "-fvisibility=hidden"]
CPU_FLAGS += [] if sys.platform == "win32" else ["-fPIC"]
LINK_FLAGS = ["-shared"] + (["-Wl,-s", "-Wl,--build-id=none"] if sys.platform == "linux" else [])
CUDA_FLAGS = ["-O3", "-g0", "-std=c++17"]
NVCC_FLAGS = ["-O3", "-gencode=arch=compute_80,code=sm_80", "-gencode=arch=compute_90a,code=sm_90a"]


def note(name: str, reason: object) -> None:
    print(f"note: rtm_kernels.{name} is not built: {reason}", file=sys.stderr)


@contextmanager
def failure_noted(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        note(name, f"the build failed: {' '.join(str(error).split())[:300]}")


def compiler() -> list[str]:
    """The command of the C++ compiler, CXX or the first that is found."""
    named = shlex.split(os.environ.get("CXX", ""))
    return named or [next(filter(shutil.which, ("c++", "g++", "clang++")), "c++")]


def run(*command: object) -> None:
    done = subprocess.run([str(part) for part in command], text=True, capture_output=True)
    if done.returncode:
        raise RuntimeError(f"{command[0]}: {done.stderr or f'exit status {done.returncode}'}")


def compile_library(target: Path, folder: Path) -> None:
    """The library of every `*.cpp` of csrc/cpu, and of one source more that tells it what it was built from, so that
    a stale one is noticed (`recursion.native.why_not`)."""
    folder.mkdir(parents=True, exist_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)  # no older build passes for this one
    digest = runpy.run_path("rtm_kernels/recursion/sources.py")["digest"](Path("csrc/cpu"))
    declared = f'extern const char* const kSources;\nconst char* const kSources = "{digest}";'
    (folder / "sources.cpp").write_text(f"namespace rtm {{\n{declared}\n}}\n")

    def compiled(source: str) -> Path:
        made = folder / f"{Path(source).stem}.o"
        run(*compiler(), *CPU_FLAGS, *shlex.split(os.environ.get("CXXFLAGS", "")), "-c", source, "-o", made)
        return made

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, [*sorted(glob.glob("csrc/cpu/*.cpp")), str(folder / "sources.cpp")]))
    run(*compiler(), *objects, *LINK_FLAGS, *shlex.split(os.environ.get("LDFLAGS", "")), "-o", target)


def cuda_extension() -> tuple[Extension, type[build_ext]] | None:
    """The extension of csrc/cuda and what builds it, where `nvcc` and a PyTorch with CUDA are."""
    home = os.environ.get("CUDA_HOME")
    if not shutil.which("nvcc", path=f"{home}/bin" if home else f"{os.environ.get('PATH', '')}:/usr/local/cuda/bin"):
        return None
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError:
        note("_cuda", "PyTorch is not importable here (install it first, then with --no-build-isolation)")
        return None
    if torch.version.cuda is None or cpp_extension.CUDA_HOME is None:
        note("_cuda", "this PyTorch is built without CUDA")
        return None
    flags = {"cxx": CUDA_FLAGS, "nvcc": NVCC_FLAGS}
    sources, depends = sorted(glob.glob("csrc/cuda/*.c*")), sorted(glob.glob("csrc/cuda/*.h"))
    extension = cpp_extension.CUDAExtension("rtm_kernels._cuda", sources, depends=depends, extra_compile_args=flags)
    return extension, cpp_extension.BuildExtension


def native() -> dict[str, Any]:
    """Arguments of `setup` for what this machine can build."""
    if shutil.which(compiler()[0]) is None:
        note("_cpu", f"no C++ compiler ({compiler()[0]} was not found)")
        return {"cmdclass": {}}
    cuda = cuda_extension()
    base: Any = cuda[1] if cuda else build_ext

    class BuildNative(base):
        """Builds the library and the extension by themselves, and turns a failure into a note."""

        def get_ext_filename(self, fullname: str) -> str:
            folder, _, name = fullname.rpartition(".")
            return os.path.join(folder, LIBRARY) if name == "_cpu" else str(super().get_ext_filename(fullname))

        def build_extension(self, ext: Extension) -> None:
            name = ext.name.rpartition(".")[2]
            with failure_noted(name):
                if name == "_cpu":
                    compile_library(Path(self.get_ext_fullpath(ext.name)), Path(self.build_temp))
                else:
                    super().build_extension(ext)

    class Wheel(bdist_wheel):
        """One wheel of a platform for every Python, unless the extension for CUDA is in it."""

        def get_tag(self) -> tuple[str, str, str]:
            tag = super().get_tag()
            return tag if cuda else ("py3", "none", tag[2])

    library = Extension("rtm_kernels._cpu", [], optional=True)
    modules = [library, *([cuda[0]] if cuda else [])]
    return {"ext_modules": modules, "cmdclass": {"build_ext": BuildNative, "bdist_wheel": Wheel}}


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


arguments = native()
arguments["cmdclass"]["sdist"] = ReproducibleArchive
setup(**arguments)
