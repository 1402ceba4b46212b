"""The attention between attention_norm's kernels and its gradients, with the same bits in every run and in any batch.

On a GPU it is PyTorch's memory-efficient kernel, asked for by name. One program takes a block of queries of one head
and reads all keys in order; the backward keeps that order with `num_splits_key=1`. `scaled_dot_product_attention` would
choose among kernels instead: flash splits the keys by how many samples there are and adds gradients in any order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

aten: Any = torch.ops.aten

MULTIPLE = 8
"""The memory-efficient kernel reads heads and masks of a multiple of 16 bytes in every dtype; others are padded."""


def sdpa(qkv: Tensor, causal: bool, bias: Tensor | None = None) -> Tensor:
    """`softmax(q k^T / sqrt(head_dim)) v` [B, L, heads, head_dim] of qkv [B, L, 3, heads, head_dim].

    `bias` [B, 1, L, L] is added to the logits, instead of the mask of `causal`.
    """
    bias, causal = _masks(qkv, causal, bias)
    return _attend(_heads(qkv), qkv.shape[-1], causal, bias)[0][..., : qkv.shape[-1]]


def flash(qkv: Tensor, causal: bool) -> Tensor:
    """The same by the kernels of the flash_attn package."""
    from flash_attn import flash_attn_func

    mixed: Tensor = flash_attn_func(*qkv.unbind(2), causal=causal)
    return mixed


def sdpa_grad(qkv: Tensor, d_mixed: Tensor, causal: bool, bias: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
    """`sdpa`, and from the gradient of its output those of q, k and v, all [B, L, heads, head_dim]."""
    heads, size, length = _heads(qkv), qkv.shape[-1], qkv.shape[1]
    bias, causal = _masks(qkv, causal, bias)
    mixed, saved = _attend(heads, size, causal, bias)
    d_padded = _padded(d_mixed)
    if _on_gpu(qkv):
        found = aten._efficient_attention_backward(
            d_padded, *heads, bias, mixed, None, None, length, length, saved[0], 0.0, *saved[1:], int(causal), False,
            scale=size**-0.5, num_splits_key=1,
        )[:3]  # fmt: skip
    else:
        given = (t.transpose(1, 2) for t in (d_padded, *heads, mixed))
        with _one_thread():
            found = aten._scaled_dot_product_flash_attention_for_cpu_backward(
                *given, *saved, 0.0, causal, attn_mask=bias, scale=size**-0.5
            )
        found = [t.transpose(1, 2) for t in found]
    return mixed[..., :size], [t[..., :size] for t in found]


def _attend(heads: Sequence[Tensor], size: int, causal: bool, bias: Tensor | None) -> tuple[Tensor, Sequence[Tensor]]:
    """The output for padded q, k and v [B, L, heads, head_dim], padded too, and what its backward reads besides."""
    if _on_gpu(heads[0]):
        mixed, *saved = aten._efficient_attention_forward(
            *heads, bias, *[None] * 4, 0.0, int(causal), compute_log_sumexp=True, scale=size**-0.5
        )[:4]
        return mixed, saved
    with _one_thread():
        mixed, *saved = aten._scaled_dot_product_flash_attention_for_cpu(
            *(t.transpose(1, 2) for t in heads), 0.0, causal, attn_mask=bias, scale=size**-0.5
        )
    return mixed.transpose(1, 2), saved


def _masks(qkv: Tensor, causal: bool, bias: Tensor | None) -> tuple[Tensor | None, bool]:
    """The bias [B, heads, L, L], and whether the kernel is to mask later keys itself."""
    return (None, causal) if bias is None else (bias.expand(-1, qkv.shape[3], -1, -1), False)


def _on_gpu(t: Tensor) -> bool:
    return t.device.type == "cuda"


def _heads(qkv: Tensor) -> list[Tensor]:
    return [_padded(t) for t in qkv.unbind(2)]


def _padded(t: Tensor) -> Tensor:
    missing = -t.shape[-1] % MULTIPLE
    return F.pad(t, (0, missing)) if missing else t


@contextmanager
def _one_thread() -> Iterator[None]:
    """On a CPU, where the interpreter runs, PyTorch would split the sums of a product by the number of its threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
