"""pytest benchmarks --benchmark-json=FILE: every case and provider as one benchmark, with its facts as extra_info.

The providers of a case are timed in turns, which a fixture that times one function cannot do. So the samples are
taken first, and the fixture is given a clock that tells them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from benchmarks.cases import Case, cases
from benchmarks.providers import PROVIDERS
from benchmarks.rows import Row

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Replay:
    """A clock whose every second reading lies one recorded sample after the one before."""

    def __init__(self) -> None:
        self.readings: Iterator[float] = iter(())

    def tell(self, samples: list[float]) -> None:
        """Let the next readings come in pairs, one sample apart."""
        now, readings = 0.0, []
        for sample in samples:
            readings += [now, now + sample]
            now += sample
        self.readings = iter(readings)

    def __call__(self) -> float:
        return next(self.readings)


def parameters() -> Iterator[object]:
    """One parameter set per case and provider; a case that is not run here is one skipped test."""
    for case, reason in cases(DEVICE):
        if reason is not None:
            yield pytest.param(case, "all", Replay(), id=case.name, marks=pytest.mark.skip(reason=f"not run: {reason}"))
            continue
        for provider in PROVIDERS:
            clock = Replay()
            marks = pytest.mark.benchmark(group=case.name, timer=clock)
            yield pytest.param(case, provider.name, clock, id=f"{case.name}-{provider.name}", marks=marks)


@pytest.mark.parametrize(("case", "impl", "clock"), list(parameters()))
def test_benchmark(
    case: Case, impl: str, clock: Replay, measured: Callable[[Case], dict[str, Row]], benchmark: object
) -> None:
    row = measured(case)[impl]
    if row.status == "not run":
        pytest.skip(f"not run: {row.reason}")
    assert row.status == "measured", f"refused: {row.reason}"
    clock.tell(row.samples)
    benchmark.extra_info.update(row.as_dict())
    benchmark.pedantic(lambda: None, rounds=len(row.samples))
