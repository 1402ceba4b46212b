"""The C++ library runs on the threads that PyTorch has, and no more; counted in processes of their own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rtm_kernels.recursion import library
from tests.recursion.native_support import needs_native

pytestmark = [
    needs_native,
    pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc"),
]

CODE = """
import json, os, re, sys, torch
from rtm_kernels.recursion import native
from rtm_kernels import program as programs
from tests.recursion.native_support import make_latents, make_stacks

counts = []
def count():
    counts.append(len(os.listdir("/proc/self/task")))
torch.set_num_threads(int(sys.argv[1]))  # this starts threads of a pool that is not OpenMP's
count()
program = programs.trm(1, 1)
executor = native.NativeExecutor(program, make_stacks(program, 9, 32))
latents, x = make_latents(program, 7, 9, 32)
with torch.no_grad():
    found = executor.run(latents, x)  # whole samples by thread, then one by the team
    count()
    torch.ones(1 << 22).exp_()
    count()
    assert torch.equal(executor.run(latents, x)["z_H"], found["z_H"])
    count()
runtimes = {line.split()[-1] for line in open("/proc/self/maps") if re.search(r"lib(gom.|i?omp)[^/]*$", line)}
print(json.dumps([counts, sorted(runtimes), found["z_H"].sum().item()]))
"""


def counted(threads: int, **environment: str) -> tuple[list[int], list[str], float]:
    """Threads of the process: at first, after the library, after PyTorch, after the library; its OpenMP runtimes."""
    command = [sys.executable, "-W", "error", "-c", CODE, str(threads)]
    environment = {**os.environ, "OMP_NUM_THREADS": "2", **environment}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    counts, runtimes, value = json.loads(done.stdout)
    return counts, runtimes, value


@pytest.fixture(scope="module")
def alone() -> tuple[str, float]:
    """With one thread, no other is started; the runtime of PyTorch, and what is computed."""
    counts, (runtime,), value = counted(1)
    assert len(set(counts)) == 1
    return runtime, value


def test_set_num_threads_is_the_number_of_threads_and_pytorch_starts_no_others(alone: tuple[str, float]) -> None:
    counts, (runtime,), value = counted(3)
    assert [count - counts[0] for count in counts] == [0, 2, 2, 2]
    assert (runtime, value) == alone


def test_beside_a_second_runtime_the_library_uses_that_of_pytorch(alone: tuple[str, float], tmp_path: Path) -> None:
    own, expected = alone
    name = re.search(rb"libgomp[-0-9a-z]*\.so\.[0-9]+", Path(own).read_bytes())
    if name is None:
        pytest.skip(f"{own} is not GCC's runtime")
    other = tmp_path / "libgomq.so.1"
    other.write_bytes(Path(own).read_bytes().replace(name[0], name[0].replace(b"libgomp", b"libgomq")))
    counts, runtimes, value = counted(3, LD_PRELOAD=str(other))
    assert sorted(runtimes) == sorted([own, str(other)])
    assert [count - counts[0] for count in counts] == [0, 2, 2, 2] and value == expected


def test_without_a_runtime_the_calling_thread_does_all_and_a_warning_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(library, "_team", lambda: None)
    with pytest.warns(RuntimeWarning, match="one thread: this PyTorch has no OpenMP runtime"):
        library.loaded.__wrapped__()
