"""The modules of a model, with the official names: FusedTRMBlock (two fused half layers), stacks, embeddings."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from rtm_kernels.config import CHANNEL_MIXERS, MIXERS, NORM_AXES, inner_width
from rtm_kernels.errors import InputError, one_of, require
from rtm_kernels.impl import IMPLS
from rtm_kernels.ops.attention_norm.api import attention_norm
from rtm_kernels.ops.attention_norm.reference import grid_order
from rtm_kernels.ops.conv_swiglu_norm.api import conv_swiglu_norm
from rtm_kernels.ops.swiglu_norm.api import mixer_norm, swiglu_norm

CosSin = tuple[Tensor, Tensor]


def trunc_normal(*shape: int, std: float) -> Tensor:
    """A tensor drawn from a normal truncated at two deviations, rescaled so that its deviation *is* `std`."""
    draw = torch.empty(shape, dtype=torch.float32)
    if draw.is_meta:  # a shape alone: drawing it would take a thousand times as long, and nothing comes of it
        return draw
    low, high = (math.erf(bound / math.sqrt(2)) for bound in (-2.0, 2.0))
    mass = (high - low) / 2
    density = math.exp(-2.0) / math.sqrt(2 * math.pi)
    scale = std / math.sqrt(1 - 4 * density / mass)
    draw.uniform_(low, high).erfinv_().mul_(math.sqrt(2) * scale)
    return draw.clamp_(-2 * scale, 2 * scale)


def rows(name: str, table: Tensor, ids: Tensor) -> Tensor:
    """Rows [..., D] of a table [N, D] by `ids` of any whole dtype (uint8, as an index of a tensor, would be a mask).

    Errors: `InputError` for ids out of range on a CPU. On a GPU the kernel stops: looking would make the host wait.
    """
    try:
        return functional.embedding(ids if ids.dtype == torch.int64 else ids.to(torch.int32), table)
    except IndexError:
        low, high = ids.aminmax()
        raise InputError(f"{name} are from {low} to {high}; allowed are 0 to {len(table) - 1}") from None


class Linear(nn.Module):
    """The weight [out, in] of a bias-free projection, LeCun-normal initialised; the ops read it directly."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(trunc_normal(out_features, in_features, std=in_features**-0.5))


class Embedding(nn.Module):
    """A table [num, dim] cast to the compute dtype on use (official name `embedding_weight`)."""

    def __init__(self, num: int, dim: int, std: float) -> None:
        super().__init__()
        self.embedding_weight = nn.Parameter(trunc_normal(num, dim, std=std))


