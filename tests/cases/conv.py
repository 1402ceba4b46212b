"""conv_swiglu_norm of latents [B, L, D], along the sequence or over a grid."""

from __future__ import annotations

import random
from functools import partial

import torch
from torch import Tensor

from rtm_kernels.ops.conv_swiglu_norm.api import conv_swiglu_norm
from rtm_kernels.ops.conv_swiglu_norm.kernels import conv_hidden_backward, conv_hidden_forward
from rtm_kernels.ops.conv_swiglu_norm.launch import TABLE
from tests.cases.case import HALVES, Case, Op, Tensors, Tuned, meta
from tests.ops.support import LAYOUTS, laid_out, swiglu_weights

Size = tuple[int, int, int, int]
"""B, L, D and F."""
GATE: tuple[tuple[Size, tuple[int, ...], int, str, int], ...] = (  # size, convolution, prefix, layout, injected terms
    ((2, 13, 32, 40), (2,), 0, "plain", 1),
    ((3, 97, 16, 24), (2,), 0, "strided", 0),
    ((1, 7, 9, 70), (3,), 2, "offset", 2),
    ((2, 1, 8, 8), (2,), 0, "plain", 0),
    ((2, 81, 24, 32), (3, 3), 0, "transposed", 1),
    ((1, 25, 16, 96), (3, 3), 0, "plain", 2),
    ((2, 67, 12, 33), (3, 3), 3, "strided", 1),
    ((1, 49, 8, 8), (5, 5), 0, "expanded", 0),
    ((2, 4, 5, 7), (3, 3), 0, "plain", 1),
    ((1, 1, 3, 5), (3, 3), 0, "plain", 0),
    ((2, 3, 8, 8), (3, 3), 2, "plain", 0),
    ((2, 2, 8, 8), (3, 3), 2, "plain", 0),
    ((0, 9, 8, 8), (3, 3), 0, "plain", 0),
    ((2, 0, 8, 8), (2,), 0, "plain", 0),
)
SMALL = (GATE[0], GATE[6])
LAUNCHES = (
    ((4, 97, 512, 1536), (2,), 0, torch.bfloat16), ((4, 900, 48, 96), (3, 3), 0, torch.bfloat16),
    ((4, 900, 32, 24), (3, 3), 0, torch.float32),
)  # fmt: skip


def _make(size: Size, conv: tuple[int, ...], layout: str, terms: int, g: torch.Generator) -> dict[str, Tensor]:
    batch, length, width, inner = size
    tensors = {"x": laid_out((batch, length, width), layout, g)} | swiglu_weights(width, inner, g)
    taps = torch.Size(conv).numel()
    tensors["conv_weight"] = (torch.randn(inner, 1, *conv, generator=g) * taps**-0.5).requires_grad_()
    tensors["conv_bias"] = torch.randn(inner, generator=g).requires_grad_()
    return tensors | {f"i{n}": laid_out((batch, length, width), "plain", g) for n in range(terms)}


def _call(prefix: int, terms: int, impl: str, t: Tensors) -> Tensor:
    return conv_swiglu_norm(
        t["x"], t["gate_up_weight"], t["conv_weight"], t["conv_bias"], t["down_weight"],
        injection=tuple(t[f"i{n}"] for n in range(terms)), prefix=prefix, impl=impl,
    )  # fmt: skip


def conv(size: Size, width: tuple[int, ...], prefix: int, layout: str, terms: int) -> Case:
    """The op at one size."""
    name = f"{list(size)} {'x'.join(map(str, width))} prefix={prefix} {layout} terms={terms}"
    return Case("conv_swiglu_norm", name, partial(_make, size, width, layout, terms), partial(_call, prefix, terms))


def launch_conv(size: Size, width: tuple[int, ...], prefix: int, dtype: torch.dtype = torch.float32) -> None:
    """Forward and backward of the kernels on meta tensors."""
    batch, length, _, inner = size
    z, weight, bias = meta(batch, length, 2 * inner, dtype=dtype), meta(inner, 1, *width), meta(inner)
    conv_hidden_backward(conv_hidden_forward(z, weight, bias, prefix), z, weight, bias, prefix)


def draw(rng: random.Random) -> tuple[Case, torch.dtype]:
    grid, prefix = rng.random() < 0.6, rng.choice((0, 0, 1, 3))
    side = rng.choice((1, 2, 3, 5, 8, 11))
    length = prefix + side * side if grid else rng.choice((1, 2, 5, 16, 33, 65))
    k = rng.choice((1, 3, 5) if grid else (1, 2, 3, 4))
    # of less channels a norm hides most of the sum: what is left is rounding, that of the products included
    size = (rng.choice((1, 2, 3)), length, rng.choice((12, 17, 24)), rng.choice((16, 33, 70)))
    case = conv(size, (k, k) if grid else (k,), prefix if grid else 0, rng.choice(LAYOUTS), rng.choice((0, 1, 2)))
    return case, rng.choice(HALVES)


OP = Op(
    gate=[conv(*row) for row in GATE],
    small=[conv(*row) for row in SMALL],
    drawn=[draw],
    launched={
        f"conv_swiglu_norm F={size[3]} {'x'.join(map(str, width))} {str(dtype)[6:]}":
            partial(launch_conv, size, width, prefix, dtype)
        for size, width, prefix, dtype in LAUNCHES
    },
    by_batch={
        "sequence": lambda b: launch_conv((b, 97, 512, 1536), (2,), 0),
        "grid": lambda b: launch_conv((b, 900, 48, 96), (3, 3), 0),
    },
    tuned=[
        Tuned("conv_swiglu_norm", lambda b: conv((b, 900, 48, 96), (3, 3), 0, "plain", 1), 256, gradient=True),
        Tuned("conv_swiglu_norm URM", lambda b: conv((b, 82, 512, 1536), (2,), 0, "plain", 1), 256, gradient=True),
    ],
    tables={"conv_swiglu_norm": TABLE},
)  # fmt: skip
