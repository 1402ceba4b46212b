"""Compiled results held to their source: what may differ, and what may not."""

from __future__ import annotations

import pytest
import torch

from tests.gates.source import unlike

SUMS = torch.randn(1000, generator=torch.Generator().manual_seed(0))
IN_ANOTHER_ORDER = SUMS * (1 + 2.0**-23)
RESIDUAL = torch.randn(1000, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_sum_in_another_order_is_the_same_result(dtype: torch.dtype) -> None:
    assert unlike((IN_ANOTHER_ORDER + RESIDUAL).to(dtype), (SUMS + RESIDUAL).to(dtype)) == ""


@pytest.mark.parametrize(("dtype", "text"), [(torch.bfloat16, "are not those"), (torch.float32, "off the source's")])
def test_a_sum_that_was_rounded_once_more_is_not(dtype: torch.dtype, text: str) -> None:
    assert text in unlike((SUMS.bfloat16() + RESIDUAL).to(dtype), (SUMS + RESIDUAL).to(dtype))


def test_integers_and_nan_are_exact() -> None:
    one = torch.tensor([1, 2])
    assert unlike(one, one) == "" and "1 integers" in unlike(one, torch.tensor([1, 3]))
    broken = torch.tensor([1.0, torch.nan])
    assert unlike(broken, broken) == "" and "NaN" in unlike(broken, torch.tensor([torch.nan, 1.0]))
