"""Launch rows whose programs loop over tiles, with weights by TMA: the values of the rows in their place."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rtm_kernels.impl import launches
from rtm_kernels.ops.launch import LaunchRow, preferring
from rtm_kernels.ops.swiglu import launchers
from rtm_kernels.ops.swiglu.launch import TABLE
from tests.ops.support import gradients, half_layer, to, within_budget

pytest.importorskip("triton")


@pytest.mark.parametrize(
    ("name", "shape", "inner", "terms", "kernels"),
    [
        ("channel", (3, 23, 100), 80, 0, {"gate_up", "gemm", "gemm_norm"}),
        ("channel", (1, 19, 150), 48, 2, {"gate_up", "gemm"}),
        ("mixer", (2, 130, 20), 40, 1, {"gate_up", "gemm"}),
        ("mixer hidden", (2, 131, 18), 32, 2, {"gate_up", "gemm"}),
        ("attention", (2, 7, 48), 0, 1, {"gemm", "gemm_norm"}),
        ("attention", (2, 7, 20), 0, 1, {"gemm"}),
    ],
)
def test_values_and_gradients_stay_within_the_budget(
    name: str, shape: tuple[int, ...], inner: int, terms: int, kernels: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    call, leaves = half_layer(name, shape, terms, inner)

    def run(leaves: tuple[Tensor, ...], impl: str) -> tuple[Tensor, ...]:
        out = call(*leaves, impl=impl)
        return out, *gradients(out, leaves)

    truth, base = run(to(leaves, torch.float64), "reference"), run(leaves, "reference")
    ran: list[LaunchRow] = []
    original = launchers.launch
    monkeypatch.setattr(
        launchers, "launch", lambda kernel, row, *a, **k: ran.append(row) or original(kernel, row, *a, **k)
    )
    with preferring("tma", TABLE):
        got = run(leaves, "triton")
    assert {row.kernel for row in ran if row.variant == "tma"} == kernels
    assert all(row.variant == "tma" or row.kernel not in kernels for row in ran)
    within_budget(got, base, truth)


@pytest.mark.parametrize("programs", [1, 5, 1000])
def test_bits_depend_neither_on_the_batch_nor_on_how_many_programs_share_the_tiles(
    programs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, (x, *weights) = half_layer("channel", (5, 23, 100), inner=40)
    with torch.no_grad(), preferring("tma", TABLE):
        whole = call(x, *weights)
        monkeypatch.setattr(launchers, "programs", lambda device: programs)
        assert torch.equal(call(x, *weights), whole)
        assert torch.equal(call(x[1:2], *weights), whole[1:2])


def test_a_weight_that_starts_off_the_grid_is_copied() -> None:
    call, (x, gate_up, down) = half_layer("channel", (2, 9, 80), inner=48)
    off = torch.cat([gate_up.detach().new_zeros(1), gate_up.detach().flatten()])[1:].view(gate_up.shape)
    assert off.data_ptr() % 16 != 0
    with torch.no_grad(), preferring("tma", TABLE):
        launches.clear()
        assert torch.equal(call(x, off, down), call(x, gate_up, down))
        assert launches["gate_up"] == 2
