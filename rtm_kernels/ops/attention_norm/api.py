"""attention_norm: the public function of the op."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from rtm_kernels.errors import BackendUnavailable, InputError, one_of, require
from rtm_kernels.ops.attention_norm import reference
from rtm_kernels.ops.attention_norm.launch import FLASH_KEYS
from rtm_kernels.ops.attention_norm.op import SHARED, attention_norm_op
from rtm_kernels.ops.launch import check_latent, check_weight, choose, to_autocast_dtype
from rtm_kernels.ops.shared import recursion
from rtm_kernels.ranges import ranged

ATTENTION = ("auto", "sdpa", "flash")
FLASH_DTYPES = (torch.float16, torch.bfloat16)
MAX_HEAD_DIM = 256


@ranged("attention_norm")
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
    attention: str = "auto",
    impl: str = "auto",
) -> Tensor:
    """`rms_norm(h + o_proj(attention(rope(qkv(h)))))` with `h = x + (sum of injection)`; differentiable.

    x and each injection term [B, L, D] of one dtype; qkv_weight [3D, D] and o_weight [D, D] of any float dtype, cast
    to x's; `cos_sin` two tables [L, D / num_heads] for RoPE, or None. `qk_norm` normalises q and k over each head.
    `bias` [B, 1, L, L] of x's dtype, e.g. of `segment_bias`, is added to the logits instead of the mask of `causal`.
    The RMSNorms have no weight. Under autocast x takes the autocast dtype. The forward attention runs on PyTorch's
    memory-efficient kernel ("sdpa") or on the flash_attn package, by name or, with `attention="auto"`, as
    `why_not_flash` says.
    Memory: the backward keeps h, y and one scale per row, and recomputes q, k, v and the attention.

    Errors: `InputError` naming the argument that does not fit; `BackendUnavailable` for an `impl` or `attention`
    asked for by name that cannot run here.
    Source: TinyRecursiveModels `models/layers.py` (Attention) and `models/recursive_reasoning/trm.py` (the block).
    """
    x, injection = to_autocast_dtype(x, injection)
    _check(x, qkv_weight, o_weight, num_heads, cos_sin, injection, eps)
    one_of("attention", attention, ATTENTION)
    chosen = choose(impl, x.device, x.dtype)
    if bias is not None:
        (batch, length, _), shape = x.shape, tuple(bias.shape)
        require(shape == (batch, 1, length, length), "bias.shape", shape, f"{(batch, 1, length, length)}, [B, 1, L, L]")
        require((bias.dtype, bias.device) == (x.dtype, x.device), "bias", bias.dtype, f"{x.dtype} on {x.device}, as x")
        require(attention != "flash", "attention", attention, "auto or sdpa with a bias")
    elif attention == "flash":
        _require_flash(x, chosen)
    flash = attention == "flash" or (attention == "auto" and chosen == "triton" and why_not_flash(x, num_heads) is None)
    flash = flash and bias is None
    if chosen == "triton":
        require(x.shape[2] // num_heads <= MAX_HEAD_DIM, "head_dim", x.shape[2] // num_heads, f"at most {MAX_HEAD_DIM}")
        cos, sin = (None, None) if cos_sin is None else (t.contiguous() for t in cos_sin)
        options = (cos, sin, bias, num_heads, causal, qk_norm, eps, flash)
        if (shared := recursion()) is not None:
            return shared.call(SHARED, x, injection, (qkv_weight, o_weight), options)
        y: Tensor = attention_norm_op(x, qkv_weight, o_weight, injection, *options)[0]
        return y
    return reference.attention_norm(
        x, qkv_weight, o_weight, num_heads=num_heads, cos_sin=cos_sin, causal=causal, bias=bias,
        qk_norm=qk_norm, injection=injection, eps=eps,
    )  # fmt: skip


def _check(
    x: Tensor, qkv_weight: Tensor, o_weight: Tensor, num_heads: int, cos_sin: tuple[Tensor, Tensor] | None,
    injection: tuple[Tensor, ...], eps: float,
) -> None:  # fmt: skip
    require(x.dim() == 3, "x.shape", tuple(x.shape), "[B, L, D]")
    check_latent(x, injection, eps)
    length, width = x.shape[1], x.shape[2]
    require(num_heads >= 1 and width % num_heads == 0, "num_heads", num_heads, f"a divisor of D={width}")
    head_dim = width // num_heads
    check_weight(x, "qkv_weight", qkv_weight, (3 * width, width), f"D={width}")
    check_weight(x, "o_weight", o_weight, (width, width), f"D={width}")
    if cos_sin is not None:
        require(head_dim % 2 == 0, "head_dim", head_dim, "even, for RoPE pairs its two halves")
        for name, table in zip(("cos", "sin"), cos_sin, strict=True):
            shape = (length, head_dim)
            require(tuple(table.shape) == shape, f"{name}.shape", tuple(table.shape), f"{shape}, [L, head_dim]")
            require(table.device == x.device, f"{name}.device", table.device, f"the device of x, {x.device}")


def why_not_flash(x: Tensor, num_heads: int) -> str | None:
    """Why `attention="auto"` runs the attention of x [B, L, D] on PyTorch's kernel, or None where it takes flash_attn.

    It takes flash_attn where that is installed, x is float16 or bfloat16 on CUDA, and the shape is in
    `launch.FLASH_KEYS`; never by the batch.
    """
    if not _has_flash():
        return "the package flash_attn is not installed"
    if x.device.type != "cuda":
        return f"the tensors are on {x.device.type}, and flash_attn needs a CUDA device"
    if x.dtype not in FLASH_DTYPES:
        return f"flash_attn computes in float16 or bfloat16, not in {x.dtype}"
    length, head_dim = x.shape[1], x.shape[2] // num_heads
    longest = next((keys for largest, keys in FLASH_KEYS.items() if head_dim <= largest), 0)
    if length > longest:
        return f"with heads of {head_dim} flash_attn may split more than {longest} keys by the batch, and L = {length}"
    return None


def _require_flash(x: Tensor, chosen: str) -> None:
    if not _has_flash():
        raise BackendUnavailable("attention='flash' cannot run: the package flash_attn is not installed")
    if chosen != "triton" or x.device.type != "cuda":
        raise BackendUnavailable(f"attention='flash' needs impl='triton' on CUDA, not {chosen} on {x.device}")
    if x.dtype not in FLASH_DTYPES:
        raise InputError(f"x.dtype={x.dtype} is not allowed: attention='flash' computes in float16 or bfloat16")


@torch.compiler.assume_constant_result
def _has_flash() -> bool:
    return importlib.util.find_spec("flash_attn") is not None
