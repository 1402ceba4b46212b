"""attention_norm: the public function of the op."""

from __future__ import annotations

from torch import Tensor

from rtm_kernels.impl import resolve
from rtm_kernels.ops.attention_norm import reference


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
    attention: str = "sdpa",
    impl: str = "auto",
) -> Tensor:
    """`rms_norm(h + attention(h))` with `h = x + (sum of injection)`; x [B, L, D]."""
    resolve(impl, x.device)
    return reference.attention_norm(
        x, qkv_weight, o_weight, num_heads=num_heads, cos_sin=cos_sin, causal=causal, qk_norm=qk_norm,
        injection=injection, eps=eps,
    )  # fmt: skip
