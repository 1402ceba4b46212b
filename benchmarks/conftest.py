"""Each case is measured once and reported once per provider; `--report` writes the page of this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.cases import Case
from benchmarks.harness import run_case
from benchmarks.providers import PROVIDERS
from benchmarks.rows import Row, summary

DONE = pytest.StashKey[dict[Case, dict[str, Row]]]()
"""Case -> its rows by provider."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """How long each case is timed, and where the report goes."""
    parser.addoption("--seconds", type=float, default=2.0, help="seconds of timed rounds per case")
    parser.addoption("--limit", type=float, default=440.0, help="seconds after which no new case begins")
    parser.addoption(
        "--report", nargs="?", type=Path, const=report.default_folder(),
        help="write summary and page to this folder (without a value: profiles/<machine>)",
    )  # fmt: skip


@pytest.fixture(scope="session")
def measured(request: pytest.FixtureRequest) -> Callable[[Case], dict[str, Row]]:
    """Case -> its rows by provider; all providers of a case are timed in turns, in this process."""
    option = request.config.getoption
    begin = time.monotonic()
    done = request.config.stash.setdefault(DONE, {})

    def rows_of(case: Case) -> dict[str, Row]:
        if case not in done and time.monotonic() - begin > option("--limit"):
            reason = f"the time of this run, {option('--limit'):.0f} s, was over"
            done[case] = {p.name: Row(case.name, p.name, "not run", reason) for p in PROVIDERS}
        elif case not in done:
            found = run_case(case, seconds=option("--seconds"))
            done[case] = {row.impl: row for row in found}
            count = sum(row.status == "measured" for row in found)
            with request.config.pluginmanager.get_plugin("capturemanager").global_and_fixture_disabled():
                print(f" {case.name}: {count} measured, {time.monotonic() - begin:.0f} s so far", flush=True)
        return done[case]

    return rows_of


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Write the report, and print its table."""
    found = [row for case in config.stash.get(DONE, {}).values() for row in case.values()]
    folder = config.getoption("--report")
    if folder is not None and any(row.status == "measured" for row in found):
        report.write(found, folder)
        terminalreporter.write_line("\n".join([*report.table(summary(found)), "", f"written to {folder}"]))
