"""Nothing is accessed beyond either end of a tensor: an access there would end the process that this script runs in.

    python -m tests.proof.test_bounds SIDE...

`end` and `start` run the small cases with a page that must not be touched on that side of every tensor; `read` and
`write` are planted defects. Each is a process of its own, forked from this one; a line says how it ended.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable

import pytest
import torch
import triton
import triton.language as tl

from rtm_kernels.ops.adam_atan2.kernels import adam_atan2
from rtm_kernels.ops.adam_atan2.reference import scalars
from tests.cases import small_cases
from tests.cases.case import run
from tests.interpreter import prepare
from tests.proof.launching import Launch, every_launch, kernel_names, process
from tests.proof.memory import mapped
from tests.proof.tiles import tiles

pytestmark = [pytest.mark.proof("bounds"), pytest.mark.skipif(sys.platform != "linux", reason="needs mprotect")]


def behind_fences(launch: Launch, at_end: bool) -> None:
    """Run a launch on fenced copies of its tensors and copy the results back."""
    with mapped() as mapping:
        fenced = mapping.fenced(launch.tensors, at_end)
        launch.given(fenced).run()
        for name, tensor in launch.tensors.items():
            if 0 not in tensor.stride():  # expanded inputs are only read
                tensor.detach().copy_(fenced[name])


def optimiser(at_end: bool) -> None:
    """AdamATan2, whose kernel takes addresses from a table, on fenced tensors."""
    with mapped() as mapping:
        sizes = (1, 300, 513)
        tensors = {f"{kind}{n}": torch.ones(1 if kind == "step" else n) for kind in (*"pgmv", "step") for n in sizes}
        fenced = mapping.fenced(tensors, at_end)
        lists = [[fenced[f"{kind}{n}"] for n in sizes] for kind in (*"pgmv", "step")]
        adam_atan2(*lists, *scalars("cpu", 1e-3, None), 0.9, 0.95, 0.1)


@triton.jit
def reads_past_the_end_kernel(out_ptr, x_ptr, n, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    tl.store(out_ptr + offs, tl.load(x_ptr + offs, mask=offs <= n, other=0.0), mask=offs < n)


@triton.jit
def writes_before_the_start_kernel(out_ptr, n):
    tl.store(out_ptr - 1 + n * 0, 1.0)


def child(side: str) -> int:
    """Run one side; 0 when nothing beyond a fence was touched and every kernel ran."""
    at_end = side in ("end", "read")
    with tiles(32), every_launch(lambda launch: behind_fences(launch, at_end)) as seen:
        if side == "read":
            reads_past_the_end_kernel[(1,)](torch.zeros(5), torch.ones(5), 5, 8)
        elif side == "write":
            writes_before_the_start_kernel[(1,)](torch.zeros(5), 5)
        else:
            optimiser(at_end)
            for case in small_cases():
                run(case, "triton", case.make(torch.Generator().manual_seed(1)))
    print(f"{side} {len(seen)} launches", flush=True)
    return len(kernel_names() - set(seen))


@pytest.mark.parametrize("side", ["end", "start"])
def test_every_kernel_stays_within_its_tensors(side: str, cells: Callable[[int], None]) -> None:
    printed = process("-m", "tests.proof.test_bounds", side)
    assert f"{side} ended with 0\n" in printed, printed
    cells(int(re.search(rf"^{side} (\d+) launches", printed, re.M)[1]))  # type: ignore[index]


@pytest.mark.parametrize("side", ["read", "write"])
def test_a_planted_access_beyond_the_fence_ends_the_process(side: str) -> None:
    printed = process("-m", "tests.proof.test_bounds", side)
    assert f"{side} ended with {-signal.SIGSEGV}\n" in printed, printed


if __name__ == "__main__":
    prepare()
    torch.set_num_threads(1)  # a forked process has no threads of its pool
    for side in sys.argv[1:]:
        pid = os.fork()
        if not pid:
            os._exit(child(side))
        print(f"{side} ended with {os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}", flush=True)
