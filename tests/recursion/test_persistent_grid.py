"""Grids of many programs in the interpreter: the barrier's arithmetic, and the whole kernel with programs that take
turns at random. That a barrier orders memory on hardware is for the GPU tests."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl

from rtm_kernels import program as programs
from rtm_kernels.ops.halting.reference import HaltingState
from rtm_kernels.program import Program
from rtm_kernels.recursion.head import HaltingHead
from rtm_kernels.recursion.persistent import kernel
from rtm_kernels.recursion.persistent.device import arrival, has_opened
from rtm_kernels.recursion.persistent.pack import PackedWeights
from rtm_kernels.recursion.persistent.runner import PersistentRecursion
from tests.recursion.interleave import interleave
from tests.recursion.support import bits, random_state, small_stacks

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


def result(program: Program, norm_axis: str, head: HaltingHead | None, grid: int, act_steps: int) -> dict[str, bytes]:
    """Bits of all that a launch on poisoned scratch leaves."""
    weights = PackedWeights(small_stacks(program.stacks, LENGTH, WIDTH, INNER, norm_axis))
    latents, x = random_state(program, BATCH, LENGTH, WIDTH)
    recursion = PersistentRecursion(program, weights, BATCH, head=head, grid=grid)
    for buffer in recursion.scratch:
        buffer.fill_(torch.nan)
    recursion.load(latents, x)
    recursion.step(act_steps)
    state = {f.name: getattr(recursion.state, f.name) for f in fields(HaltingState)}
    assert int(recursion.barrier) % (1 << 16) == 0
    return bits({**recursion.values(latents), **state, "logits": recursion.logits})


CASES = [
    (programs.trm(1, 1), "hidden", None, 2),
    (programs.rtm(1), "sequence", HaltingHead("settle", 3, tolerance=0.9), 4),
    (programs.rtm(1), "hidden", HaltingHead("cumulative_token", 2, torch.full((1, WIDTH), 0.05), pool="token"), 3),
]
"""Program, norm axis, head and ACT steps of a launch."""


@pytest.mark.parametrize("grid", [2, 3])
@pytest.mark.parametrize(("program", "norm_axis", "head", "act_steps"), CASES, ids=["program", "settle", "token"])
def test_programs_that_take_turns_give_the_bits_of_one_program(
    program: Program,
    norm_axis: str,
    head: HaltingHead | None,
    act_steps: int,
    grid: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alone = result(program, norm_axis, head, 1, act_steps)
    launches = interleave(monkeypatch, seed=grid)
    assert result(program, norm_axis, head, grid, act_steps) == alone
    assert len(launches) == 1 and launches[0].handovers > 2 * grid


@triton.jit
def no_barrier(barrier_ptr):
    tl.atomic_add(barrier_ptr, 0, sem="relaxed")


def test_without_its_barriers_the_kernel_is_found_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    program, norm_axis, head, act_steps = CASES[0]
    alone = result(program, norm_axis, head, 1, act_steps)
    interleave(monkeypatch, seed=0)
    monkeypatch.setattr(kernel, "grid_barrier", no_barrier)
    assert result(program, norm_axis, head, 3, act_steps) != alone
