"""Fused blocks inside live models of the official TRM, HRM and RSM code, in place and undoable.

Nothing of the official code is imported: a stack of blocks is recognised by its parameter names, and by computing
the same as the fused one on a probe input. The stack and its blocks then change their class to a
subclass whose forward is the fused one, so parameters, buffers, state_dict keys, hooks and deepcopy stay as they are.
"""

from __future__ import annotations

from typing import Any, SupportsIndex, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from rtm_kernels.block import CosSin, FusedTRMBlock
from rtm_kernels.config import NORM_AXES
from rtm_kernels.errors import InputError, one_of
from rtm_kernels.impl import IMPLS, resolve
from rtm_kernels.interop.recognise import (
    LOOKED_FOR,
    call,
    check_blocks,
    holds_blocks,
    is_stack,
    probe_inputs,
    with_values,
)
from rtm_kernels.ops.attention_norm.api import ATTENTION
from rtm_kernels.ops.attention_norm.reference import grid_tables

Model = TypeVar("Model", bound=nn.Module)

OPTIONS = ("norm_axis", "impl", "attention", "grid", "classes")
"""Attributes that an accelerated block has beside its own."""
READ = (*OPTIONS, "num_heads", "prefix_len", "causal", "qk_norm", "eps")
"""Attributes of `FusedTRMBlock` that its forward reads, which the official block may not have."""

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Accelerated:
    """Marks a module whose class `accelerate` changed; `official` is the class it had."""

    official: type[nn.Module]

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        """Pickles and copies name the two classes that made this one, which no module holds by name."""
        return _empty, (type(self).__mro__[1], self.official), vars(self).copy()


def _empty(mixin: type[Accelerated], official: type[nn.Module]) -> Any:
    made = _subclass(mixin, official)
    return made.__new__(made)


class AcceleratedBlock(Accelerated):
    """The forward of an official block, computed by the fused ops over its own parameters."""

    mixer, channel_mixer = FusedTRMBlock.mixer, FusedTRMBlock.channel_mixer
    prefix_len, qk_norm = 0, False
    eps = property(lambda self: self.norm_eps)
    num_heads = property(lambda self: self.self_attn.num_heads)
    causal = property(lambda self: bool(self.self_attn.causal))

    def forward(self, cos_sin: CosSin | None, hidden_states: Tensor, injection: tuple[Tensor, ...] = ()) -> Tensor:
        """The official call, and the injection that is folded into the first load.

        The fused ops call no part of the block. So a block whose parts have hooks, or were replaced since, runs the
        official forward instead.
        EqR's tables of a grid come as ((cos of rows, of columns), (sin of rows, of columns)).
        """
        if _changed(self):  # type: ignore[arg-type]
            total = sum(injection, start=hidden_states)
            return self.official.forward(self, cos_sin=cos_sin, hidden_states=total)
        self.grid = cos_sin is not None and isinstance(cos_sin[0], tuple)
        cos_sin = grid_tables(*cos_sin) if self.grid else cos_sin  # type: ignore
        return FusedTRMBlock.forward(self, hidden_states, injection, cos_sin)  # type: ignore[arg-type]


def _changed(block: nn.Module) -> bool:
    """Whether a part of the block has a hook or a forward of its own, or is of another class than when it was taken."""
    parts = list(block.modules())[1:]
    own = any("forward" in vars(part) or _hooked(part) for part in parts)
    return own or _has_any_global_hook() or [type(part) for part in parts] != block.classes


def _hooked(module: nn.Module) -> bool:
    return any(getattr(module, kind) for kind in HOOKS)


