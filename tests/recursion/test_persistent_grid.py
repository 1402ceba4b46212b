"""Grids of many programs in the interpreter: the barrier's arithmetic, and the whole kernel with programs that take
turns at random. That a barrier orders memory on hardware is for the GPU tests."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl
from triton.runtime import interpreter

from rtm_kernels import program as programs
from rtm_kernels.errors import BackendUnavailable
from rtm_kernels.program import Program
from rtm_kernels.recursion.persistent import device, kernel
from rtm_kernels.recursion.persistent.device import arrival, has_opened
from rtm_kernels.recursion.persistent.pack import PackedLayers
from tests.recursion.interleave import interleave
from tests.recursion.support import bits, random_state, run_persistent, small_stacks

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="interpreted; test_persistent_gpu runs on the GPU")

BATCH, LENGTH, WIDTH, INNER = 2, 9, 80, (20, 70)
"""With the interpreter's tiles: 6 tiles of token mix, 2 of gate-up, 3 of down."""


@triton.jit
def barrier_kernel(opened_ptr, order_ptr, start, N: tl.constexpr):
    """opened[i, j]: whether program order[i], having arrived i-th, sees the barrier open after j + 1 arrivals."""
    counter = start
    for i in range(N):
        before = counter
        now = counter
        for j in range(N):
            if j >= i:
                now += arrival(tl.load(order_ptr + j), N)
            tl.store(opened_ptr + i * N + j, has_opened(before, now).to(tl.int32))
        counter += arrival(tl.load(order_ptr + i), N)
    tl.store(opened_ptr + N * N, (counter - start).to(tl.int32))


@pytest.mark.parametrize("order", [(0,), (0, 1), (1, 0), (2, 0, 1), (3, 1, 2, 0), (0, 4, 3, 2, 1)])
@pytest.mark.parametrize("barriers_before", [0, 1, 7, (1 << 40) + 1])
def test_a_barrier_opens_with_the_last_arrival_in_any_order(order: tuple[int, ...], barriers_before: int) -> None:
    n = len(order)
    opened = torch.full((n * n + 1,), -1, dtype=torch.int32)
    start = barriers_before * (1 << 16)
    barrier_kernel[(1,)](opened, torch.tensor(order, dtype=torch.int32), start, N=n)
    last = torch.arange(n) == n - 1
    assert torch.equal(opened[:-1].view(n, n) == 1, last.expand(n, n))
    assert opened[-1] == 1 << 16, "each barrier adds the same, so grids of other sizes may share the counter"


def result(program: Program, norm_axis: str, grid: int) -> dict[str, bytes]:
    """Bits of all that a launch on poisoned scratch leaves."""
    weights = PackedLayers(small_stacks(program.stacks, LENGTH, WIDTH, INNER, norm_axis))
    return bits(run_persistent(program, *random_state(program, BATCH, LENGTH, WIDTH), weights, head=HEAD, grid=grid))


HEAD = torch.full((2, WIDTH), 0.05), torch.tensor([0.5, -0.5])
CASES = [(programs.trm(1, 1), "hidden"), (programs.rtm(1), "sequence")]
"""Program and norm axis."""


@pytest.mark.parametrize("grid", [2, 3])
@pytest.mark.parametrize(("program", "norm_axis"), CASES, ids=["trm", "rtm"])
def test_programs_that_take_turns_give_the_bits_of_one_program(
    program: Program, norm_axis: str, grid: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = result(program, norm_axis, 1)
    launches = interleave(monkeypatch, seed=grid)
    assert result(program, norm_axis, grid) == alone
    assert len(launches) == 1 and launches[0].handovers > 2 * grid


@pytest.mark.parametrize("case", CASES, ids=["trm", "rtm"])
def test_where_a_program_never_arrives_all_leave_and_the_host_raises(
    case: tuple[Program, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interpreted one after the other, no program of several finds that the next ones have arrived."""
    monkeypatch.setattr(device, "POLLS", tl.constexpr(7))
    looks: list[int] = []
    add = interpreter.interpreter_builder.create_atomic_rmw
    monkeypatch.setattr(
        interpreter.interpreter_builder, "create_atomic_rmw", lambda *args: (looks.append(1), add(*args))[1]
    )
    with pytest.raises(BackendUnavailable, match="did not arrive at a barrier; use executor='graph'"):
        result(*case, 3)
    barriers = 3 * len(case[0]) + 1
    assert len(looks) <= 3 * (barriers + 7), "who gave up once waits no more"
    assert result(*case, 1), "what failed once works again"


@triton.jit
def no_barrier(barrier_ptr, failed_ptr, B):
    tl.atomic_add(barrier_ptr, 0, sem="relaxed")
    return B


def test_without_its_barriers_the_kernel_is_found_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = result(*CASES[0], 1)
    interleave(monkeypatch, seed=0)
    monkeypatch.setattr(kernel, "grid_barrier", no_barrier)
    assert result(*CASES[0], 3) != alone
