"""Random sizes, layouts, terms and norm axes of the SwiGLU ops, held to the interpreter gate's budget."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from rtm_kernels.ops.mixer_norm.api import mixer_norm
from rtm_kernels.ops.swiglu_norm.api import swiglu_norm
from tests.gates.interpret_gate import OpCase, Tensors, check
from tests.ops.support import LAYOUTS, laid_out, swiglu_weights

pytest.importorskip("triton")

SIZES = (1, 2, 3, 5, 7, 13, 16, 17, 24, 31, 33, 63, 65, 97, 127, 129, 131)


def drawn(seed: int) -> OpCase:
    """The configuration of one seed."""
    rng = random.Random(seed)
    op = rng.choice(("swiglu_norm", "mixer_norm"))
    batch, length, features = rng.randint(1, 3), rng.choice(SIZES), rng.choice(SIZES)
    inner, terms, norm_axis = rng.choice(SIZES), rng.randint(0, 3), rng.choice(("sequence", "hidden"))
    layouts = [rng.choice(LAYOUTS) for _ in range(terms + 1)]
    eps = rng.choice((1e-5, 1e-6, 1e-2))
    shape = (batch, length, features)

    def make(generator: torch.Generator) -> dict[str, Tensor]:
        tensors = {"x": laid_out(shape, layouts[0], generator)}
        tensors |= {f"i{i}": laid_out(shape, layout, generator) for i, layout in enumerate(layouts[1:])}
        return tensors | swiglu_weights(features if op == "swiglu_norm" else length, inner, generator)

    def call(impl: str, t: Tensors) -> Tensor:
        injection = tuple(t[f"i{i}"] for i in range(terms))
        weights = (t["gate_up_weight"], t["down_weight"])
        if op == "swiglu_norm":
            return swiglu_norm(t["x"], *weights, injection=injection, eps=eps, impl=impl)
        return mixer_norm(t["x"], *weights, injection=injection, norm_axis=norm_axis, eps=eps, impl=impl)

    return OpCase(op, f"{list(shape)} F={inner} {norm_axis} {layouts} eps={eps}", make, call)


@pytest.mark.parametrize("seed", range(30))
def test_random_configuration(seed: int) -> None:
    case = drawn(seed)
    assert check(case).failures == [], case
