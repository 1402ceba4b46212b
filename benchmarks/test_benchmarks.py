"""pytest benchmarks --benchmark-json=FILE: every case and provider as one benchmark, with its facts as extra_info.

The providers of a case are timed in turns, which a fixture that times one function cannot do. So the samples are taken
first and put in the place of those of the fixture. Two runs are compared by `pytest-benchmark compare`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from benchmarks.cases import Case, cases
from benchmarks.providers import PROVIDERS
from benchmarks.rows import Row

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def parameters() -> Iterator[object]:
    """One parameter set per case and provider; a case that is not run here is one skipped test."""
    for case, reason in cases(DEVICE):
        if reason is not None:
            yield pytest.param(case, "all", id=case.name, marks=pytest.mark.skip(reason=f"not run: {reason}"))
            continue
        for provider in PROVIDERS:
            marks = pytest.mark.benchmark(group=case.name)
            yield pytest.param(case, provider.name, id=f"{case.name}-{provider.name}", marks=marks)


@pytest.mark.parametrize(("case", "impl"), list(parameters()))
def test_benchmark(case: Case, impl: str, measured: Callable[[Case], dict[str, Row]], benchmark: Any) -> None:
    row = measured(case)[impl]
    if row.status == "not run":
        pytest.skip(f"not run: {row.reason}")
    assert row.status == "measured", f"refused: {row.reason}"
    benchmark.extra_info.update(row.as_dict())
    benchmark.pedantic(lambda: None)
    benchmark.stats.stats.data[:] = row.samples
