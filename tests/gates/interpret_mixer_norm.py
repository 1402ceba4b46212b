"""Cases of mixer_norm for the interpreter gate."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from rtm_kernels.ops.launch import preferring
from rtm_kernels.ops.swiglu.launch import TABLE
from rtm_kernels.ops.swiglu_norm.api import mixer_norm
from tests.gates.interpret_gate import OpCase, Tensors
from tests.ops.support import laid_out, swiglu_weights

CASES = (  # B, L, D, F, norm axis, injection terms, layout of x
    (2, 97, 512, 512, "sequence", 2, "plain"),
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
)
TMA_CASES = ((1, 130, 70, 80, "hidden", 2, "plain"), (2, 130, 24, 64, "sequence", 1, "strided"))


def _make(shape: tuple[int, ...], inner: int, terms: int, layout: str, generator: torch.Generator) -> dict[str, Tensor]:
    tensors = {"x": laid_out(shape, layout, generator)}
    tensors |= {f"i{i}": laid_out(shape, layout if i else "plain", generator) for i in range(terms)}
    return tensors | swiglu_weights(shape[1], inner, generator)


def _call(norm_axis: str, impl: str, t: Tensors) -> Tensor:
    injection = tuple(t[name] for name in ("i0", "i1") if name in t)
    return mixer_norm(
        t["x"], t["gate_up_weight"], t["down_weight"], injection=injection, norm_axis=norm_axis, impl=impl
    )


def case(
    batch: int, length: int, features: int, inner: int, norm_axis: str, terms: int, layout: str, variant: str = ""
) -> OpCase:
    """One configuration; with the launch rows of a variant where there are any."""
    shape = (batch, length, features)
    name = f"{list(shape)} F={inner} {norm_axis} terms={terms} {layout}"
    scope = partial(preferring, variant, TABLE)
    return OpCase(
        "mixer_norm",
        f"{name} {variant}".rstrip(),
        partial(_make, shape, inner, terms, layout),
        partial(_call, norm_axis),
        scope,
    )


def interpret_cases() -> Iterator[OpCase]:
    """Official, odd, tiny and empty sizes, both norm axes, every layout."""
    yield from (case(*row) for row in CASES)
    yield from (case(*row, variant="tma") for row in TMA_CASES)
