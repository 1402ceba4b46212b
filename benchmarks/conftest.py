"""Measured once per case, reported once per provider."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from benchmarks.cases import Case
from benchmarks.harness import Row, run_case


def pytest_addoption(parser: pytest.Parser) -> None:
    """Threads of the CPU cases: one by default, because threads that wait for a busy core time the other programs."""
    parser.addoption("--threads", type=int, default=1, help="threads of the CPU cases")


def pytest_configure(config: pytest.Config) -> None:
    """Fix the number of threads before anything runs."""
    torch.set_num_threads(config.getoption("--threads"))


@pytest.fixture(scope="session")
def measured() -> Callable[[Case], dict[str, Row]]:
    """Case -> its rows by provider; all providers of a case are timed in turns, in this process."""
    done: dict[Case, dict[str, Row]] = {}

    def rows_of(case: Case) -> dict[str, Row]:
        if case not in done:
            done[case] = {row.impl: row for row in run_case(case)}
        return done[case]

    return rows_of
