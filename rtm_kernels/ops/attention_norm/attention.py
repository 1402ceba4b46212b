"""The attention between attention_norm's kernels, by PyTorch or the package flash_attn, and its gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rtm_kernels.ops.attention_norm.reference import attention_mask


def sdpa(query: Tensor, key: Tensor, value: Tensor, causal: bool, segments: Tensor | None = None) -> Tensor:
    """`softmax(q k^T / sqrt(head_dim)) v`; [B, heads, L, head_dim], within the `segments` [B, L]."""
    mask = None if segments is None else attention_mask(segments, causal)
    with _one_thread(query.device):
        return F.scaled_dot_product_attention(query, key, value, mask, is_causal=causal and mask is None)


def flash(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    """The same by the kernels of the flash_attn package."""
    from flash_attn import flash_attn_func

    mixed: Tensor = flash_attn_func(*(t.transpose(1, 2) for t in (query, key, value)), causal=causal)
    return mixed.transpose(1, 2)


def heads_of(qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v [B, heads, L, head_dim] as views of qkv [B, L, 3, heads, head_dim]."""
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    return query, key, value


def attention_grad(
    qkv: Tensor, d_mixed: Tensor, causal: bool, segments: Tensor | None = None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """SDPA's output and its gradients of q, k and v, all [B, heads, L, head_dim], deterministic."""
    with _recording(), _deterministic(), _one_thread(qkv.device):
        query, key, value = (t.detach().requires_grad_() for t in heads_of(qkv))
        mixed = sdpa(query, key, value, causal, segments)
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
