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


def rope_tables_2d(
    rows: int, columns: int, head_dim: int, theta: float, device: torch.device | str | None = None
) -> tuple[Tensor, Tensor]:
    """Tables cos and sin [rows * columns, head_dim] of a grid, for channels in the order of `grid_order`.

    Officially the first half of a head is rotated by the row and the second by the column. In the order of
    `grid_order` both are one rotation of the whole head, by one angle for each channel.
    """
    (cos_r, sin_r), (cos_c, sin_c) = (rope_tables(n, head_dim // 2, theta, device) for n in (rows, columns))
    return grid_tables((cos_r, cos_c), (sin_r, sin_c))


def grid_tables(cos: tuple[Tensor, Tensor], sin: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """`rope_tables_2d` from tables [rows, head_dim / 2] and [columns, head_dim / 2]."""

    def table(row: Tensor, column: Tensor) -> Tensor:
        rows, columns, quarter = len(row), len(column), row.shape[1] // 2
        row = row[:, None, :quarter].expand(rows, columns, quarter)
        column = column[None, :, :quarter].expand(rows, columns, quarter)
        return torch.cat((row, column, row, column), dim=-1).flatten(0, 1)

    return table(*cos), table(*sin)


def grid_order(num_heads: int, head_dim: int, device: torch.device | str | None = None) -> Tensor:
    """Rows of an official qkv weight [3D, D] in the order that `rope_tables_2d` is for, int64 [3D].

    In each head of q and k the second and the third quarter change places; v keeps its order.
    """
    order = torch.arange(3 * num_heads * head_dim, device=device).view(3, num_heads, 4, head_dim // 4)
    order[:2] = order[:2, :, [0, 2, 1, 3]]
    return order.reshape(-1)


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`x cos + [-b, a] sin` with a and b the halves of x [B, L, heads, head_dim], in float32 or wider.

    The tables are [L, head_dim].
    """
    wide = x.to(torch.promote_types(x.dtype, cos.dtype))
    a, b = wide.chunk(2, dim=-1)
    return (wide * cos.unsqueeze(-2) + torch.cat((-b, a), dim=-1) * sin.unsqueeze(-2)).to(x.dtype)


def segment_bias(segments: Tensor, causal: bool, dtype: torch.dtype) -> Tensor:
    """A `bias` [B, 1, L, L] of attention, 0 or -inf: a query sees keys of its own number in `segments` [B, L], with
    `causal` none after it. Rows begin at multiples of 8 elements, as PyTorch's memory-efficient kernel reads them."""
    seen = segments[:, None, :, None] == segments[:, None, None, :]
    seen, length = seen.tril() if causal else seen, segments.shape[1]
    wide = seen.new_zeros((*seen.shape[:3], -(length // -8) * 8), dtype=dtype)
    return wide[..., :length].masked_fill_(~seen, -torch.inf)


def attention_norm(
    x: Tensor,
    qkv_weight: Tensor,
    o_weight: Tensor,
    *,
    num_heads: int,
    cos_sin: tuple[Tensor, Tensor] | None = None,
    causal: bool = False,
    bias: Tensor | None = None,
    qk_norm: bool = False,
    injection: tuple[Tensor, ...] = (),
    eps: float = 1e-5,
) -> Tensor:
    """`rms_norm(h + o_proj(softmax(q k^T / sqrt(head_dim)) v))` with `h = x + (sum of injection)`.

    x [B, L, D], weights [3D, D] and [D, D]. `qk_norm` applies a weightless RMSNorm over head_dim to q and k, before
    RoPE. `bias` [B, 1, L, L] is added to the logits, instead of the mask of `causal`.
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
    mixed = F.scaled_dot_product_attention(query, key, value, bias, is_causal=causal and bias is None)
    return rms_norm(h + F.linear(mixed.transpose(1, 2).flatten(2), o_weight.to(h.dtype)), eps)
