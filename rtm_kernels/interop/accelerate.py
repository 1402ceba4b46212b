"""Fused blocks inside live models of the official TRM, HRM and RSM code, in place and undoable.

Nothing of the official code is imported: a stack of blocks is recognised by its parameter names, and by computing
the same as the fused one on a probe input. The stack and its blocks then change their class to a
subclass whose forward is the fused one, so parameters, buffers, state_dict keys, hooks and deepcopy stay as they are.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from rtm_kernels.block import CosSin, FusedTRMBlock
from rtm_kernels.config import NORM_AXES
from rtm_kernels.errors import InputError, one_of
from rtm_kernels.impl import IMPLS, resolve
from rtm_kernels.ops.attention_norm.api import ATTENTION
from rtm_kernels.ops.attention_norm.reference import grid_tables

Model = TypeVar("Model", bound=nn.Module)

LOOKED_FOR = (
    "modules with `layers`, a ModuleList of blocks that have mlp.gate_up_proj, mlp.down_proj, norm_eps, and either "
    "self_attn.qkv_proj and self_attn.o_proj or mlp_t.gate_up_proj and mlp_t.down_proj"
)
OPTIONS = ("norm_axis", "num_heads", "grid", "prefix_len", "causal", "qk_norm", "eps", "impl", "attention")
"""Attributes of `FusedTRMBlock` that its forward reads; an accelerated block carries them too."""


class Accelerated:
    """Marks a module whose class `accelerate` changed; `official` is the class it had."""

    official: type[nn.Module]


class AcceleratedBlock(Accelerated):
    """The forward of an official block, computed by the fused ops over its own parameters."""

    mixer, channel_mixer = FusedTRMBlock.mixer, FusedTRMBlock.channel_mixer

    def forward(self, cos_sin: CosSin | None, hidden_states: Tensor, injection: tuple[Tensor, ...] = ()) -> Tensor:
        """The official call, and the injection that is folded into the first load.

        EqR's tables of a grid come as ((cos of rows, of columns), (sin of rows, of columns)).
        """
        self.grid = cos_sin is not None and isinstance(cos_sin[0], tuple)
        cos_sin = grid_tables(*cos_sin) if self.grid else cos_sin  # type: ignore
        return FusedTRMBlock.forward(self, hidden_states, injection, cos_sin)  # type: ignore[arg-type]


class AcceleratedStack(Accelerated):
    """The forward of an official stack of any kind in `STACKS`, with the injection folded into the first block."""

    layers: nn.ModuleList

    def forward(
        self, hidden_states: Tensor, injection: Tensor | None = None, cos_sin: CosSin | None = None, *,
        input_injection: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """All blocks on the sum of what is injected and `hidden_states`, [B, L, D]."""
        injected = tuple(given for given in (injection, input_injection) if given is not None)
        for layer in self.layers:
            hidden_states = layer(cos_sin=cos_sin, hidden_states=hidden_states, injection=injected)
            injected = ()
        return hidden_states


class AcceleratedHolder(Accelerated):
    """A module that does more than apply its blocks (URM, EqR): its own forward, over accelerated blocks."""

    layers: nn.ModuleList


STACKS = (("hidden_states", "input_injection"), ("hidden_states", "injection"), ("hidden_states",))
"""Parameters of the forward of a stack of TRM and HRM, of RSM, and of single-z TRM, cos_sin left out."""


def accelerate(model: Model, *, impl: str = "auto", attention: str = "auto") -> Model:
    """Replace the blocks inside an official TRM, HRM, RSM, URM or EqR model by fused ones, in place; returns it.

    `model` may be wrapped in the official loss head, torch.compile or DistributedDataParallel. Parameters and
    state_dict keys do not change, outputs and gradients only by the rounding of the chosen `impl` (not at all for
    the reference). Calling it again changes the options. `restore` undoes it; do so before pickling the module
    itself (state dicts and copies need no such care).

    Errors: `InputError` when no stack of blocks is found, or one computes something else than the fused block;
    `BackendUnavailable` when `impl` is named and cannot run. The model is unchanged then, or as after `restore`.
    """
    one_of("impl", impl, IMPLS)
    one_of("attention", attention, ATTENTION)
    restore(model)
    found = {name or type(model).__name__: module for name, module in model.named_modules() if _holds_blocks(module)}
    if not found:
        raise InputError(f"{type(model).__name__} holds nothing to accelerate; looked for {LOOKED_FOR}")
    for name, module in found.items():
        _check_blocks(name, module)
        resolve(impl, next(module.parameters()).device)
    axes = {name: _norm_axis(name, module) for name, module in found.items()}
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


def _holds_blocks(module: nn.Module) -> bool:
    layers = module._modules.get("layers")  # not getattr: the wrapper of torch.compile passes on what it wraps
    if not isinstance(layers, nn.ModuleList):
        return False
    return any(hasattr(layer, "mlp") and (hasattr(layer, "self_attn") or hasattr(layer, "mlp_t")) for layer in layers)


def _check_blocks(name: str, stack: nn.Module) -> None:
    """Refuse a stack whose forward or whose blocks have other parameters than the official ones."""
    conv = all(hasattr(layer.mlp, "dwconv") for layer in stack.layers)  # type: ignore[union-attr]
    if not _is_stack(stack) and not conv and not hasattr(stack, "lambda_"):
        signature = inspect.signature(type(stack).forward)
        raise InputError(f"{name}.forward{signature} is not that of an official stack: {' or '.join(map(str, STACKS))}")
    for index, layer in enumerate(stack.layers):  # type: ignore[arg-type]
        odd = _oddities(layer)
        if odd:
            raise InputError(f"{name}.layers.{index} is not an official block ({odd}); looked for {LOOKED_FOR}")


def _oddities(layer: Any) -> str:
    """How a module differs from an official block, or an empty string."""
    attends = hasattr(layer, "self_attn")
    mixer = ("self_attn.qkv_proj", "self_attn.o_proj") if attends else ("mlp_t.gate_up_proj", "mlp_t.down_proj")
    expected = {f"{part}.weight" for part in ("mlp.gate_up_proj", "mlp.down_proj", *mixer)}
    expected |= {"mlp.dwconv.weight", "mlp.dwconv.bias"} if hasattr(layer.mlp, "dwconv") else set()
    differing = sorted(expected ^ {name for name, _ in layer.named_parameters()})
    if differing:
        return f"its parameters differ in {', '.join(differing)}"
    if not isinstance(getattr(layer, "norm_eps", None), float):
        return "it has no norm_eps"
    taken = [option for option in OPTIONS if hasattr(layer, option)]
    if taken:
        return f"it has {', '.join(taken)} of its own"
    if attends:
        heads = getattr(layer.self_attn, "num_heads", None)
        if not isinstance(heads, int) or getattr(layer.self_attn, "num_key_value_heads", heads) != heads:
            return "its self_attn lacks num_heads, or has fewer key and value heads"
    return ""


def _is_stack(module: nn.Module) -> bool:
    """Whether the module only applies its blocks to a sum; those of URM and EqR do more."""
    return _parameters(module) in STACKS and not hasattr(module, "lambda_")


def _call(stack: nn.Module, inputs: dict[str, Any]) -> Tensor:
    """The stack, or its blocks one after the other, on a probe input."""
    if _is_stack(stack):
        return stack(**inputs)
    hidden: Tensor = inputs["hidden_states"]
    for layer in stack.layers:  # type: ignore[union-attr]
        hidden = layer(cos_sin=inputs["cos_sin"], hidden_states=hidden)
    return hidden


def _parameters(stack: nn.Module) -> tuple[str, ...]:
    parameters = list(inspect.signature(type(stack).forward).parameters.values())[1:]
    return tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD and p.name != "cos_sin")


def _norm_axis(name: str, stack: nn.Module) -> str:
    """The norm axis with which the fused blocks reproduce the stack's own forward on a probe input.

    Errors: `InputError` when none does.
    """
    weight = next(stack.parameters())
    inputs = _probe(stack, weight.device)
    with torch.no_grad():
        try:
            expected = _call(stack, inputs)
        except Exception as error:
            raise InputError(f"{name} does not run on a probe input: {error}".splitlines()[0]) from error
        for axis in NORM_AXES:
            _swap(stack, axis, "reference", "sdpa")
            try:
                difference = (_call(stack, inputs) - expected).float().norm() / expected.float().norm()
            finally:
                restore(stack)
            if difference < (1e-4 if expected.dtype == torch.float32 else 5e-2):
                return axis
    raise InputError(f"{name} computes something else than the official block normalised over {' or '.join(NORM_AXES)}")


def _probe(stack: nn.Module, device: torch.device) -> dict[str, Any]:
    """Random inputs [2, L, D] and rotary tables for a stack; bfloat16 for attention on CUDA, where flash needs it.

    Drawn on the CPU whatever the default device: official scripts build their models within `torch.device("cuda")`.
    """
    layer: Any = stack.layers[0]  # type: ignore[index]
    attends = hasattr(layer, "self_attn")
    dtype = torch.bfloat16 if attends and device.type == "cuda" else torch.float32
    length, width = 6 if attends else layer.mlp_t.down_proj.weight.shape[0], layer.mlp.down_proj.weight.shape[0]
    draw = functools.partial(torch.randn, generator=torch.Generator("cpu").manual_seed(0), device="cpu")
    names = _parameters(stack) if _is_stack(stack) else ("hidden_states",)
    inputs: dict[str, Any] = {name: draw(2, length, width).to(device, dtype) for name in names}
    inputs["cos_sin"] = None
    if attends:
        head_dim = layer.self_attn.o_proj.weight.shape[1] // layer.self_attn.num_heads
        angles = draw(length, head_dim).to(device)
        inputs["cos_sin"] = (angles.cos(), angles.sin())
    return inputs


_subclasses: dict[tuple[Any, Any], Any] = {}


def _subclass(mixin: type[Accelerated], official: type[nn.Module]) -> Any:
    """The class with the forward of `mixin` and everything else of `official`; the same one every time."""
    key = (mixin, official)
    if key not in _subclasses:
        _subclasses[key] = type(f"Accelerated{official.__name__}", key, {"official": official})
    return _subclasses[key]


def _swap(stack: nn.Module, norm_axis: str, impl: str, attention: str) -> None:
    for layer in stack.layers:  # type: ignore[union-attr]
        mixer: Any = getattr(layer, "self_attn", None)
        heads, causal = (1, False) if mixer is None else (mixer.num_heads, bool(mixer.causal))
        values = (norm_axis, heads, False, 0, causal, False, layer.norm_eps, impl, attention)
        for option, value in zip(OPTIONS, values, strict=True):
            setattr(layer, option, value)
        layer.__class__ = _subclass(AcceleratedBlock, type(layer))
    mixin = AcceleratedStack if _is_stack(stack) else AcceleratedHolder
    stack.__class__ = _subclass(mixin, type(stack))
