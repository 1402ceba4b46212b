"""The CPU kernels under the address and undefined-behaviour sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_address_and_undefined_behaviour_sanitizers_find_nothing(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    sources = [source for source in sorted((root / "csrc/cpu").glob("*.cpp")) if source.name != "binding.cpp"]
    torch_root, program = Path(torch.__file__).parent, tmp_path / "sanitize"
    flags = ["-std=c++17", "-O0", "-w", "-ffp-contract=off", "-fopenmp", "-fno-sanitize-recover=all"]
    sanitize = "-fsanitize=address,undefined"
    probe = ["g++", sanitize, "-x", "c++", "-", "-o", program]
    if subprocess.run(probe, input="int main() {}", text=True, capture_output=True).returncode:
        pytest.skip("g++ has no sanitizers here")
    paths = [f"-I{root}/csrc/cpu", f"-I{torch_root}/include", f"-L{torch_root}/lib", f"-Wl,-rpath,{torch_root}/lib"]
    driver = root / "tests/recursion/native_sanitize.cpp"
    libraries = ["-ltorch_cpu", "-lc10"]
    subprocess.run(["g++", sanitize, *flags, driver, *sources, *paths, *libraries, "-o", program], check=True)
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    result = subprocess.run([program], env=environment, text=True, capture_output=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "7 cases, 3 boards" in result.stdout
