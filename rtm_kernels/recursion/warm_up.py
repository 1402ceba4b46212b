"""The steps before the first gradient in the C++ executor, for training in float32 on a CPU.

The weights change with every optimiser step, so they are packed for each call: about a thousandth of the call's time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rtm_kernels.program import Program
from rtm_kernels.recursion import native, reference
from rtm_kernels.recursion.native_weights import StackWeights
from rtm_kernels.recursion.tape import why_not_program


def why_not(model: Any) -> str | None:
    """What keeps the steps without gradient of a model from the native executor, or None when it can run them."""
    if model.device.type != "cpu":
        return f"the model is on {model.device.type}, and it runs on cpu"
    if model.dtype != torch.float32:
        return f"the model computes in {model.dtype}, and it in float32"
    return why_not_program(model.program) or native.why_not()


class WarmUp:
    """Runs programs of a model as `recursion.reference.run` does, the steps before the first gradient in C++.

    Without autograd no step needs one. Latents and x are [B, L, D] float32 on the CPU.
    """

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(self, program: Program, latents: Mapping[str, Tensor], x: Tensor) -> dict[str, Tensor]:
        """The latents after `program`."""
        model, needs = self._model, torch.is_grad_enabled()
        count = next((i for i, step in enumerate(program.steps) if step.grad and needs), len(program))
        if count:
            with torch.no_grad():
                names = program.stacks
                stacks = {n: StackWeights.from_module(model.get_submodule(n), model.cos_sin()) for n in names}
                executor = native.NativeExecutor(program, stacks)
                latents = executor.run({k: v.detach() for k, v in latents.items()}, x.detach(), 0, count)
        return reference.run(program[count:], latents, x, model.stacks())
