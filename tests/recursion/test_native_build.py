"""The extension as an sdist compiles it, installed for editing; a stale one is not taken for it."""

from __future__ import annotations

import json
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


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_an_sdist_installed_for_editing_compiles_and_solves(source: Path, tmp_path: Path, compiler: str) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"needs {compiler}")
    archive, _ = build("sdist", source, tmp_path / "sdist")
    folder = unpack(archive, tmp_path / "unpacked")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    _, printed = build("editable", folder, tmp_path / "editable", compiler)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "_cpu is not built" not in printed and len(list(folder.glob("rtm_kernels/_cpu*.so"))) == 1, printed
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert seconds < 120, f"{seconds:.0f} s of processor time, and a single core should do it in two minutes"
    done = subprocess.run([sys.executable, "-c", CODE], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    where, reason, executor, status = json.loads(done.stdout)
    assert Path(where).is_relative_to(folder)
    assert (reason, executor, status) == (None, "symmetric", "verified")
    (folder / "csrc/cpu/gemm.h").write_text("// changed since")
    done = subprocess.run([sys.executable, "-W", "always", "-c", CODE], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "older or newer" in json.loads(done.stdout)[1] and json.loads(done.stdout)[2] == "reference"
    assert "using the slower PyTorch executor: the extension rtm_kernels._cpu is older or newer" in done.stderr
