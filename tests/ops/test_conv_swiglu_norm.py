"""conv_swiglu_norm: the reference against plain loops in float64, its gradients, and arguments that it refuses."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import Tensor

from rtm_kernels.block import FusedTRMBlock
from rtm_kernels.errors import InputError
from rtm_kernels.ops.conv_swiglu_norm.api import conv_swiglu_norm
from tests.cases import name_of
from tests.cases.case import Case, check
from tests.cases.conv import OP

D, F = 6, 5


def inputs(length: int, *size: int, seed: int = 0) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shapes = ((2, length, D), (2 * F, D), (F, 1, *size), (F,), (D, F))
    return [torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes]


def silu(x: float) -> float:
    return x / (1 + math.exp(-x))


def by_loops(x: Tensor, gate_up: Tensor, weight: Tensor, bias: Tensor, down: Tensor, prefix: int) -> Tensor:
    batch, length, _ = x.shape
    z = x @ gate_up.T
    act = [[[silu(z[b, t, f].item()) * z[b, t, F + f].item() for f in range(F)] for t in range(length)]
           for b in range(batch)]  # fmt: skip
    side, k = math.isqrt(length - prefix), weight.shape[-1]
    out = torch.empty_like(x)
    for b in range(batch):
        for t in range(length):
            hidden = []
            for f in range(F):
                total = bias[f].item()
                for i in range(k):
                    if weight.ndim == 3:
                        at = t + i - k // 2
                        total += weight[f, 0, i].item() * act[b][at][f] if 0 <= at < length else 0
                        continue
                    for j in range(k):
                        row, column = divmod(t - prefix, side)
                        row, column = row + i - k // 2, column + j - k // 2
                        if 0 <= row < side and 0 <= column < side:
                            total += weight[f, 0, i, j].item() * act[b][prefix + row * side + column][f]
                hidden.append(silu(act[b][t][f] if weight.ndim == 4 and t < prefix else total))
            h = x[b, t] + down @ torch.tensor(hidden, dtype=x.dtype)
            out[b, t] = h / (h.square().mean() + 1e-5).sqrt()
    return out


@pytest.mark.parametrize(
    ("length", "prefix", "size"),
    [(7, 0, (2,)), (5, 2, (3,)), (1, 0, (2,)), (9, 0, (3, 3)), (18, 2, (3, 3)), (25, 0, (5, 5)), (1, 0, (3, 3))],
)
def test_forward_and_gradients(length: int, prefix: int, size: tuple[int, ...]) -> None:
    x, *weights = inputs(length, *size)
    y = conv_swiglu_norm(x, *weights, prefix=prefix)
    torch.testing.assert_close(y, by_loops(x, *weights, prefix))
    parts = [t.clone().requires_grad_() for t in (x / 2, *weights, x / 4)]

    def run(*given: Tensor) -> Tensor:
        half, gate_up, conv, bias, down, term = given
        return conv_swiglu_norm(half, gate_up, conv, bias, down, injection=(term, term), prefix=prefix)

    torch.testing.assert_close(run(*parts), y)
    assert torch.autograd.gradcheck(run, parts)


def test_a_block_with_it_has_the_official_names() -> None:
    block = FusedTRMBlock(8, mixer="none", channel_mixer="conv2d", conv_width=3, inner_size=12)
    assert (block.mixer, block.channel_mixer) == ("none", "conv2d")
    shapes = {name: tuple(p.shape) for name, p in block.named_parameters()}
    assert shapes == {
        "mlp.gate_up_proj.weight": (24, 8), "mlp.down_proj.weight": (8, 12), "mlp.dwconv.weight": (12, 1, 3, 3),
        "mlp.dwconv.bias": (12,),
    }  # fmt: skip
    small, large = torch.randn(1, 16, 8), torch.randn(2, 100, 8)
    assert block(small).shape == small.shape and block(large, (large,)).shape == large.shape
    mixer = FusedTRMBlock(8, num_heads=2, mixer="attention", channel_mixer="conv", conv_width=2)
    assert mixer(small).shape == small.shape and mixer.channel_mixer == "conv"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.randn(2, 8, D)}, r"x.shape=\(2, 8, 6\) is not allowed: \[B, 0 \+ side \* side, D\]"),
        ({"conv": torch.randn(F, 1, 2, 2)}, "conv_weight.shape=.* an odd width over a grid"),
        ({"conv": torch.randn(F, 2, 3, 3)}, "conv_weight.shape"),
        ({"bias": torch.randn(F + 1)}, "conv_bias.shape"),
        ({"down": torch.randn(D, F + 1)}, "gate_up_weight.shape"),
    ],
)
def test_bad_arguments(change: dict[str, Tensor], message: str) -> None:
    x, gate_up, conv, bias, down = (t.float() for t in inputs(9, 3, 3))
    values = {"x": x, "gate_up": gate_up, "conv": conv, "bias": bias, "down": down} | change
    with pytest.raises(InputError, match=message):
        conv_swiglu_norm(*values.values())


@pytest.mark.parametrize("case", OP.small, ids=name_of)
def test_kernels_agree_with_the_reference(case: Case) -> None:
    pytest.importorskip("triton")
    assert check(case).failures == []


@pytest.mark.parametrize("seed", range(4))
def test_random_kernels(seed: int) -> None:
    pytest.importorskip("triton")
    case, dtype = OP.drawn[0](random.Random(seed))
    assert check(case, dtype).failures == [], case.name
