"""torch.compile over the stacks of a model, where a compiler is there."""

from __future__ import annotations

import functools
import importlib
import warnings

import torch

from rtm_kernels.block import FusedTRMBlock
from rtm_kernels.model import RecursiveReasoner
from rtm_kernels.ops.launch import choose

VARIANTS = 64
"""Compiled versions of a block: with and without gradient, each number of injected latents, each batch size."""


@functools.cache
def why_not_compile(device: str) -> str | None:
    """What keeps torch.compile from working on `device`, or None."""
    if device != "cpu":
        return None
    try:
        importlib.import_module("torch._inductor.cpp_builder").get_cpp_compiler()
    except Exception as error:
        return f"no C++ compiler ({type(error).__name__})"
    return None


def compile_stacks(model: RecursiveReasoner) -> None:
    """Compile every stack of blocks in place; without a compiler, warn once and stay eager.

    Where the Triton kernels run there is nothing left to fuse, and a compiled stack could not share the weights of its
    calls (`ops.shared`), so the stacks stay as they are.
    """
    blocks = (module for module in model.modules() if isinstance(module, FusedTRMBlock))
    if all(choose(block.impl, model.device, model.dtype) == "triton" for block in blocks):
        return
    reason = why_not_compile(model.device.type)
    if reason is not None:
        warnings.warn(f"training runs uncompiled: {reason}", RuntimeWarning, stacklevel=2)
        return
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)
    for name in model.config.layers:
        model.get_submodule(name).compile(dynamic=False)
