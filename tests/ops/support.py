"""Inputs that the op tests and gates share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from rtm_kernels.ops.attention_norm.api import attention_norm
from rtm_kernels.ops.attention_norm.reference import rope_tables
from rtm_kernels.ops.swiglu_norm.api import mixer_norm, swiglu_norm

LAYOUTS = ("plain", "strided", "offset", "transposed", "expanded")
Leaves = tuple[Tensor, ...]
Call = Callable[..., Tensor]


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


def half_layer(name: str, shape: tuple[int, ...], terms: int = 0, inner: int = 24) -> tuple[Call, Leaves]:
    """A half layer as call(x, first weight, second weight, *injection, impl=), and its leaves for x of `shape`.

    Names: "channel", "mixer", "mixer hidden", "attention" (2 heads, RoPE), "attention qk_norm".
    """
    g = torch.Generator().manual_seed(0)
    x = laid_out(shape, "plain", g)
    if name.startswith("attention"):
        width = shape[-1]
        weights = [(torch.randn(n * width, width, generator=g) * width**-0.5).requires_grad_() for n in (3, 1)]
        tables = rope_tables(shape[1], width // 2, 100.0)
        op: Call = partial(attention_norm, num_heads=2, cos_sin=tables, qk_norm="qk_norm" in name, eps=EPS)
    else:
        weights = [*swiglu_weights(shape[-1 if name == "channel" else 1], inner, g).values()]
        axis = "hidden" if "hidden" in name else "sequence"
        op = swiglu_norm if name == "channel" else partial(mixer_norm, norm_axis=axis)
    injection = [laid_out(shape, "plain", g) for _ in range(terms)]

    def call(x: Tensor, first: Tensor, second: Tensor, *injection: Tensor, impl: str = "triton") -> Tensor:
        return op(x, first, second, injection=injection, impl=impl)

    return call, (x, *weights, *injection)


EPS = 2.0**-17
"""Exact in float32, as kernels get it."""


def gradients(out: Tensor, leaves: Leaves, **options: bool) -> Leaves:
    """Gradients of `out` under random upstream gradients."""
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(7)).to(out.dtype)
    return torch.autograd.grad(out, leaves, upstream, **options)


def to(tensors: Leaves, dtype: torch.dtype) -> Leaves:
    """Leaves with the same values in another dtype."""
    return tuple(t.detach().to(dtype).requires_grad_() for t in tensors)


def within_budget(got: Leaves, base: Leaves, truth: Leaves, band: float = 4 * torch.finfo(torch.float32).eps) -> None:
    """Each error against float64 is at most twice the reference's own, and a band of the truth's size."""
    for mine, theirs, right in zip(got, base, truth, strict=True):
        assert mine.dtype == theirs.dtype and mine.shape == theirs.shape
        error, budget = (mine.double() - right).norm(), 2 * (theirs.double() - right).norm()
        assert error <= budget + band * right.norm()
