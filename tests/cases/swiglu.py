"""swiglu_norm, over the last axis of x [B, L, D], and mixer_norm, over its sequence."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor

from rtm_kernels.ops.swiglu.launch import TABLE
from rtm_kernels.ops.swiglu_norm.api import mixer_norm, swiglu_norm
from rtm_kernels.ops.swiglu_norm.op import backward, forward
from tests.cases.case import HALVES, SIZES, Case, Op, Strides, Tensors, Tuned, latent_shape, meta
from tests.ops.support import LAYOUTS, laid_out, preferring, swiglu_weights

HALF, F16, F32 = torch.bfloat16, torch.float16, torch.float32
SMALL_CHANNEL = (
    ((3, 7, 24), 40, 2, "plain"),  # one kernel each way
    ((2, 11, 70), 33, 0, "plain"),  # the down product normalises
    ((2, 9, 70), 24, 1, "strided"),
    ((1, 5, 136), 24, 0, "offset"),  # wider than any tile
)
CHANNEL = (  # shape of x, F, injection terms, layout
    ((2, 97, 512), 1536, 2, "plain"),
    ((1, 130, 512), 256, 0, "plain"),
    ((3, 7, 100), 256, 1, "strided"),
    ((2, 81, 64), 256, 2, "offset"),
    ((2, 97, 24), 64, 0, "transposed"),
    ((3, 1, 24), 40, 2, "plain"),
    ((1, 130, 600), 96, 1, "plain"),
    ((1, 1030, 264), 200, 0, "plain"),  # more rows than the buckets of few
    ((5, 100), 33, 0, "plain"),
    ((1,), 16, 0, "plain"),
    ((0, 97, 64), 256, 1, "plain"),
    ((2, 3, 5, 64), 256, 1, "transposed"),
    ((4, 9, 20), 31, 2, "expanded"),
    ((5, 27, 100), 100, 0, "plain", "tma"),
    ((1, 70, 136), 96, 1, "plain", "tma"),
)
SMALL_MIXER = (
    (2, 17, 24, 33, "sequence", 2, "plain"),
    (2, 7, 20, 24, "hidden", 1, "transposed"),
    (1, 70, 24, 33, "sequence", 2, "plain"),  # on Hopper in products of their own
    (1, 130, 20, 24, "sequence", 1, "plain"),
    (1, 131, 17, 20, "hidden", 0, "strided"),
)
MIXER = (  # B, L, D, F, norm axis, injection terms, layout of x
    (3, 97, 512, 512, "sequence", 2, "plain"),
    (1, 97, 512, 512, "hidden", 0, "plain"),
    (1, 916, 64, 2560, "sequence", 1, "plain"),
    (1, 130, 100, 256, "hidden", 2, "plain"),
    (2, 130, 24, 64, "sequence", 1, "strided"),
    (2, 81, 64, 256, "sequence", 2, "offset"),
    (3, 81, 24, 33, "hidden", 1, "transposed"),
    (2, 7, 100, 256, "sequence", 0, "transposed"),
    (3, 1, 64, 40, "sequence", 2, "plain"),
    (3, 1, 24, 16, "hidden", 0, "strided"),
    (0, 97, 64, 256, "sequence", 1, "plain"),
    (4, 9, 20, 31, "hidden", 2, "expanded"),
    (1, 130, 70, 80, "hidden", 2, "plain", "tma"),
    (2, 130, 24, 64, "sequence", 1, "strided", "tma"),
)
CHANNEL_LAUNCHES = (  # D, F, injection terms, dtype
    (512, 1536, 0, HALF), (512, 1536, 2, F16), (512, 1536, 2, F32), (1024, 2816, 0, HALF), (256, 1024, 0, HALF),
    (128, 512, 2, HALF), (64, 256, 2, HALF), (24, 256, 2, HALF), (512, 1536, 0, HALF, "tma"),
    (512, 1536, 2, F16, "tma"), (1024, 2816, 0, HALF, "tma"),
)  # fmt: skip
FEW_ROWS = (  # batch, and the same
    (1, (512, 1536, 2, HALF)), (1, (1024, 2816, 0, F16)), (8, (512, 1536, 2, HALF)), (8, (1024, 2816, 0, F16)),
)  # fmt: skip
MIXER_LAUNCHES = (  # L, D, F, norm axis, injection terms, dtype; Sudoku's L = 97, and 916 of ARC and Maze
    (97, 512, 512, "sequence", 2, HALF), (97, 512, 512, "hidden", 0, F16), (97, 512, 512, "sequence", 2, F32),
    (916, 512, 2560, "sequence", 2, HALF), (916, 512, 2560, "hidden", 0, HALF), (49, 512, 256, "sequence", 2, HALF),
    (16, 128, 256, "sequence", 2, HALF), (916, 512, 2560, "sequence", 2, HALF, "tma"),
    (916, 512, 2560, "hidden", 0, F16, "tma"),
)  # fmt: skip


def _make(
    shape: tuple[int, ...], mixed: int, inner: int, terms: int, layout: str, g: torch.Generator
) -> dict[str, Tensor]:
    tensors = {"x": laid_out(shape, layout, g)}
    tensors |= {f"i{i}": laid_out(shape, layout if i else "plain", g) for i in range(terms)}
    return tensors | swiglu_weights(shape[mixed], inner, g)


def _given(t: Tensors) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    return (t["x"], t["gate_up_weight"], t["down_weight"]), tuple(t[name] for name in ("i0", "i1") if name in t)


def _scope(variant: str) -> Callable[[], AbstractContextManager[object]]:
    return partial(preferring, variant, TABLE) if variant else nullcontext


def channel(shape: tuple[int, ...], inner: int, terms: int, layout: str, variant: str = "") -> Case:
    """swiglu_norm at one size; with the launch rows of a variant where there are any."""

    def call(impl: str, t: Tensors) -> Tensor:
        tensors, injection = _given(t)
        return swiglu_norm(*tensors, injection=injection, impl=impl)

    name = f"{list(shape)} F={inner} terms={terms} {layout} {variant}".rstrip()
    make = partial(_make, shape, -1, inner, terms, layout)
    return Case("swiglu_norm", name, make, call, _scope(variant))


def mixer(
    batch: int, length: int, width: int, inner: int, norm_axis: str, terms: int, layout: str, variant: str = ""
) -> Case:
    """mixer_norm at one size; with the launch rows of a variant where there are any."""

    def call(impl: str, t: Tensors) -> Tensor:
        tensors, injection = _given(t)
        return mixer_norm(*tensors, injection=injection, norm_axis=norm_axis, impl=impl)

    name = f"{[batch, length, width]} F={inner} {norm_axis} terms={terms} {layout} {variant}".rstrip()
    make = partial(_make, (batch, length, width), 1, inner, terms, layout)
    return Case("mixer_norm", name, make, call, _scope(variant))


def launch_channel(
    batch: int, length: int, width: int, inner: int, terms: int, dtype: torch.dtype = F32, variant: str = "",
    strides: Strides = None,
) -> None:  # fmt: skip
    """Forward and backward of swiglu_norm on meta tensors; x and its terms have these strides."""
    _launch((batch, length, width), inner, "hidden", "hidden", terms, dtype, variant, strides)


def launch_mixer(
    batch: int, length: int, width: int, inner: int, axis: str, terms: int, dtype: torch.dtype = F32,
    variant: str = "", strides: Strides = None,
) -> None:  # fmt: skip
    """Forward and backward of mixer_norm on meta tensors; x and its terms have these strides."""
    _launch((batch, length, width), inner, "sequence", axis, terms, dtype, variant, strides)


def _launch(
    shape: tuple[int, int, int], inner: int, mixed: str, normed: str, terms: int, dtype: torch.dtype, variant: str,
    strides: Strides,
) -> None:  # fmt: skip
    x, size = meta(*shape, dtype=dtype, strides=strides), shape[2 if mixed == "hidden" else 1]
    weights = meta(2 * inner, size, dtype=dtype), meta(size, inner, dtype=dtype)
    with _scope(variant)():
        y, rstd = forward(x, *weights, [x] * terms, mixed, normed, 1e-5)
        backward(y, y, rstd, x, *weights, [x] * terms, mixed, normed, 1e-5)


def _channel_name(width: int, inner: int, terms: int, dtype: torch.dtype, variant: str = "") -> str:
    return f"D={width} F={inner} terms={terms} {str(dtype)[6:]} {variant}".rstrip()


def _mixer_name(
    length: int, width: int, inner: int, axis: str, terms: int, dtype: torch.dtype, variant: str = ""
) -> str:  # fmt: skip
    return f"L={length} D={width} F={inner} {axis} terms={terms} {str(dtype)[6:]} {variant}".rstrip()


def draw_channel(rng: random.Random) -> tuple[Case, torch.dtype]:
    row = (latent_shape(rng), rng.choice(SIZES), rng.randint(0, 2), rng.choice(LAYOUTS))
    return channel(*row), rng.choice(HALVES)


def draw_mixer(rng: random.Random) -> tuple[Case, torch.dtype]:
    row = (rng.choice(SIZES), rng.choice(("sequence", "hidden")), rng.randint(0, 2), rng.choice(LAYOUTS))
    return mixer(*latent_shape(rng), *row), rng.choice(HALVES)


OP = Op(
    gate=[*(channel(*row) for row in CHANNEL), *(mixer(*row) for row in MIXER)],
    small=[
        *(channel(*row) for row in SMALL_CHANNEL),
        *(channel(*row, variant="tma") for row in SMALL_CHANNEL[1:]),
        *(mixer(*row) for row in SMALL_MIXER),
    ],
    drawn=[draw_channel, draw_mixer, draw_channel, draw_mixer],
    launched={
        **{_channel_name(*row): partial(launch_channel, 16, 97, *row) for row in CHANNEL_LAUNCHES},
        **{f"{_channel_name(*row)} B={b}": partial(launch_channel, b, 97, *row) for b, row in FEW_ROWS},
        **{_mixer_name(*row): partial(launch_mixer, 4, *row) for row in MIXER_LAUNCHES},
        **{f"{_mixer_name(*row)} B=1": partial(launch_mixer, 1, *row) for row in MIXER_LAUNCHES[:3]},
    },
    by_batch={
        "swiglu_norm": lambda b: launch_channel(b, 97, 512, 1536, 2),
        "swiglu_norm without injection": lambda b: launch_channel(b, 97, 512, 1536, 0),
        "swiglu_norm narrow": lambda b: launch_channel(b, 16, 48, 128, 1),
        "mixer_norm": lambda b: launch_mixer(b, 97, 512, 512, "sequence", 2),
        "mixer_norm hidden": lambda b: launch_mixer(b, 97, 512, 512, "hidden", 0),
        "mixer_norm long": lambda b: launch_mixer(b, 916, 512, 2560, "sequence", 1),
    },
    tuned=[
        Tuned(f"{name}{'-gradient' * gradient}", case, batch, gradient=gradient)
        for name, case, batch in (
            ("mixer_norm-sudoku", lambda b: mixer(b, 97, 512, 512, "sequence", 2, "plain"), 768),
            ("swiglu_norm-sudoku", lambda b: channel((b, 97, 512), 1536, 0, "plain"), 768),
            ("mixer_norm-arc", lambda b: mixer(b, 916, 512, 2560, "sequence", 2, "plain"), 64),
            ("swiglu_norm-arc", lambda b: channel((b, 916, 512), 1536, 0, "plain"), 64),
            ("mixer_norm-small", lambda b: mixer(b, 97, 128, 512, "sequence", 2, "plain"), 768),
            ("swiglu_norm-small", lambda b: channel((b, 97, 128), 512, 0, "plain"), 768),
        )
        for gradient in (False, True)
    ],
    tables={"swiglu": TABLE},
)
