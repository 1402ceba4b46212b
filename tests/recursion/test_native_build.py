"""The library as an sdist compiles it, and the CPU kernels without Python: against float64, and under sanitizers."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packaging.build import build, unpack
from tests.packaging.test_distributions import source

__all__ = ["source"]

CODE = """
import json, torch
from rtm_kernels import RecursiveReasoner, Solver
from rtm_kernels.data.examples import example_puzzles
from rtm_kernels.recursion import native
solver = Solver(RecursiveReasoner.from_pretrained("sudoku"))
status = solver.solve(example_puzzles()[:1])[0].status
print(json.dumps([native.__file__, native.why_not(), solver.executor.name, status]))
"""


@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_an_sdist_installed_for_editing_compiles_and_solves(source: Path, tmp_path: Path, compiler: str) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"needs {compiler}")
    archive, _ = build("sdist", source, tmp_path / "sdist")
    folder = unpack(archive, tmp_path / "unpacked")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    _, printed = build("editable", folder, tmp_path / "editable", compiler)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "_cpu is not built" not in printed and (folder / "rtm_kernels/_cpu.so").exists(), printed
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert seconds < 90, f"{seconds:.0f} s of processor time, and a single core should do it in a minute and a half"
    done = subprocess.run([sys.executable, "-c", CODE], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    where, reason, executor, status = json.loads(done.stdout)
    assert Path(where).is_relative_to(folder)
    assert (reason, executor, status) == (None, "symmetric", "verified")
    (folder / "csrc/cpu/gemm.h").write_text("// changed since")
    done = subprocess.run([sys.executable, "-W", "always", "-c", CODE], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "older or newer" in json.loads(done.stdout)[1] and json.loads(done.stdout)[2] == "reference"
    assert "using the slower PyTorch executor: the library rtm_kernels/_cpu.so is older or newer" in done.stderr


ROOT = Path(__file__).resolve().parents[2]
CPU = ROOT / "csrc/cpu"
EMULATORS = ("qemu-aarch64", "qemu-aarch64-static")

pytestmark = pytest.mark.slow
needs_gcc = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


def built(compiler: str, folder: Path, driver: str, sources: list[Path], *flags: str) -> Path:
    """The driver and the kernels as a program."""
    program = folder / "program"
    command = [compiler, "-std=c++17", "-w", "-ffp-contract=off", f"-I{CPU}", ROOT / "tests/recursion" / driver]
    subprocess.run([*command, *sources, *flags, "-o", program], check=True)
    return program


def against_float64(compiler: str, folder: Path, *flags: str) -> Path:
    sources = [*sorted(CPU.glob("kernels_*.cpp")), CPU / "dispatch.cpp", CPU / "pack.cpp"]
    return built(compiler, folder, "native_float64.cpp", sources, "-O1", *flags)


def printed(*command: str | Path, **environment: str) -> str:
    """What the driver printed; an assertion holds it where a check failed."""
    done = subprocess.run(command, text=True, capture_output=True, env={**os.environ, **environment})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_gcc
def test_every_instruction_set_agrees_with_float64(tmp_path: Path) -> None:
    assert printed(against_float64("g++", tmp_path)).splitlines()[-1].split()[0] == "portable"


@pytest.mark.skipif(shutil.which("aarch64-linux-gnu-g++") is None, reason="needs aarch64-linux-gnu-g++")
def test_the_kernels_for_arm64_agree_with_float64_in_an_emulator(tmp_path: Path) -> None:
    program = against_float64("aarch64-linux-gnu-g++", tmp_path, "-static")
    assert program.read_bytes()[18:20] == b"\xb7\x00", "the ELF header names AArch64"
    emulator = next(filter(None, map(shutil.which, EMULATORS)), None)
    if emulator is None:
        pytest.skip(f"compiled for arm64, not run: none of {', '.join(EMULATORS)} is here")
    assert [line.split()[0] for line in printed(emulator, program).splitlines()] == ["portable"]


@needs_gcc
def test_address_and_undefined_behaviour_sanitizers_find_nothing(tmp_path: Path) -> None:
    sanitize = "-fsanitize=address,undefined"
    probe = ["g++", sanitize, "-x", "c++", "-", "-o", tmp_path / "probe"]
    if subprocess.run(probe, input="int main() {}", text=True, capture_output=True).returncode:
        pytest.skip("g++ has no sanitizers here")
    sources = [source for source in sorted(CPU.glob("*.cpp")) if source.name != "interface.cpp"]
    flags = [sanitize, "-O0", "-DRTM_STD_THREADS", "-pthread", "-fno-sanitize-recover=all"]
    program = built("g++", tmp_path, "native_sanitize.cpp", sources, *flags)
    assert "13 cases, 3 boards" in printed(program, ASAN_OPTIONS="detect_leaks=0")
