"""Tiny shapes that compute-sanitizer can follow: every kernel of the ops forward and backward, and the persistent one.

One of each runs on the CPU too, in Triton's interpreter, where the gate has the rest.
"""

from __future__ import annotations

import pytest
import torch

from rtm_kernels import program as programs
from rtm_kernels.recursion import reference
from rtm_kernels.recursion.persistent.runner import PersistentExecutor
from tests.gpu.test_block import check_budget, draw, make_block
from tests.recursion.support import small_stacks


@pytest.mark.parametrize(
    ("mixer", "norm_axis"),
    [
        ("mlp", "sequence"),
        pytest.param("mlp", "hidden", marks=pytest.mark.gpu),
        pytest.param("attention", "sequence", marks=pytest.mark.gpu),
    ],
)
def test_block(mixer: str, norm_axis: str, device: torch.device) -> None:
    block = make_block(9, 64, mixer, norm_axis, device)
    check_budget(block, 2, 9, 64, torch.float32)


def test_persistent(device: torch.device) -> None:
    program = programs.trm(1, 1)
    stacks = {name: stack.to(device) for name, stack in small_stacks(program.stacks, 9, 32).items()}
    latents = {name: draw(2, 9, 32, torch.float32, device, i) for i, name in enumerate(program.carried)}
    x = draw(2, 9, 32, torch.float32, device, 9)
    with torch.no_grad():
        got, expected = (
            PersistentExecutor(program, stacks).run(latents, x).latents,
            reference.run(program, latents, x, stacks),
        )
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-4)
