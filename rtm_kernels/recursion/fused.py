"""The op-by-op executor: every step of a program through the fused Triton ops, whatever the blocks are set to."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn

from rtm_kernels.block import CosSin, FusedTRMBlock, Stack
from rtm_kernels.errors import BackendUnavailable
from rtm_kernels.ops.launch import choose
from rtm_kernels.recursion import reference


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """What keeps the Triton ops from running in `dtype` on `device`, or None when they can."""
    try:
        choose("triton", device, dtype)
    except BackendUnavailable as error:
        return str(error).removeprefix("impl='triton' cannot run: ")
    return None


def stacks_of(stacks: Mapping[str, nn.Module], cos_sin: CosSin | None = None) -> dict[str, reference.ApplyStack]:
    """`stacks` with every op of their `FusedTRMBlock`s by Triton, as `reference.run` calls them.

    A stack without `layers` (a linear adapter) stays as it is. The weights are shared, not copied: what is changed in
    place or loaded later is seen.
    """

    def bind(stack: nn.Module) -> reference.ApplyStack:
        layers = getattr(stack, "layers", None)
        ours = stack if layers is None else Stack([_by_triton(layer) for layer in layers])
        return lambda state, injection: ours(state, injection, cos_sin)

    return {name: bind(stack) for name, stack in stacks.items()}


def _by_triton(layer: nn.Module) -> FusedTRMBlock:
    other = copy.copy(layer)  # shares parameters and submodules
    assert isinstance(other, FusedTRMBlock)
    other.impl = "triton"
    return other