class SparseEmbedding(nn.Module):
    """Puzzle embeddings [num, dim], zero-initialised, trained row by row outside the dense optimiser.

    In training the rows of the batch are copied to `local_weights` [B, dim], which receives the gradient, and
    their ids to `local_ids` [B]; the sign-SGD optimiser writes the touched rows back (HRM `sparse_embedding.py`).
    """

    weights: Tensor
    local_weights: Tensor
    local_ids: Tensor

    def __init__(self, num: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("weights", torch.zeros(num, dim, dtype=torch.float32))
        self.register_buffer("local_weights", torch.zeros(0, dim, dtype=torch.float32), persistent=False)
        self.register_buffer("local_ids", torch.zeros(0, dtype=torch.int32), persistent=False)

    def reserve(self, size: int) -> None:
        """Make the leaf for a batch of `size`, which a compiled forward fills."""
        self.local_weights = self.weights.new_zeros(size, self.weights.shape[1]).requires_grad_()

    def forward(self, ids: Tensor) -> Tensor:
        """Rows [B, dim] of `ids` [B]."""
        found = rows("puzzle_identifiers", self.weights, ids)
        if self.training and torch.is_grad_enabled():
            if torch.compiler.is_compiling():  # a compiled graph returns no new leaf
                with torch.no_grad():
                    self.local_weights.copy_(found)
            else:
                self.local_weights = found.detach().requires_grad_()
            self.local_ids = ids.detach()
            return self.local_weights
        return found


class SwiGLU(nn.Module):
    """Weights of `down(silu(gate(x)) * up(x))` over `width` features: gate_up [2F, width], down [width, F]."""

    def __init__(self, width: int, expansion: float, inner: int = 0) -> None:
        super().__init__()
        inner = inner or inner_width(width, expansion)
        self.gate_up_proj = Linear(width, 2 * inner)
        self.down_proj = Linear(inner, width)


class Depthwise(nn.Module):
    """Weight [F, 1, k] or [F, 1, k, k] and bias [F] of a depthwise convolution, both LeCun-normal initialised."""

    def __init__(self, features: int, *size: int) -> None:
        super().__init__()
        std = math.prod(size) ** -0.5
        self.weight = nn.Parameter(trunc_normal(features, 1, *size, std=std))
        self.bias = nn.Parameter(torch.zeros(features))


class ConvSwiGLU(SwiGLU):
    """A `SwiGLU` with a depthwise convolution on its hidden units, of width `size` on each axis (`dwconv`)."""

    def __init__(self, width: int, expansion: float, inner: int, *size: int) -> None:
        super().__init__(width, expansion, inner)
        self.dwconv = Depthwise(self.down_proj.weight.shape[1], *size)


class Attention(nn.Module):
    """Weights of multi-head attention: qkv [3D, D] and output projection [D, D]."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.qkv_proj = Linear(hidden_size, 3 * hidden_size)
        self.o_proj = Linear(hidden_size, hidden_size)


class FusedTRMBlock(nn.Module):
    """One layer: `h <- rms_norm(h + mix(h))`, then `h <- rms_norm(h + swiglu(h))`, the norm without a weight.

    `mix` is a SwiGLU over the sequence (`mixer="mlp"`, normalised over L for each channel, or over D with
    `norm_axis="hidden"` as RSM does) or multi-head attention (`mixer="attention"`); `mixer="none"` leaves it out.
    The channel half is a SwiGLU, or one with a depthwise convolution of width `conv_width` on its hidden units
    (`channel_mixer="conv"`: along the sequence, as in URM; `"conv2d"`: over the square grid of the positions after
    `prefix_len`). Parameter names and shapes
    are the official ones: `mlp_t.gate_up_proj.weight` [2F, L], `mlp.down_proj.weight` [D, F],
    `self_attn.qkv_proj.weight` [3D, D], …, so an official state dict loads unchanged.

    Source: TinyRecursiveModels `models/recursive_reasoning/trm.py`; RSM `models/recursive_reasoning/rsm.py`.

    Args:
        hidden_size: D. seq_len: L, prefix included; needed by the MLP mixer. num_heads: for attention.
        grid: whether the RoPE tables are those of a grid (`rope_tables_2d`).
        impl: `auto` (Triton on CUDA, reference elsewhere), `triton` or `reference`; a named one never falls back.
        attention: `sdpa`, `flash` for the kernels of the flash_attn package, or `auto` (`why_not_flash` of its op).
    """

    def __init__(
        self,
        hidden_size: int,
        seq_len: int | None = None,
        *,
        expansion: float = 4.0,
        mixer: str = "mlp",
        channel_mixer: str = "swiglu",
        conv_width: int = 2,
        inner_size: int = 0,
        prefix_len: int = 0,
        norm_axis: str = "sequence",
        num_heads: int = 8,
        grid: bool = False,
        causal: bool = False,
        qk_norm: bool = False,
        eps: float = 1e-5,
        impl: str = "auto",
        attention: str = "auto",
    ) -> None:
        super().__init__()
        one_of("mixer", mixer, MIXERS)
        one_of("channel_mixer", channel_mixer, CHANNEL_MIXERS)
        one_of("norm_axis", norm_axis, NORM_AXES)
        one_of("impl", impl, IMPLS)
        self.norm_axis, self.num_heads, self.causal, self.qk_norm = norm_axis, num_heads, causal, qk_norm
        self.grid, self.prefix_len, self.eps, self.impl, self.attention = grid, prefix_len, eps, impl, attention
        if mixer == "mlp":
            if seq_len is None:
                raise InputError("seq_len=None is not allowed: mixer='mlp' needs the length of the sequence it mixes")
            self.mlp_t = SwiGLU(seq_len, expansion)
        elif mixer == "attention":
            require(hidden_size % num_heads == 0, "num_heads", num_heads, f"a divisor of hidden_size={hidden_size}")
            self.self_attn = Attention(hidden_size)
        if channel_mixer == "swiglu":
            self.mlp = SwiGLU(hidden_size, expansion, inner_size)
        else:
            size = (conv_width,) * (2 if channel_mixer == "conv2d" else 1)
            self.mlp = ConvSwiGLU(hidden_size, expansion, inner_size, *size)

    @property
    def mixer(self) -> str:
        """`mlp`, `attention` or `none`."""
        return "mlp" if "mlp_t" in self._modules else "attention" if "self_attn" in self._modules else "none"

    @property
    def channel_mixer(self) -> str:
        """`swiglu`, `conv` or `conv2d`."""
        conv = getattr(self.mlp, "dwconv", None)
        return "swiglu" if conv is None else "conv" if conv.weight.ndim == 3 else "conv2d"

    def forward(
        self, hidden_states: Tensor, injection: tuple[Tensor, ...] = (), cos_sin: CosSin | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """The layer applied to `hidden_states + (sum of injection)`; [B, L, D] to [B, L, D], differentiable.

        The injection is folded into the first load of the fused kernels. `cos_sin` are RoPE tables [L, head_dim].
        `bias` [B, 1, L, L] is what attention adds to its logits instead of a causal mask.
        """
        common: dict[str, Any] = {"injection": injection, "eps": self.eps, "impl": self.impl}
        if self.mixer == "mlp":
            weights = (self.mlp_t.gate_up_proj.weight, self.mlp_t.down_proj.weight)
            mixed = mixer_norm(hidden_states, *weights, norm_axis=self.norm_axis, **common)
        elif self.mixer == "attention":
            qkv: Tensor = self.self_attn.qkv_proj.weight
            if self.grid:
                qkv = qkv[grid_order(self.num_heads, len(qkv) // (3 * self.num_heads), qkv.device)]
            mixed = attention_norm(
                hidden_states, qkv, self.self_attn.o_proj.weight,
                num_heads=self.num_heads, cos_sin=cos_sin, causal=self.causal, qk_norm=self.qk_norm,
                attention=self.attention, bias=bias, **common,
            )  # fmt: skip
        if self.mixer != "none":
            common["injection"] = ()
        else:
            mixed = hidden_states
        gate_up, down = self.mlp.gate_up_proj.weight, self.mlp.down_proj.weight
        if self.channel_mixer == "swiglu":
            return swiglu_norm(mixed, gate_up, down, **common)
        conv: Any = self.mlp.dwconv
        return conv_swiglu_norm(mixed, gate_up, conv.weight, conv.bias, down, prefix=self.prefix_len, **common)


class Adapter(nn.Module):
    """`h + (h down^T) up^T` of rank r, the identity at first; down [r, D], up [D, r]. Called as a `Stack` is."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down_proj, self.up_proj = Linear(width, rank), Linear(rank, width)
        nn.init.zeros_(self.up_proj.weight)

    def forward(
        self, hidden_states: Tensor, injection: tuple[Tensor, ...] = (), cos_sin: CosSin | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """The adapter on `hidden_states + (sum of injection)`, [B, L, D]."""
        if injection:
            hidden_states = hidden_states + sum(injection[1:], injection[0])
        down, up = (p.weight.to(hidden_states.dtype) for p in (self.down_proj, self.up_proj))
        return hidden_states + functional.linear(functional.linear(hidden_states, down), up)


class Stack(nn.Module):
    """Blocks applied in order; the injection enters the first one. Called `L_level`, `H_level` or `core` officially."""

    layers: nn.ModuleList

    def __init__(self, layers: list[FusedTRMBlock]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(
        self, hidden_states: Tensor, injection: tuple[Tensor, ...] = (), cos_sin: CosSin | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """All layers on `hidden_states + (sum of injection)`, [B, L, D]."""
        for layer in self.layers:
            hidden_states = layer(hidden_states, injection, cos_sin, bias)
            injection = ()
        return hidden_states


class FlatStack(nn.ModuleList):
    """A `Stack` whose blocks are its own children, as in URM: `layers.0` instead of `core.layers.0`."""

    @property
    def layers(self) -> nn.ModuleList:
        """The blocks."""
        return self

    forward = Stack.forward
