"""attention_norm of x [B, L, D]."""

from __future__ import annotations

import random
from functools import partial

import torch
from torch import Tensor

from rtm_kernels.ops.attention_norm import op
from rtm_kernels.ops.attention_norm.api import attention_norm
from rtm_kernels.ops.attention_norm.launch import TABLE
from rtm_kernels.ops.attention_norm.reference import rope_tables, segment_bias
from rtm_kernels.ops.swiglu.launch import TABLE as SWIGLU
from tests.cases.case import HALVES, MOST, Case, Op, Tensors, Tuned, latent_shape, meta
from tests.ops.support import LAYOUTS, laid_out

HALF, F32 = torch.bfloat16, torch.float32
SMALL = (
    ((3, 7, 24), 3, 1, "strided", "rope qk_norm"),
    ((2, 9, 32), 2, 2, "plain", "rope causal"),
    ((1, 5, 130), 1, 0, "plain", "qk_norm"),
    ((2, 10, 32), 2, 1, "plain", "rope causal segments"),
    ((1, 6, 144), 2, 0, "offset", ""),
)
GATE = (  # shape of x, heads, injection terms, layout, options
    ((1, 97, 512), 8, 2, "plain", "rope"),
    ((2, 17, 256), 2, 0, "transposed", "qk_norm"),
    ((3, 7, 24), 3, 1, "strided", "rope qk_norm"),
    ((2, 97, 64), 4, 2, "offset", "rope causal"),
    ((2, 81, 100), 4, 0, "offset", ""),
    ((3, 1, 24), 2, 2, "plain", "rope qk_norm causal"),
    ((1, 130, 130), 1, 3, "strided", "rope"),
    ((1, 5, 7), 7, 1, "plain", "qk_norm"),
    ((0, 97, 64), 4, 1, "plain", "rope"),
    ((2, 0, 24), 2, 0, "plain", ""),
    ((4, 9, 20), 2, 2, "expanded", "rope qk_norm"),
    ((2, 33, 48), 3, 1, "plain", "rope causal qk_norm"),
    ((2, 33, 48), 3, 1, "plain", "rope segments"),
    ((2, 17, 64), 2, 0, "offset", "rope causal segments qk_norm"),
)
LAUNCHES = (  # D, heads, injection terms, rope, qk_norm, dtype
    (512, 8, 0, True, False, HALF), (512, 8, 2, True, False, HALF), (512, 8, 2, True, True, HALF),
    (512, 4, 0, True, False, HALF), (1024, 4, 0, True, False, HALF), (256, 8, 0, False, False, HALF),
    (128, 8, 0, False, False, HALF), (100, 4, 2, False, False, HALF), (1000, 5, 0, False, False, HALF),
    (512, 8, 2, True, True, F32), (1024, 4, 0, True, False, F32), (100, 4, 2, False, False, F32),
    (1000, 5, 0, True, False, F32),
)  # fmt: skip
"""The official size first, then every size of half a head, width of an output tile, odd width and precision."""


def _make(shape: tuple[int, ...], terms: int, layout: str, g: torch.Generator) -> dict[str, Tensor]:
    width = shape[-1]
    tensors = {"x": laid_out(shape, layout, g)}
    tensors |= {f"i{i}": laid_out(shape, "plain" if i else layout, g) for i in range(terms)}
    for name, rows in (("qkv_weight", 3 * width), ("o_weight", width)):
        tensors[name] = (torch.randn(rows, width, generator=g) / width**0.5).requires_grad_()
    return tensors


def _call(heads: int, options: str, impl: str, t: Tensors) -> Tensor:
    injection = tuple(t[name] for name in ("i0", "i1", "i2") if name in t)
    batch, length, width = t["x"].shape
    places = torch.arange(length, device=t["x"].device) + torch.arange(batch, device=t["x"].device)[:, None]
    return attention_norm(
        t["x"], t["qkv_weight"], t["o_weight"], num_heads=heads, injection=injection, causal="causal" in options,
        bias=segment_bias(places // 4, "causal" in options, t["x"].dtype) if "segments" in options else None,
        qk_norm="qk_norm" in options, impl=impl,
        cos_sin=rope_tables(length, width // heads, 10000.0, t["x"].device) if "rope" in options else None,
    )  # fmt: skip


def attention(shape: tuple[int, ...], heads: int, terms: int, layout: str, options: str) -> Case:
    """attention_norm at one size."""
    name = f"{list(shape)} heads={heads} terms={terms} {layout} {options}"
    return Case("attention_norm", name, partial(_make, shape, terms, layout), partial(_call, heads, options))


def launch_attention(
    batch: int, length: int, width: int, heads: int, terms: int, rope: bool, qk_norm: bool, dtype: torch.dtype = F32,
    forward: bool = True, backward: bool = True,
) -> None:  # fmt: skip
    """Forward and backward on meta tensors."""
    x, qkv, out = (meta(*shape, dtype=dtype) for shape in ((batch, length, width), (3 * width, width), (width, width)))
    table = meta(length, width // heads)
    options = (*((table, table) if rope else (None, None)), None, heads, False, qk_norm, 1e-5)
    if forward:
        op.forward(x, qkv, out, [x] * terms, *options, use_flash=False)
    if backward:
        op.backward(x, x, meta(batch, length), x, qkv, out, *options)


def draw(rng: random.Random) -> tuple[Case, torch.dtype]:
    batch, length, width = latent_shape(rng, MOST // 2)
    heads = rng.choice([h for h in (1, 2, 3, 4, 5, 8) if width % h == 0])
    options = " ".join(name for name in ("qk_norm", "causal", "segments") if rng.random() < 0.5)
    if width // heads % 2 == 0 and rng.random() < 0.7:
        options += " rope"
    row = ((batch, length, width), heads, rng.randint(0, 3), rng.choice(LAYOUTS), options)
    return attention(*row), rng.choice(HALVES)


def _launched() -> dict[str, partial[None]]:
    """Every row forward; backward those with an injection, wide heads or few features: every launch row is reached."""
    found = {}
    for row in LAUNCHES:
        width, heads, terms, rope, qk_norm, dtype = row
        name = f"attention_norm D={width} h={heads} terms={terms} rope={rope:d} qk_norm={qk_norm:d} {str(dtype)[6:]}"
        found[f"{name} forward"] = partial(launch_attention, 16, 97, *row, backward=False)
        if terms == 2 or width // heads >= 128 or width == 128:
            found[f"{name} backward"] = partial(launch_attention, 16, 97, *row, forward=False)
    return found


OP = Op(
    gate=[attention(*row) for row in GATE],
    small=[attention(*row) for row in SMALL],
    drawn=[draw],
    launched=_launched(),
    by_batch={
        "attention_norm": lambda b: launch_attention(b, 97, 512, 8, 2, True, True),
        "attention_norm wide": lambda b: launch_attention(b, 97, 600, 4, 0, False, False),
    },
    tuned=[
        Tuned(f"attention_norm-sudoku{'-gradient' * gradient}",
              lambda b: attention((b, 97, 512), 8, 2, "plain", "rope"), 768, gradient=gradient)
        for gradient in (False, True)
    ],
    tables={"attention_norm": TABLE, "swiglu": SWIGLU},
)  # fmt: skip
