"""300 random configurations over all ops; a failure says the line that repeats it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.gates.interpret_gate import check
from tests.proof.fuzz import OPS, drawn, failure

pytest.importorskip("triton")
pytestmark = pytest.mark.proof("fuzz")

CONFIGURATIONS, GROUP = 300, 10


@pytest.mark.parametrize("first", range(0, CONFIGURATIONS, GROUP))
def test_random_configurations(first: int, cells: Callable[[int], None]) -> None:
    failures = [failure(seed) for seed in range(first, first + GROUP)]
    assert not any(failures), "\n".join(filter(None, failures))
    cells(GROUP)


def test_the_draws_cover_every_op_and_both_dtypes() -> None:
    found = {(drawn(seed).case.op, drawn(seed).dtype) for seed in range(CONFIGURATIONS)}
    assert len({op for op, _ in found}) == len({draw.__name__ for draw in OPS})
    assert {dtype for _, dtype in found} == {torch.float32, torch.float16}
    assert len({drawn(seed).case.shape for seed in range(CONFIGURATIONS)}) > 0.9 * CONFIGURATIONS


@pytest.mark.gpu
@pytest.mark.parametrize("first", range(0, 2000, 100))
def test_random_configurations_on_the_gpu(first: int, device: torch.device, cells: Callable[[int], None]) -> None:
    for seed in range(first, first + 100):
        d = drawn(seed)
        dtype = torch.bfloat16 if d.dtype == torch.float16 and seed % 4 else d.dtype
        failures = check(d.case, dtype, seed=seed, device=device).failures
        assert not failures, f"{seed}: {d.case.op} {d.case.shape} {dtype}: {failures}"
    cells(100)
