"""Stablemax and softmax cross entropy per token: the public functions of the op."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from rtm_kernels.errors import one_of, require
from rtm_kernels.ops.launch import choose
from rtm_kernels.ops.token_loss import reference
from rtm_kernels.ops.token_loss.reference import IGNORE_INDEX

LOSSES = ("stablemax_cross_entropy", "softmax_cross_entropy")
"""Official names of the losses, as `loss_type` in their configurations."""


class TokenLoss(NamedTuple):
    """What one pass over the logits gives."""

    loss: Tensor
    """[B, L], 0 at ignored labels, differentiable in the logits. float32 (float64 for float64 logits); the stablemax
    reference gives float64, as the official code does."""
    predictions: Tensor
    """[B, L] int64, the argmax; the first of equal logits."""
    labelled: Tensor
    """[B] int64, tokens with a label."""
    correct: Tensor
    """[B] int64, labelled tokens whose prediction is the label."""

    def total(self, weight: Tensor | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """Sum over the batch of each sample's mean loss over labelled tokens, weighted by `weight` [B, L or 1].

        `dtype` is that of the sum, by default that of the loss.
        """
        losses = self.loss if weight is None else self.loss * weight
        return (losses / self.labelled.clamp_min(1).unsqueeze(-1)).sum(dtype=dtype)

    @property
    def token_accuracy(self) -> Tensor:
        """[B] float32, correct / labelled; 0 for a sample without labels."""
        return self.correct.to(torch.float32) / self.labelled.clamp_min(1)

    @property
    def exact(self) -> Tensor:
        """[B] bool, whether every labelled token is correct (exact accuracy)."""
        return self.correct == self.labelled


def token_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    loss: str = "stablemax_cross_entropy",
    ignore_index: int = IGNORE_INDEX,
    impl: str = "auto",
) -> TokenLoss:
    """Cross entropy of every token with its argmax and each sample's counts, from one pass over the logits.

    `stablemax_cross_entropy`: `log(sum s(x) / s(x[label]))` with `s(x) = x + 1` for x >= 0 and `1 / (1 - x)` below;
    `softmax_cross_entropy`: the same with `s = exp`. logits [B, L, V] of a float dtype and any strides, |x| < 1e30;
    labels [B, L] integer, in 0..V-1 or `ignore_index`. The kernels compute in float32 and are as accurate as the
    float64 reference rounded to float32; they give NaN for a label that is out of range, which the reference refuses.

    Errors: `InputError` naming the argument; `BackendUnavailable` for a named `impl` that cannot run here.
    Source: models/losses.py of the TRM repository; arXiv 2501.04697 (stablemax).
    """
    one_of("loss", loss, LOSSES)
    require(logits.dim() == 3 and logits.shape[2] >= 1, "logits.shape", tuple(logits.shape), "[B, L, V] with V >= 1")
    require(logits.is_floating_point(), "logits.dtype", logits.dtype, "a float dtype")
    shape = tuple(logits.shape[:2])
    require(tuple(labels.shape) == shape, "labels.shape", tuple(labels.shape), f"{shape}, [B, L] of the logits")
    integer = labels.dtype in (torch.int8, torch.int16, torch.int32, torch.int64)
    require(integer, "labels.dtype", labels.dtype, "a signed integer dtype")
    require(labels.device == logits.device, "labels.device", labels.device, f"the logits' device, {logits.device}")
    stablemax = loss == "stablemax_cross_entropy"
    if choose(impl, logits.device, logits.dtype) == "triton":
        losses, predictions, counts, _ = token_loss_op(logits, labels, ignore_index, stablemax)
    else:
        function = reference.stablemax_cross_entropy if stablemax else reference.softmax_cross_entropy
        losses, predictions = function(logits, labels, ignore_index), logits.argmax(-1)
        counts = reference.token_counts(predictions, labels, ignore_index)
    return TokenLoss(losses, predictions, counts[:, 0], counts[:, 1])


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
