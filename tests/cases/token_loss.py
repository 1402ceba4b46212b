"""The token losses of logits [B, L, V]."""

from __future__ import annotations

import random
from functools import partial

import torch
from torch import Tensor

from rtm_kernels.ops.token_loss.api import LOSSES, token_loss
from rtm_kernels.ops.token_loss.kernels import TABLE, token_loss_backward, token_loss_forward
from tests.cases.case import HALVES, Case, Op, Strides, Tensors, Tuned, latent_shape, meta
from tests.ops.support import LAYOUTS, laid_out

STABLEMAX = LOSSES[0]
SMALL = (((3, 67, 11), "plain", 3.0, 0.3), ((2, 5, 70), "transposed", 10.0, 0.2))
GATE = (  # shape of the logits, layout, scale of the logits, share of ignored labels
    ((3, 97, 11), "plain", 4.0, 0.3),
    ((2, 81, 12), "strided", 1.0, 0.0),
    ((1, 130, 6), "offset", 1e4, 0.5),
    ((2, 7, 100), "transposed", 10.0, 0.2),
    ((2, 5, 130), "plain", 100.0, 0.2),
    ((3, 1, 1), "plain", 1.0, 0.0),
    ((2, 4, 5), "plain", 1e-4, 1.0),
    ((0, 9, 11), "plain", 1.0, 0.0),
    ((2, 0, 11), "plain", 1.0, 0.0),
    ((4, 9, 17), "transposed", 3.0, 0.1),
    ((1, 65, 16), "plain", 0.1, 0.1),
    ((1, 3, 257), "strided", 2.0, 0.3),
)
LAUNCHES = ((11, torch.bfloat16), (11, torch.float32), (100, torch.bfloat16), (32000, torch.float32))
"""A puzzle's vocabulary, a middle one and a language model's."""


def _make(shape: tuple[int, ...], layout: str, scale: float, ignored: float, g: torch.Generator) -> dict[str, Tensor]:
    logits = laid_out(shape, layout, g).detach().mul_(scale).requires_grad_()
    labels = torch.randint(0, shape[2], shape[:2], generator=g)
    labels[torch.rand(shape[:2], generator=g) < ignored] = -100
    return {"logits": logits, "labels": labels}


def _call(loss: str, impl: str, t: Tensors) -> tuple[Tensor, ...]:
    return tuple(token_loss(t["logits"], t["labels"], loss=loss, impl=impl))


def loss(shape: tuple[int, ...], layout: str, scale: float, ignored: float, which: str = STABLEMAX) -> Case:
    """A token loss at one size."""
    name = f"{list(shape)} {layout} scale={scale:g} ignored={ignored} {which.split('_')[0]}"
    return Case("token_loss", name, partial(_make, shape, layout, scale, ignored), partial(_call, which))


def launch_loss(
    batch: int, length: int, vocabulary: int, stablemax: bool, dtype: torch.dtype = torch.float32,
    strides: Strides = None,
) -> None:  # fmt: skip
    """Forward and backward on meta tensors; the logits have these strides."""
    logits = meta(batch, length, vocabulary, dtype=dtype, strides=strides)
    labels = meta(batch, length, dtype=torch.int64)
    found, _, _, saved = token_loss_forward(logits, labels, -100, stablemax)
    token_loss_backward(found, saved, logits, labels, -100, stablemax)


def draw(rng: random.Random) -> tuple[Case, torch.dtype]:
    layout = rng.choice([name for name in LAYOUTS if name != "expanded"])  # the logits are scaled in place
    row = (layout, rng.choice((0.1, 1.0, 10.0, 100.0)), rng.choice((0.0, 0.3, 1.0)), rng.choice(LOSSES))
    return loss(latent_shape(rng), *row), rng.choice(HALVES)


OP = Op(
    gate=[loss(*row, which) for row in GATE for which in LOSSES],
    small=[loss(*row, which) for row in SMALL for which in LOSSES],
    drawn=[draw],
    launched={
        f"token_loss V={size} {'stablemax' if stable else 'softmax'} {str(dtype)[6:]}":
            partial(launch_loss, 4, 97, size, stable, dtype)
        for size, dtype in LAUNCHES for stable in (True, False)
    },
    by_batch={
        "stablemax": lambda b: launch_loss(b, 97, 11, True),
        "softmax": lambda b: launch_loss(b, 97, 300, False),
    },
    tuned=[Tuned("token_loss", lambda b: loss((b, 81, 11), "plain", 1.0, 0.0), 768, gradient=True)],
    tables={"token_loss": TABLE},
)  # fmt: skip
