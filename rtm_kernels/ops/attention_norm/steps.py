"""Launch sequences of attention_norm, forward and backward, between its kernels and PyTorch's attention."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rtm_kernels.ops.attention_norm.backward import norm_backward, turn_backward
from rtm_kernels.ops.attention_norm.gemm_backward import input_grad, weight_grad
from rtm_kernels.ops.attention_norm.output import project_output
from rtm_kernels.ops.attention_norm.qkv import project_qkv

CosSin = tuple[Tensor, Tensor] | None


def two_terms(injection: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The injection as at most two contiguous terms, the leading ones summed from left to right."""
    terms = list(injection)
    while len(terms) > 2:
        terms[:2] = [terms[0] + terms[1]]
    return tuple(term.contiguous() for term in terms)


def sdpa(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    """`softmax(q k^T / sqrt(head_dim)) v`; [B, heads, L, head_dim]."""
    with _one_thread(query.device):
        return F.scaled_dot_product_attention(query, key, value, is_causal=causal)


def flash(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    """The same by the kernels of the flash_attn package."""
    from flash_attn import flash_attn_func

    mixed: Tensor = flash_attn_func(*(t.transpose(1, 2) for t in (query, key, value)), causal=causal)
    return mixed.transpose(1, 2)


def heads_of(qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v [B, heads, L, head_dim] as views of qkv [B, L, 3, heads, head_dim]."""
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    return query, key, value


def forward(
    x: Tensor, injection: Sequence[Tensor], qkv_weight: Tensor, o_weight: Tensor, cos_sin: CosSin,
    num_heads: int, causal: bool, qk_norm: bool, eps: float, use_flash: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """y [B, L, D], rstd [B, L], and h = x + injection [B, L, D], which is empty without an injection."""
    batch, length, width = x.shape
    x, terms = x.contiguous(), two_terms(injection)
    y = torch.empty_like(x)
    h = torch.empty_like(x) if terms else x.new_empty(0)
    rstd = x.new_empty(batch, length, dtype=torch.promote_types(x.dtype, torch.float32))
    if x.numel() == 0:
        return y, rstd, h
    qkv = x.new_empty(batch, length, 3, num_heads, width // num_heads)
    project_qkv(qkv, h, None, x, terms, cast(qkv_weight, x), cos_sin, eps, qk_norm)
    mixed = (flash if use_flash else sdpa)(*heads_of(qkv), causal)
    mixed = mixed.transpose(1, 2).reshape(-1, width)
    project_output(y.view(-1, width), rstd, mixed, (h if terms else x).view(-1, width), cast(o_weight, x), eps)
    return y, rstd, h


def slot_shapes(h: Tensor) -> list[tuple[int, ...]]:
    """Shapes of h, the gradient of qkv, the attention's output and the gradient of the row, of one call; rows first."""
    rows, width = h.shape[0] * h.shape[1], h.shape[2]
    return [(rows, width), (rows, 3 * width), (rows, width), (rows, width)]


def input_grad_step(
    dy: Tensor, y: Tensor, rstd: Tensor, h: Tensor, weight: Tensor, o_weight: Tensor, cos_sin: CosSin,
    num_heads: int, causal: bool, qk_norm: bool, eps: float, slots: Sequence[Tensor] = (),
) -> tuple[Tensor, Sequence[Tensor]]:  # fmt: skip
    """dh, and the rows that `weight_grad_step` reads, which are `slots` if given; weights in the compute dtype.

    q, k and v are recomputed from h, the attention through SDPA.
    """
    batch, length, width = h.shape
    head_dim = width // num_heads
    h = h.contiguous() if not slots else slots[0].view(h.shape).copy_(h)
    rows = [h.view(-1, width), *(slots[1:] or (h.new_empty(shape) for shape in slot_shapes(h)[1:]))]
    _, flat, mixed_rows, ds = rows
    qkv = h.new_empty(batch, length, 3, num_heads, head_dim)
    qk_rstd = rstd.new_empty(batch, length, 2, num_heads) if qk_norm else None
    project_qkv(qkv, h, qk_rstd, h, (), weight, cos_sin, eps, qk_norm)

    norm_backward(ds, dy.contiguous().view(-1, width), y.view(-1, width), rstd)
    d_mixed = torch.empty_like(ds)
    input_grad(d_mixed, ds, o_weight)
    mixed, d_qkv_heads = attention_grad(qkv, d_mixed.view(batch, length, num_heads, head_dim).transpose(1, 2), causal)
    mixed_rows.view(batch, length, num_heads, head_dim).copy_(mixed.transpose(1, 2))

    d_qkv = flat.view(qkv.shape)
    for i in range(2):
        scale = None if qk_rstd is None else qk_rstd[:, :, i]
        turn_backward(d_qkv[:, :, i], d_qkv_heads[i], qkv[:, :, i], scale, cos_sin)
    d_qkv[:, :, 2].copy_(d_qkv_heads[2].transpose(1, 2))
    dh = torch.empty_like(h)
    input_grad(dh.view(-1, width), flat, weight, ds)
    return dh, rows


def weight_grad_step(slots: Sequence[Tensor], qkv_dtype: torch.dtype, o_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """d_qkv_weight [3D, D] and d_o_weight [D, D] over all rows of the slots."""
    h, d_qkv, mixed, ds = slots
    return weight_grad(d_qkv, h, qkv_dtype), weight_grad(ds, mixed, o_dtype)


def backward(
    dy: Tensor, y: Tensor, rstd: Tensor, h: Tensor, qkv_weight: Tensor, o_weight: Tensor, cos_sin: CosSin,
    num_heads: int, causal: bool, qk_norm: bool, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """dh, d_qkv_weight and d_o_weight of one call."""
    if h.numel() == 0:
        return torch.empty_like(h), torch.zeros_like(qkv_weight), torch.zeros_like(o_weight)
    weights = cast(qkv_weight, h), cast(o_weight, h)
    dh, rows = input_grad_step(dy, y, rstd, h, *weights, cos_sin, num_heads, causal, qk_norm, eps)
    return dh, *weight_grad_step(rows, qkv_weight.dtype, o_weight.dtype)


def attention_grad(qkv: Tensor, d_mixed: Tensor, causal: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
    """SDPA's output and its gradients of q, k and v, all [B, heads, L, head_dim], deterministic."""
    with _recording(), _deterministic(), _one_thread(qkv.device):
        query, key, value = (t.detach().requires_grad_() for t in heads_of(qkv))
        mixed = sdpa(query, key, value, causal)
        return mixed.detach(), torch.autograd.grad(mixed, (query, key, value), d_mixed)


@contextmanager
def _recording() -> Iterator[None]:
    """Record gradients within a registered op, below which PyTorch leaves autograd out."""
    keys = torch._C.DispatchKey
    with ExitStack() as stack:
        for key in (keys.AutogradFunctionality, keys.ADInplaceOrView):
            stack.enter_context(torch._C._SetExcludeDispatchKeyGuard(key, False))
        stack.enter_context(torch.enable_grad())
        yield


@contextmanager
def _deterministic() -> Iterator[None]:
    """PyTorch's deterministic kernels, without its filling of new memory where that was not asked for."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    filling = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.fill_uninitialized_memory = before[0] and filling
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        memory.fill_uninitialized_memory = filling


@contextmanager
def _one_thread(device: torch.device) -> Iterator[None]:
    """On a CPU, where the interpreter runs, PyTorch would split the sums of a product by the number of its threads."""
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if device.type == "cpu":
            torch.set_num_threads(before)


def cast(weight: Tensor, like: Tensor) -> Tensor:
    """The weight, contiguous, in the compute dtype."""
    return weight.detach().to(like.dtype).contiguous()
