"""The maths that the ops' references share, in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def inject_sum(x: Tensor, injection: tuple[Tensor, ...] = ()) -> Tensor:
    """`x + (i0 + i1 + ...)`: the injection is summed first, from left to right."""
    if not injection:
        return x
    total = injection[0]
    for term in injection[1:]:
        total = total + term
    return x + total


def rms_norm(x: Tensor, eps: float) -> Tensor:
    """`x * rsqrt(mean(x^2) + eps)` over the last axis, without a weight; statistics in float32 or wider."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    variance = wide.square().mean(-1, keepdim=True)
    return (wide * torch.rsqrt(variance + eps)).to(x.dtype)


def swiglu(x: Tensor, gate_up_weight: Tensor, down_weight: Tensor) -> Tensor:
    """`down(silu(gate(x)) * up(x))` over the last axis; weights [2F, N] and [N, F] are cast to x's dtype."""
    gate, up = F.linear(x, gate_up_weight.to(x.dtype)).chunk(2, dim=-1)
    return F.linear(F.silu(gate) * up, down_weight.to(x.dtype))
