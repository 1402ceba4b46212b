"""Inputs that the op tests and gates share."""

from __future__ import annotations

import torch
from torch import Tensor

LAYOUTS = ("plain", "strided", "offset", "transposed", "expanded")


def laid_out(shape: tuple[int, ...], layout: str, generator: torch.Generator) -> Tensor:
    """A float32 leaf of random values in one of `LAYOUTS`: gaps in its rows, offset by one element, last two axes
    swapped in memory, or the first axis repeated with stride 0."""
    if layout == "plain":
        x = torch.randn(shape, generator=generator)
    elif layout == "strided":
        x = torch.randn(*shape[:-1], 2 * shape[-1] + 1, generator=generator)[..., 1::2][..., : shape[-1]]
    elif layout == "offset":
        x = torch.randn(torch.Size(shape).numel() + 1, generator=generator)[1:].view(shape)
    elif layout == "transposed":
        x = torch.randn(*shape[:-2], shape[-1], shape[-2], generator=generator).transpose(-1, -2)
    elif layout == "expanded":
        x = torch.randn(1, *shape[1:], generator=generator).expand(shape)
    else:
        raise ValueError(layout)
    return x.detach().requires_grad_()


def swiglu_weights(features: int, inner: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Weights scaled so that gate and up have standard deviation near 1 on standard normal rows."""
    gate_up = torch.randn(2 * inner, features, generator=generator) * features**-0.5
    down = torch.randn(features, inner, generator=generator) * inner**-0.5
    return {"gate_up_weight": gate_up.requires_grad_(), "down_weight": down.requires_grad_()}
