"""Registration of the token losses with PyTorch: the opaque ops, their fakes and autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


@torch.library.custom_op("rtm_kernels::token_loss", mutates_args=())
def token_loss_op(
    logits: Tensor, labels: Tensor, ignore_index: int, stablemax: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """loss [B, L], predictions [B, L], counts [B, 2], and what the backward needs."""
    from rtm_kernels.ops.token_loss import kernels

    with torch.cuda.device_of(logits):
        return kernels.token_loss_forward(logits, labels, ignore_index, stablemax)


@token_loss_op.register_fake
def _(logits, labels, ignore_index, stablemax):  # type: ignore
    batch, length, _ = logits.shape
    wide = torch.promote_types(logits.dtype, torch.float32)
    loss = logits.new_empty(batch, length, dtype=wide)
    predictions = logits.new_empty(batch, length, dtype=torch.int64)
    counts = logits.new_empty(batch, 2, dtype=torch.int64)
    return loss, predictions, counts, logits.new_empty(1 if stablemax else 2, batch * length, dtype=wide)


@torch.library.custom_op("rtm_kernels::token_loss_backward", mutates_args=())
def token_loss_backward_op(
    d_loss: Tensor, saved: Tensor, logits: Tensor, labels: Tensor, ignore_index: int, stablemax: bool
) -> Tensor:
    """d_logits [B, L, V]."""
    from rtm_kernels.ops.token_loss import kernels

    with torch.cuda.device_of(logits):
        return kernels.token_loss_backward(d_loss, saved, logits, labels, ignore_index, stablemax)


@token_loss_backward_op.register_fake
def _(d_loss, saved, logits, labels, ignore_index, stablemax):  # type: ignore
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, labels, *ctx.options = inputs
    _, predictions, counts, saved = output
    ctx.save_for_backward(saved, logits, labels)
    ctx.mark_non_differentiable(predictions, counts, saved)


def _backward(ctx: Any, d_loss: Tensor, *unused: Any) -> tuple[Any, ...]:
    return token_loss_backward_op(d_loss, *ctx.saved_tensors, *ctx.options), None, None, None


torch.library.register_autograd(token_loss_op, _backward, setup_context=_setup_context)
