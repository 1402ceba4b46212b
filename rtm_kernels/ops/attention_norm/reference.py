"""attention_norm in plain PyTorch: the specification of every kernel of this op."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rtm_kernels.ops.primitives import inject_sum, rms_norm


def rope_tables(
    length: int, head_dim: int, theta: float, device: torch.device | str | None = None
) -> tuple[Tensor, Tensor]:
    """Rotary tables cos and sin [length, head_dim] in float32; both halves repeat the same frequencies."""
    frequencies = 1.0 / (theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim))
    angles = torch.outer(torch.arange(length, dtype=torch.float32, device=device), frequencies)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`x cos + [-b, a] sin` with a and b the halves of x [B, L, heads, head_dim], in float32 or wider.

    The tables are [L, head_dim].
    """
    wide = x.to(torch.promote_types(x.dtype, cos.dtype))
    a, b = wide.chunk(2, dim=-1)
    return (wide * cos.unsqueeze(-2) + torch.cat((-b, a), dim=-1) * sin.unsqueeze(-2)).to(x.dtype)


def attention_norm(
    x: Tensor,
    qkv_weight: Tensor,
    o_weight: Tensor,
    *,
    num_heads: int,
    cos_sin: tuple[Tensor, Tensor] | None = None,
    causal: bool = False,
    qk_norm: bool = False,
    injection: tuple[Tensor, ...] = (),
    eps: float = 1e-5,
) -> Tensor:
    """`rms_norm(h + o_proj(softmax(q k^T / sqrt(head_dim)) v))` with `h = x + (sum of injection)`.

    x [B, L, D], weights [3D, D] and [D, D]. `qk_norm` applies a weightless RMSNorm over head_dim to q and k, before
    RoPE.
    """
    h = inject_sum(x, injection)
    batch, length, width = h.shape
    qkv = F.linear(h, qkv_weight.to(h.dtype)).view(batch, length, 3 * num_heads, width // num_heads)
    query, key, value = qkv.split(num_heads, dim=2)  # [B, L, heads, head_dim] each
    if qk_norm:
        query, key = rms_norm(query, eps), rms_norm(key, eps)
    if cos_sin is not None:
        query, key = apply_rope(query, *cos_sin), apply_rope(key, *cos_sin)
    query, key, value = (t.transpose(1, 2) for t in (query, key, value))
    mixed = F.scaled_dot_product_attention(query, key, value, is_causal=causal)
    return rms_norm(h + F.linear(mixed.transpose(1, 2).flatten(2), o_weight.to(h.dtype)), eps)