class AcceleratedStack(Accelerated):
    """The forward of an official stack of any kind in `STACKS`, with the injection folded into the first block."""

    layers: nn.ModuleList

    def forward(
        self, hidden_states: Tensor, injection: Tensor | None = None, cos_sin: CosSin | None = None, *,
        input_injection: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """All blocks on the sum of what is injected and `hidden_states`, [B, L, D]."""
        injected = tuple(given for given in (injection, input_injection) if given is not None)
        if _hooked(self.layers[0]):  # a hook sees the sum
            hidden_states, injected = sum(injected, start=hidden_states), ()
        for layer in self.layers:
            hidden_states = layer(cos_sin=cos_sin, hidden_states=hidden_states, injection=injected)
            injected = ()
        return hidden_states


def accelerate(model: Model, *, impl: str = "auto", attention: str = "auto") -> Model:
    """Replace the blocks inside an official TRM, HRM, RSM, URM or EqR model by fused ones, in place; returns it.

    `model` may be wrapped in the official loss head, torch.compile or DistributedDataParallel. Parameters and
    state_dict keys do not change, outputs and gradients only by the rounding of the chosen `impl` (not at all for
    the reference). Calling it again changes the options. `restore` undoes it. Hooks on blocks are called as before; a
    block with a hook on one of its parts runs its official forward.

    Errors: `InputError` when no stack of blocks is found, or one computes or says something else than the official
    block (dropout, a window, a wrapped or replaced forward);
    `BackendUnavailable` when `impl` is named and cannot run. The model is unchanged then, or as after `restore`.
    """
    one_of("impl", impl, IMPLS)
    one_of("attention", attention, ATTENTION)
    restore(model)
    found = {name or type(model).__name__: module for name, module in model.named_modules() if holds_blocks(module)}
    if not found:
        raise InputError(f"{type(model).__name__} holds nothing to accelerate; looked for {LOOKED_FOR}")
    for name, module in found.items():
        check_blocks(name, module, READ)
        resolve(impl, next(module.parameters()).device)
    axes = {name: _norm_axis(name, with_values(module)) for name, module in found.items()}
    for name, module in found.items():
        _swap(module, axes[name], impl, attention)
    return model


def restore(model: Model) -> Model:
    """Undo `accelerate` on every module of `model`, in place; returns it. A model that is not accelerated stays so."""
    changed: list[Any] = [module for module in model.modules() if isinstance(module, Accelerated)]
    for module in changed:
        if isinstance(module, AcceleratedBlock):
            for option in OPTIONS:
                delattr(module, option)
        module.__class__ = module.official
    return model


def _norm_axis(name: str, stack: nn.Module) -> str:
    """The norm axis with which the fused blocks reproduce the stack's own forward on a probe input.

    Errors: `InputError` when none does.
    """
    inputs, weights = probe_inputs(stack), list(stack.parameters())
    with torch.no_grad(), torch.autocast(weights[0].device.type, enabled=False):
        try:
            expected = call(stack, inputs)
        except Exception as error:
            raise InputError(f"{name} does not run on a probe input: {error}".splitlines()[0]) from error
        exact = all(tensor.dtype == torch.float32 for tensor in (expected, *weights))
        for axis in NORM_AXES:
            try:
                _swap(stack, axis, "reference", "sdpa")
                distance = (call(stack, inputs) - expected).float().norm() / expected.float().norm()
            finally:
                restore(stack)
            if distance < (1e-4 if exact else 5e-2):
                return axis
    raise InputError(f"{name} computes something else than the official block normalised over {' or '.join(NORM_AXES)}")


_subclasses: dict[Any, Any] = {}


def _subclass(*kinds: Any) -> Any:
    """The class with the forward of a mixin and everything else of an official one; the same one every time."""
    if kinds not in _subclasses:
        _subclasses[kinds] = type(f"Accelerated{kinds[1].__name__}", kinds, {"official": kinds[1]})
    return _subclasses[kinds]


def _swap(stack: nn.Module, norm_axis: str, impl: str, attention: str) -> None:
    for layer in dict.fromkeys(stack.layers):  # type: ignore[arg-type]
        values = (norm_axis, impl, attention, False, [type(part) for part in layer.modules()][1:])
        for option, value in zip(OPTIONS, values, strict=True):
            setattr(layer, option, value)
        layer.__class__ = _subclass(AcceleratedBlock, type(layer))
    mixin = AcceleratedStack if is_stack(stack) else Accelerated  # URM and EqR keep their own forward
    stack.__class__ = _subclass(mixin, type(stack))
