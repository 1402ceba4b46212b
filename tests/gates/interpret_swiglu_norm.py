"""Cases of swiglu_norm for the interpreter gate."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from rtm_kernels.ops.launch import preferring
from rtm_kernels.ops.swiglu.launch import TABLE
from rtm_kernels.ops.swiglu_norm.api import swiglu_norm
from tests.gates.interpret_gate import OpCase, Tensors
from tests.ops.support import laid_out, swiglu_weights

CASES = (  # shape of x, F, injection terms, layout
    ((2, 97, 512), 1536, 2, "plain"),
    ((1, 130, 512), 256, 0, "plain"),
    ((3, 7, 100), 256, 1, "strided"),
    ((2, 81, 64), 256, 2, "offset"),
    ((2, 97, 24), 64, 0, "transposed"),
    ((3, 1, 24), 40, 2, "plain"),
    ((1, 130, 600), 96, 1, "plain"),
    ((5, 100), 33, 0, "plain"),
    ((1,), 16, 0, "plain"),
    ((0, 97, 64), 256, 1, "plain"),
    ((2, 3, 5, 64), 256, 1, "transposed"),
    ((4, 9, 20), 31, 2, "expanded"),
)
TMA_CASES = (((5, 27, 100), 100, 0, "plain"), ((1, 70, 136), 96, 1, "plain"))


def _make(shape: tuple[int, ...], inner: int, terms: int, layout: str, generator: torch.Generator) -> dict[str, Tensor]:
    tensors = {"x": laid_out(shape, layout, generator)}
    tensors |= {f"i{i}": laid_out(shape, layout if i else "plain", generator) for i in range(terms)}
    return tensors | swiglu_weights(shape[-1], inner, generator)


def _call(impl: str, t: Tensors) -> Tensor:
    injection = tuple(t[name] for name in ("i0", "i1") if name in t)
    return swiglu_norm(t["x"], t["gate_up_weight"], t["down_weight"], injection=injection, impl=impl)


def case(shape: tuple[int, ...], inner: int, terms: int, layout: str, variant: str = "") -> OpCase:
    """One configuration; with the launch rows of a variant where there are any."""
    name = f"{list(shape)} F={inner} terms={terms} {layout}"
    scope = partial(preferring, variant, TABLE)
    return OpCase(
        "swiglu_norm", f"{name} {variant}".rstrip(), partial(_make, shape, inner, terms, layout), _call, scope
    )


def interpret_cases() -> Iterator[OpCase]:
    """Official, odd, tiny and empty sizes, every layout."""
    yield from (case(*row) for row in CASES)
    yield from (case(*row, variant="tma") for row in TMA_CASES)
