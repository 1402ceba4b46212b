"""Tiny shapes that compute-sanitizer can follow: every kernel of the ops forward and backward, and the persistent one.

In bfloat16 the products of a Hopper GPU are wgmma at this size too: its tiles are whole, whatever is masked. What they
are compared with is computed on the CPU. One of each runs there too, in Triton's interpreter; the gate has the rest.
"""

from __future__ import annotations

import pytest
import torch

from rtm_kernels import program as programs
from rtm_kernels.recursion.persistent.runner import PersistentExecutor
from tests.gpu.test_block import check_budget, draw, make_block
from tests.recursion.support import assert_within_budget, small_stacks

DTYPES = pytest.mark.parametrize("dtype", [pytest.param(torch.bfloat16, marks=pytest.mark.gpu), torch.float32], ids=str)


@pytest.mark.parametrize(
    ("mixer", "norm_axis"),
    [
        ("mlp", "sequence"),
        pytest.param("mlp", "hidden", marks=pytest.mark.gpu),
        pytest.param("attention", "sequence", marks=pytest.mark.gpu),
    ],
)
@DTYPES
def test_block(mixer: str, norm_axis: str, dtype: torch.dtype, device: torch.device) -> None:
    block = make_block(9, 64, mixer, norm_axis, device)
    check_budget(block, 2, 9, 64, dtype, "cpu")


@DTYPES
def test_persistent(dtype: torch.dtype, device: torch.device) -> None:
    program = programs.trm(1, 1)
    stacks = {name: stack.to(device) for name, stack in small_stacks(program.stacks, 9, 32).items()}
    latents = {name: draw(2, 9, 32, dtype, device, i) for i, name in enumerate(program.carried)}
    x = draw(2, 9, 32, dtype, device, 9)
    with torch.no_grad():
        got = PersistentExecutor(program, stacks, dtype).run(latents, x).latents
        here = {name: stack.cpu() for name, stack in stacks.items()}
        got, given = ({name: t.cpu() for name, t in found.items()} for found in (got, latents))
        assert_within_budget(got, program, given, x.cpu(), here)
