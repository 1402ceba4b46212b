"""The CPU kernels against float64, on this processor and, compiled for arm64, in an emulator."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EMULATORS = ("qemu-aarch64", "qemu-aarch64-static")


def built(compiler: str, folder: Path, *flags: str) -> Path:
    """The driver and the kernels, without torch."""
    sources = [
        *sorted((ROOT / "csrc/cpu").glob("kernels_*.cpp")),
        ROOT / "csrc/cpu/dispatch.cpp",
        ROOT / "csrc/cpu/pack.cpp",
    ]
    command = [compiler, "-std=c++17", "-O1", "-w", "-ffp-contract=off", *flags, f"-I{ROOT / 'csrc/cpu'}"]
    program = folder / "float64"
    subprocess.run([*command, ROOT / "tests/recursion/native_float64.cpp", *sources, "-o", program], check=True)
    return program


def instruction_sets(*command: str | Path) -> list[str]:
    """The sets that the driver found within its bound; an assertion holds what it printed otherwise."""
    done = subprocess.run(command, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return [line.split()[0] for line in done.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_every_instruction_set_agrees_with_float64(tmp_path: Path) -> None:
    assert instruction_sets(built("g++", tmp_path))[-1] == "portable"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("aarch64-linux-gnu-g++") is None, reason="needs aarch64-linux-gnu-g++")
def test_the_kernels_for_arm64_agree_with_float64_in_an_emulator(tmp_path: Path) -> None:
    program = built("aarch64-linux-gnu-g++", tmp_path, "-static")
    assert program.read_bytes()[18:20] == b"\xb7\x00", "the ELF header names AArch64"
    emulator = next(filter(None, map(shutil.which, EMULATORS)), None)
    if emulator is None:
        pytest.skip(f"compiled for arm64, not run: none of {', '.join(EMULATORS)} is here")
    assert instruction_sets(emulator, program) == ["portable"]
