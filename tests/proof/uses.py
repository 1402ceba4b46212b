"""Every op's launchers on meta tensors, at any batch size: what would be launched, without memory for it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from rtm_kernels.block import FusedTRMBlock, Stack
from rtm_kernels.ops.adam_atan2.reference import scalars
from rtm_kernels.ops.adam_atan2.sign_sgd import sign_sgd
from rtm_kernels.ops.attention_norm import steps
from rtm_kernels.ops.halting.launchers import halting_step
from rtm_kernels.ops.halting.reference import HaltingState
from rtm_kernels.ops.mixer_norm.backward import mixer_norm_backward
from rtm_kernels.ops.mixer_norm.forward import mixer_norm_forward
from rtm_kernels.ops.swiglu_norm.backward import swiglu_norm_backward
from rtm_kernels.ops.swiglu_norm.forward import swiglu_norm_forward
from rtm_kernels.ops.token_loss.kernels import token_loss_backward, token_loss_forward
from rtm_kernels.program import transformer
from rtm_kernels.recursion.head import HaltingHead
from rtm_kernels.recursion.persistent.pack import PackedWeights
from rtm_kernels.recursion.persistent.runner import PersistentRecursion

Strides = tuple[int, ...] | None


def meta(*shape: int, dtype: torch.dtype = torch.float32, strides: Strides = None) -> Tensor:
    """A tensor without memory."""
    if strides is None:
        return torch.empty(shape, dtype=dtype, device="meta")
    return torch.empty_strided(shape, strides, dtype=dtype, device="meta")


def swiglu_norm(batch: int, length: int, width: int, inner: int, terms: int, strides: Strides = None) -> None:
    """Forward and backward; x [B, L, D] and its terms of these strides."""
    x = meta(batch, length, width, strides=strides)
    weights, injection = (meta(2 * inner, width), meta(width, inner)), [x] * terms
    y, rstd = swiglu_norm_forward(x, *weights, injection, 1e-5)
    swiglu_norm_backward(y, y, rstd, x, *weights, injection, 1e-5)


def mixer_norm(batch: int, length: int, width: int, inner: int, terms: int, axis: str, strides: Strides = None) -> None:
    """Forward and backward; x [B, L, D] and its terms of these strides."""
    x = meta(batch, length, width, strides=strides)
    weights, injection = (meta(2 * inner, length), meta(length, inner)), [x] * terms
    y, rstd = mixer_norm_forward(x, *weights, injection, axis, 1e-5)
    mixer_norm_backward(y, y, rstd, x, *weights, injection, axis, 1e-5)


def attention_norm(batch: int, length: int, width: int, heads: int, terms: int, turned: bool) -> None:
    """Forward and backward, with QK-norm and RoPE if `turned`."""
    x, weights = meta(batch, length, width), (meta(3 * width, width), meta(width, width))
    table = meta(length, width // heads)
    options = ((table, table) if turned else None, heads, False, turned, 1e-5)
    y, rstd, h = steps.forward(x, [x] * terms, *weights, *options, use_flash=False)
    steps.backward(y, y, rstd, h if terms else x, *weights, *options)


def halting(batch: int, length: int, width: int, policy: str, pool: str) -> None:
    """One halting step; `settle` with answers."""
    units = length if pool == "token" else 1
    y, ints = meta(batch, length, width), partial(meta, dtype=torch.int32)
    numbers = [meta(batch, units) for _ in range(3)]
    state = HaltingState(ints(batch, units), meta(batch, units, dtype=torch.bool), *numbers)
    headed = policy not in ("settle", "fixed")
    logits = meta(batch, units, 2 if headed else 0)
    head = (meta(2, width), meta(2)) if headed else None
    latents = (y, ints(batch, length), ints(batch, length)) if policy == "settle" else None
    halting_step(state, y, logits, head, latents, policy, pool, 1e-3, 16, ints(batch))


def token_loss(batch: int, length: int, vocabulary: int, stablemax: bool, strides: Strides = None) -> None:
    """Forward and backward; logits [B, L, V] of these strides."""
    logits, labels = meta(batch, length, vocabulary, strides=strides), meta(batch, length, dtype=torch.int64)
    loss, _, _, saved = token_loss_forward(logits, labels, -100, stablemax)
    token_loss_backward(loss, saved, logits, labels, -100, stablemax)


def sparse(batch: int, rows: int, width: int) -> None:
    """Sign-SGD of B ids on a table [rows, D]."""
    sign_sgd(meta(rows, width), meta(batch, dtype=torch.int64), meta(batch, width), *scalars("meta", 1e-2, None), 0.1)


def persistent(
    batch: int, length: int, width: int, axis: str, policy: str, pool: str, grid: int = 1, launch: bool = True
) -> PersistentRecursion:
    """One ACT step of a program with one layer application."""
    with torch.device("meta"):
        stack = Stack([FusedTRMBlock(width, length, norm_axis=axis)])
        headed = {} if policy == "settle" else {"weight": torch.empty(2, width), "bias": torch.empty(2)}
        head = HaltingHead(policy, 16, pool=pool, **headed)
    program = transformer()
    weights = PackedWeights({name: stack for name in program.stacks}, torch.float32)
    recursion = PersistentRecursion(program, weights, batch, head=head, grid=grid)
    if launch:
        recursion.step()
    return recursion


def by_batch() -> dict[str, Callable[[int], None]]:
    """Every op and variant at the official sizes, as a function of the batch size alone."""
    return {
        "swiglu_norm": lambda b: swiglu_norm(b, 97, 512, 1536, 2),
        "swiglu_norm without injection": lambda b: swiglu_norm(b, 97, 512, 1536, 0),
        "swiglu_norm narrow": lambda b: swiglu_norm(b, 16, 48, 128, 1),
        "mixer_norm": lambda b: mixer_norm(b, 97, 512, 512, 2, "sequence"),
        "mixer_norm hidden": lambda b: mixer_norm(b, 97, 512, 512, 0, "hidden"),
        "mixer_norm long": lambda b: mixer_norm(b, 916, 512, 2560, 1, "sequence"),
        "attention_norm": lambda b: attention_norm(b, 97, 512, 8, 2, True),
        "attention_norm wide": lambda b: attention_norm(b, 97, 600, 4, 0, False),
        **{
            f"halting {policy} {pool}": partial(halting, length=97, width=512, policy=policy, pool=pool)
            for policy, pool in (("q", "first"), ("q_continue", "mean"), ("cumulative_token", "token"),
                                 ("settle", "first"), ("fixed", "first"))
        },
        "stablemax": lambda b: token_loss(b, 97, 11, True),
        "softmax": lambda b: token_loss(b, 97, 300, False),
        "sign_sgd": lambda b: sparse(b, 1000, 512),
        "persistent": lambda b: persistent(b, 97, 512, "sequence", "q", "first"),
        "persistent hidden": lambda b: persistent(b, 97, 512, "hidden", "cumulative_token", "token"),
    }  # fmt: skip
