"""The steps before the first gradient in the C++ executor, for training in float32 on a CPU.

The weights change with every optimiser step, so they are packed for each call: about a thousandth of the call's time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rtm_kernels.program import Program
from rtm_kernels.recursion import native
from rtm_kernels.recursion.native_weights import StackWeights
from rtm_kernels.recursion.tape import why_not_program


def why_not(model: Any) -> str | None:
    """What keeps the steps without gradient of a model from the native executor, or None when it can run them."""
    if model.device.type != "cpu":
        return f"the model is on {model.device.type}, and it runs on cpu"
    if model.dtype != torch.float32:
        return f"the model computes in {model.dtype}, and it in float32"
    return why_not_program(model.program) or native.why_not()


def run(program: Program, latents: Mapping[str, Tensor], x: Tensor, model: Any) -> tuple[dict[str, Tensor], Program]:
    """The latents after the steps of `program` before the first that needs a gradient, and the steps that are left.

    `latents` and x [B, L, D] float32 on the CPU. Without autograd no step needs one.
    """
    needs = torch.is_grad_enabled()
    count = next((i for i, step in enumerate(program.steps) if step.grad and needs), len(program))
    if count == 0:
        return dict(latents), program
    with torch.no_grad():
        stacks = {name: StackWeights.from_module(model.get_submodule(name), model.cos_sin()) for name in program.stacks}
        executor = native.NativeExecutor(program, stacks)
        values = executor.run({k: v.detach() for k, v in latents.items()}, x.detach(), 0, count)
    return {**latents, **values}, program[count:]
