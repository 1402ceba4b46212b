"""What the interpreter can show about grids of many programs: the barrier's arithmetic, and that within a phase
no program needs another. That a barrier holds on hardware is for the GPU tests."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl

from rtm_kernels import program as programs
from rtm_kernels.recursion.persistent.channel import down_phase, gate_up_phase
from rtm_kernels.recursion.persistent.device import arrival, has_opened
from rtm_kernels.recursion.persistent.norm import norm_phase
from rtm_kernels.recursion.persistent.pack import PackedWeights
from rtm_kernels.recursion.persistent.runner import PersistentRecursion
from rtm_kernels.recursion.persistent.token_mix import token_mix_phase
from rtm_kernels.recursion.tape import MAX_TERMS
from tests.recursion.support import bits, random_state, small_stacks

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="interpreted; test_persistent_gpu runs on the GPU")

LENGTH, WIDTH, INNER = 9, 80, (20, 40)


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
    start = torch.tensor(barriers_before * (1 << 16), dtype=torch.int64)
    barrier_kernel[(1,)](opened, torch.tensor(order, dtype=torch.int32), start.item(), N=n)
    last = torch.arange(n) == n - 1
    assert torch.equal(opened[:-1].view(n, n) == 1, last.expand(n, n))
    assert opened[-1] == 1 << 16, "each barrier adds the same, so grids of other sizes may share the counter"


@triton.jit
def mix_kernel(mixed, mixed_partials, latents, partials, busy, weights, row, B, eps, L: tl.constexpr, D: tl.constexpr,
               INNER_L: tl.constexpr, DOWN_AT: tl.constexpr, LAYER_SIZE: tl.constexpr, TERMS: tl.constexpr,
               HIDDEN: tl.constexpr):  # fmt: skip
    layer = weights + tl.load(row + 1) * LAYER_SIZE
    token_mix_phase(mixed, mixed_partials, latents, partials, busy, layer, row + 4, tl.load(row + 2),
                    row + 4 + TERMS, tl.load(row + 3), B, eps, L, D, INNER_L, DOWN_AT, (D + 31) // 32, HIDDEN,
                    16, 32, 64)  # fmt: skip


@triton.jit
def up_kernel(inner, mixed, mixed_partials, busy, weights, row, B, eps, L: tl.constexpr, D: tl.constexpr,
              INNER_D: tl.constexpr, UP_AT: tl.constexpr, LAYER_SIZE: tl.constexpr, HIDDEN: tl.constexpr):  # fmt: skip
    layer = weights + tl.load(row + 1) * LAYER_SIZE
    gate_up_phase(inner, mixed, mixed_partials, busy, layer + UP_AT, B, eps, L, D, INNER_D, (D + 31) // 32, HIDDEN,
                  32, 64, 32)  # fmt: skip


@triton.jit
def down_kernel(latents, partials, inner, mixed, mixed_partials, busy, weights, row, B, eps, L: tl.constexpr,
                D: tl.constexpr, INNER_D: tl.constexpr, DOWN_AT: tl.constexpr, LAYER_SIZE: tl.constexpr,
                HIDDEN: tl.constexpr):  # fmt: skip
    N_PARTS: tl.constexpr = (D + 31) // 32
    dst = tl.load(row) * B * L
    layer = weights + tl.load(row + 1) * LAYER_SIZE
    down_phase(latents + dst * D, partials + dst * N_PARTS, inner, mixed, mixed_partials, busy, layer + DOWN_AT, B,
               eps, L, D, INNER_D, N_PARTS, HIDDEN, 32, 32, 64)  # fmt: skip


@triton.jit
def norm_kernel(latents, partials, busy, slots, n_slots, B, eps, L: tl.constexpr, D: tl.constexpr):
    norm_phase(latents, partials, busy, slots, n_slots, B, eps, L, D, (D + 31) // 32, 8)


def phase_by_phase(recursion: PersistentRecursion, grid: int) -> None:
    """The program with one launch of `grid` programs per phase, which orders the phases without a barrier."""
    layout, weights, batch = recursion.weights.layout, recursion.weights, recursion.batch
    _, mix_down, gate_up, down, size = layout.offsets
    hidden = weights.norm_axis == "hidden"
    mixed, inner, partials, mixed_partials = recursion.scratch
    sizes = {"L": layout.length, "D": layout.width, "LAYER_SIZE": size, "HIDDEN": hidden}
    for row in recursion.tape:
        tail = (recursion.busy, weights.data, row, batch, weights.eps)
        mix_kernel[(grid,)](mixed, mixed_partials, recursion.latents, partials, *tail, INNER_L=layout.inner_len,
                            DOWN_AT=mix_down, TERMS=MAX_TERMS, **sizes)  # fmt: skip
        up_kernel[(grid,)](inner, mixed, mixed_partials, *tail, INNER_D=layout.inner_width, UP_AT=gate_up, **sizes)
        down_kernel[(grid,)](recursion.latents, partials, inner, mixed, mixed_partials, *tail,
                             INNER_D=layout.inner_width, DOWN_AT=down, **sizes)  # fmt: skip
    norm_kernel[(grid,)](recursion.latents, partials, recursion.busy, recursion.written, len(recursion.written),
                         batch, weights.eps, L=layout.length, D=layout.width)  # fmt: skip


@pytest.mark.parametrize("norm_axis", ["sequence", "hidden"])
def test_a_phase_split_over_many_programs_gives_the_bits_of_one_program(norm_axis: str) -> None:
    program = programs.trm(1, 1)
    weights = PackedWeights(small_stacks(program.stacks, LENGTH, WIDTH, INNER, norm_axis))
    latents, x = random_state(program, 3, LENGTH, WIDTH)
    recursion = PersistentRecursion(program, weights, 3)
    recursion.load(latents, x)
    recursion.step()
    one_launch = bits(recursion.values(latents))
    for buffer in recursion.scratch:
        buffer.fill_(torch.nan)
    recursion.load(latents, x)
    phase_by_phase(recursion, grid=5)
    assert bits(recursion.values(latents)) == one_launch
