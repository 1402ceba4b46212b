"""What the C++ executor packs: weights of stacks and of heads by their official names, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rtm_kernels.config import NORM_AXES
from rtm_kernels.errors import InputError, one_of, require

MLP_MIXER = ("mlp_t.gate_up_proj.weight", "mlp_t.down_proj.weight")
ATTENTION = ("self_attn.qkv_proj.weight", "self_attn.o_proj.weight")
CHANNEL = ("mlp.gate_up_proj.weight", "mlp.down_proj.weight")


@dataclass(frozen=True, kw_only=True)
class StackWeights:
    """The weights of one stack of blocks, by their official names, and what they do not say by themselves.

    `layers` holds one mapping per block with `mlp.gate_up_proj.weight` [2F, D], `mlp.down_proj.weight` [D, F], and
    either `mlp_t.gate_up_proj.weight` [2F, L], `mlp_t.down_proj.weight` [L, F], or `self_attn.qkv_proj.weight`
    [3D, D], `self_attn.o_proj.weight` [D, D]. `cos_sin` are RoPE tables [L, head_dim].
    """

    layers: Sequence[Mapping[str, Tensor]]
    norm_axis: str = "sequence"
    eps: float = 1e-5
    num_heads: int = 1
    causal: bool = False
    qk_norm: bool = False
    cos_sin: tuple[Tensor, Tensor] | None = None

    def __post_init__(self) -> None:
        one_of("norm_axis", self.norm_axis, NORM_AXES)
        require(len(self.layers) > 0, "layers", self.layers, "at least one layer")
        for i, layer in enumerate(self.layers):
            mixers = [names for names in (MLP_MIXER, ATTENTION) if all(name in layer for name in names)]
            if len(mixers) != 1 or not all(name in layer for name in CHANNEL):
                raise InputError(
                    f"layers[{i}] has {sorted(layer)}; expected {CHANNEL} and one of {MLP_MIXER}, {ATTENTION}"
                )

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor], **options: Any) -> StackWeights:
        """From the state dict of a stack: keys `layers.<i>.<name>`; `options` are the other fields."""
        layers: dict[int, dict[str, Tensor]] = {}
        for key, value in state.items():
            head, _, rest = key.partition(".")
            index, _, name = rest.partition(".")
            require(head == "layers" and index.isdigit(), "state", key, "keys of the form layers.<i>.<name>")
            layers.setdefault(int(index), {})[name] = value.detach()
        return cls(layers=[layers[i] for i in sorted(layers)], **options)

    @classmethod
    def from_module(cls, stack: nn.Module, cos_sin: tuple[Tensor, Tensor] | None = None) -> StackWeights:
        """From a stack of `FusedTRMBlock`s (a module with `.layers`), whose first block says the options."""
        block: Any = stack.get_submodule("layers.0")
        return cls.from_state_dict(
            stack.state_dict(), norm_axis=block.norm_axis, eps=block.eps, num_heads=block.num_heads,
            causal=block.causal, qk_norm=block.qk_norm, cos_sin=cos_sin,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class HeadWeights:
    """What reads the output latent y after an ACT step, in float32 at every position: y w^T + bias.

    `tokens` [V, D] gives the logits of the vocabulary at the positions from `prefix` on, `halting` a weight [K, D] and
    a bias [K] (or None) the halting logits. Either may be None.
    """

    tokens: Tensor | None = None
    halting: tuple[Tensor, Tensor | None] | None = None
    prefix: int = 0

    @property
    def width(self) -> int:
        """D. Errors: `InputError` without any weight."""
        weights = [w for w in (self.tokens, None if self.halting is None else self.halting[0]) if w is not None]
        require(bool(weights), "heads", None, "weights of stacks or of heads")
        return int(weights[0].shape[-1])

    def stacked(self, width: int) -> tuple[Tensor, Tensor, int]:
        """Weight [V + K, D] and bias [V + K] of both heads, and V. Errors: `InputError` for another width or bias."""
        tokens = torch.zeros(0, width) if self.tokens is None else float32(self.tokens)
        weight, bias = (torch.zeros(0, width), None) if self.halting is None else self.halting
        bias = torch.zeros(len(weight)) if bias is None else bias
        for name, value in (("tokens", tokens), ("halting", weight)):
            require(value.ndim == 2 and value.shape[1] == width, name, tuple(value.shape), f"a weight [N, D={width}]")
        require(tuple(bias.shape) == (len(weight),), "bias", tuple(bias.shape), f"one for each of {len(weight)} rows")
        require(self.prefix >= 0, "prefix", self.prefix, "at least 0")
        both = torch.cat((tokens, float32(weight))), torch.cat((torch.zeros(len(tokens)), float32(bias)))
        return both[0].contiguous(), both[1].contiguous(), len(tokens)


def swiglu_weights(layer: Mapping[str, Tensor], names: Sequence[str], stack: str, width: int) -> list[Tensor]:
    """gate_up [2F, width] and down [width, F] of a layer. Errors: `InputError` for shapes that do not fit together."""
    inner = int(layer[names[1]].shape[-1])
    return checked(layer, names, stack, ((2 * inner, width), (width, inner)))


def checked(
    layer: Mapping[str, Tensor], names: Sequence[str], stack: str, shapes: Sequence[tuple[int, int]]
) -> list[Tensor]:
    """Weights of a layer in float32, contiguous on the CPU. Errors: `InputError` for another shape."""
    for name, shape in zip(names, shapes, strict=True):
        if tuple(layer[name].shape) != shape:
            raise InputError(f"{stack}: {name} has shape {tuple(layer[name].shape)}; expected {shape}")
    return [float32(layer[name]) for name in names]


def float32(weight: Tensor) -> Tensor:
    """`weight` as float32, contiguous on the CPU."""
    return weight.detach().to(device="cpu", dtype=torch.float32).contiguous()
