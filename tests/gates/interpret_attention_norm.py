"""Cases of attention_norm for the interpreter gate."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from rtm_kernels.ops.attention_norm.api import attention_norm
from rtm_kernels.ops.attention_norm.reference import rope_tables
from tests.gates.interpret_gate import OpCase, Tensors
from tests.ops.support import laid_out

CASES = (  # shape of x, heads, injection terms, layout, options
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
)


def _make(shape: tuple[int, ...], terms: int, layout: str, generator: torch.Generator) -> dict[str, Tensor]:
    width = shape[-1]
    tensors = {"x": laid_out(shape, layout, generator)}
    tensors |= {f"i{i}": laid_out(shape, "plain" if i else layout, generator) for i in range(terms)}
    for name, rows in (("qkv_weight", 3 * width), ("o_weight", width)):
        tensors[name] = (torch.randn(rows, width, generator=generator) / width**0.5).requires_grad_()
    return tensors


def _call(heads: int, options: str, impl: str, t: Tensors) -> Tensor:
    injection = tuple(t[name] for name in ("i0", "i1", "i2") if name in t)
    _, length, width = t["x"].shape
    return attention_norm(
        t["x"], t["qkv_weight"], t["o_weight"], num_heads=heads, injection=injection, causal="causal" in options,
        qk_norm="qk_norm" in options, impl=impl,
        cos_sin=rope_tables(length, width // heads, 10000.0, t["x"].device) if "rope" in options else None,
    )  # fmt: skip


def case(shape: tuple[int, ...], heads: int, terms: int, layout: str, options: str) -> OpCase:
    """One configuration."""
    name = f"{list(shape)} heads={heads} terms={terms} {layout} {options}"
    return OpCase("attention_norm", name, partial(_make, shape, terms, layout), partial(_call, heads, options))


def interpret_cases() -> Iterator[OpCase]:
    """Official, odd, tiny and empty sizes, every option and layout."""
    return (case(*row) for row in CASES)
