"""Measured once per case, reported once per provider."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.cases import Case
from benchmarks.harness import Row, run_case
from benchmarks.providers import PROVIDERS
from benchmarks.rows import replace as write


def pytest_addoption(parser: pytest.Parser) -> None:
    """How long each case is timed, and whether its energy is measured."""
    parser.addoption("--seconds", type=float, default=2.0, help="seconds of timed rounds per case")
    parser.addoption("--energy", type=float, default=0.0, help="seconds of each energy window (at least 30 to cite)")
    parser.addoption("--limit", type=float, default=440.0, help="seconds after which no new case begins")
    parser.addoption("--left", type=Path, help="file for what was not measured, and why")


@pytest.fixture(scope="session")
def measured(request: pytest.FixtureRequest) -> Iterator[Callable[[Case], dict[str, Row]]]:
    """Case -> its rows by provider; all providers of a case are timed in turns, in this process."""
    option = request.config.getoption
    begin = time.monotonic()
    done: dict[Case, dict[str, Row]] = {}

    def rows_of(case: Case) -> dict[str, Row]:
        if case not in done and time.monotonic() - begin > option("--limit"):
            reason = f"the time of this run, {option('--limit'):.0f} s, was over"
            done[case] = {p.name: Row(case.name, p.name, "not run", reason) for p in PROVIDERS}
        elif case not in done:
            found = run_case(case, seconds=option("--seconds"), energy_seconds=option("--energy"))
            done[case] = {row.impl: row for row in found}
            count = sum(row.status == "measured" for row in found)
            with request.config.pluginmanager.get_plugin("capturemanager").global_and_fixture_disabled():
                print(f" {case.name}: {count} measured, {time.monotonic() - begin:.0f} s so far", flush=True)
        return done[case]

    yield rows_of
    if option("--left") is not None:
        left = [row for found in done.values() for row in found.values() if row.status != "measured"]
        keys = ("case", "impl", "status", "reason")
        write(option("--left"), json.dumps([{k: getattr(row, k) for k in keys} for row in left], indent=1) + "\n")
