"""Launch rows whose programs loop over tiles, with weights by TMA: the values of the rows in their place."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from rtm_kernels.ops.mixer_norm import launch as mixer
from torch import Tensor

from rtm_kernels.impl import launches
from rtm_kernels.ops.launch import LaunchRow, preferring
from rtm_kernels.ops.swiglu import tma
from rtm_kernels.ops.swiglu_norm import launch as channel
from rtm_kernels.ops.swiglu_norm.api import mixer_norm, swiglu_norm
from tests.ops.support import swiglu_inputs, to

pytest.importorskip("triton")

Op = Callable[..., Tensor]
CASES: tuple[tuple[str, Op, Any, tuple[int, ...], int, int, int], ...] = (
    # op, its table, shape of x, mixed axis, F, injection terms
    ("channel, full row", swiglu_norm, channel.TABLE, (3, 23, 100), -1, 80, 0),
    ("channel, injected", swiglu_norm, channel.TABLE, (2, 9, 72), -1, 65, 2),
    ("channel, wide row", swiglu_norm, channel.TABLE, (1, 19, 150), -1, 48, 0),
    ("mixer", partial(mixer_norm, norm_axis="sequence"), mixer.TABLE, (2, 130, 20), 1, 40, 1),
    ("mixer, hidden", partial(mixer_norm, norm_axis="hidden"), mixer.TABLE, (2, 131, 18), 1, 32, 2),
)


def gradients(out: Tensor, leaves: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(7)).to(out.dtype)
    return torch.autograd.grad(out, leaves, upstream)


@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
def test_values_and_gradients_stay_within_the_budget(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, op, table, shape, axis, inner, terms = case
    x, *weights, injection = swiglu_inputs(shape, axis, inner, terms)
    leaves = (x, *weights, *injection)

    def run(leaves: tuple[Tensor, ...], impl: str) -> list[Tensor]:
        out = op(*leaves[:3], injection=leaves[3:], impl=impl)
        return [out, *gradients(out, leaves)]

    truth, base = run(to(leaves, torch.float64), "reference"), run(leaves, "reference")
    ran: list[LaunchRow] = []
    original = tma.launch
    monkeypatch.setattr(tma, "launch", lambda kernel, row, *a, **k: ran.append(row) or original(kernel, row, *a, **k))
    with preferring("tma", table):
        got = run(leaves, "triton")
    expected = {"gate_up", "residual_gemm"} | ({"down_norm"} if "full row" in case[0] else set())
    assert {row.kernel for row in ran} == expected and all(row.variant == "tma" for row in ran)
    for mine, theirs, right in zip(got, base, truth, strict=True):
        error, budget = (mine.double() - right).norm(), 2 * (theirs.double() - right).norm()
        assert error <= budget + 4 * torch.finfo(torch.float32).eps * right.norm()


@pytest.mark.parametrize("programs", [1, 5, 1000])
def test_bits_depend_neither_on_the_batch_nor_on_how_many_programs_share_the_tiles(
    programs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, gate_up, down, _ = swiglu_inputs((5, 23, 100), -1, 40)
    with torch.no_grad(), preferring("tma", channel.TABLE):
        whole = swiglu_norm(x, gate_up, down, impl="triton")
        monkeypatch.setattr(tma, "programs", lambda device: programs)
        assert torch.equal(swiglu_norm(x, gate_up, down, impl="triton"), whole)
        assert torch.equal(swiglu_norm(x[1:2], gate_up, down, impl="triton"), whole[1:2])


def test_a_weight_that_starts_off_the_grid_is_copied() -> None:
    x, gate_up, down, _ = swiglu_inputs((2, 9, 80), -1, 48)
    off = torch.cat([gate_up.detach().new_zeros(1), gate_up.detach().flatten()])[1:].view(gate_up.shape)
    assert off.data_ptr() % 16 != 0
    with torch.no_grad(), preferring("tma", channel.TABLE):
        launches.clear()
        got = swiglu_norm(x, off, down, impl="triton")
        assert torch.equal(got, swiglu_norm(x, gate_up, down, impl="triton"))
        assert launches["gate_up"] == 2
