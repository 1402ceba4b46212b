"""Layers of the hub's `kernels`: `kernelize` puts their forward in place of that of official blocks of the same name.

A layer has no state of its own. Its forward reads the parameters of the block that it serves.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from rtm_kernels.ops.attention_norm.api import attention_norm
from rtm_kernels.ops.swiglu_norm.api import mixer_norm, swiglu_norm

CosSin = tuple[Tensor, Tensor]


class TRMBlock(nn.Module):
    """The block of TRM and of HRM: the norm of the token half runs over the sequence. [B, L, D] to [B, L, D]."""

    has_backward = can_torch_compile = True

    def forward(self, cos_sin: CosSin | None, hidden_states: Tensor) -> Tensor:
        return _block(self, cos_sin, hidden_states, "sequence")


class RSMBlock(nn.Module):
    """The block of RSM: the norm of the token half runs over the channels. [B, L, D] to [B, L, D]."""

    has_backward = can_torch_compile = True

    def forward(self, cos_sin: CosSin | None, hidden_states: Tensor) -> Tensor:
        return _block(self, cos_sin, hidden_states, "hidden")


def _block(block: Any, cos_sin: CosSin | None, x: Tensor, norm_axis: str) -> Tensor:
    mixer = getattr(block, "self_attn", None)
    if mixer is None:
        weights = (block.mlp_t.gate_up_proj.weight, block.mlp_t.down_proj.weight)
        x = mixer_norm(x, *weights, norm_axis=norm_axis, eps=block.norm_eps)
    else:
        x = attention_norm(
            x, mixer.qkv_proj.weight, mixer.o_proj.weight, num_heads=mixer.num_heads, cos_sin=cos_sin,
            causal=bool(mixer.causal), eps=block.norm_eps,
        )  # fmt: skip
    return swiglu_norm(x, block.mlp.gate_up_proj.weight, block.mlp.down_proj.weight, eps=block.norm_eps)
