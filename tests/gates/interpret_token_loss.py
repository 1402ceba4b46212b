"""Cases of the token losses for the interpreter gate."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from rtm_kernels.ops.token_loss.api import LOSSES, token_loss
from tests.gates.interpret_gate import OpCase, Tensors
from tests.ops.support import laid_out

CASES = (  # shape of the logits, layout, scale of the logits, share of ignored labels
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


def _make(shape: tuple[int, ...], layout: str, scale: float, ignored: float, g: torch.Generator) -> dict[str, Tensor]:
    logits = laid_out(shape, layout, g).detach().mul_(scale).requires_grad_()
    labels = torch.randint(0, shape[2], shape[:2], generator=g)
    labels[torch.rand(shape[:2], generator=g) < ignored] = -100
    return {"logits": logits, "labels": labels}


def _call(loss: str, impl: str, t: Tensors) -> tuple[Tensor, ...]:
    found = token_loss(t["logits"], t["labels"], loss=loss, impl=impl)
    wide = torch.promote_types(t["logits"].dtype, torch.float32)
    return found.loss.to(wide), *found[1:]  # the stablemax reference gives float64


def case(shape: tuple[int, ...], layout: str, scale: float, ignored: float, loss: str) -> OpCase:
    """One configuration."""
    name = f"{list(shape)} {layout} scale={scale:g} ignored={ignored} {loss.split('_')[0]}"
    return OpCase("token_loss", name, partial(_make, shape, layout, scale, ignored), partial(_call, loss))


def interpret_cases() -> Iterator[OpCase]:
    """Both losses at official, odd, tiny and empty sizes, small and huge logits, every layout."""
    return (case(*row, loss) for row in CASES for loss in LOSSES)
