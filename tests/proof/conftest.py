"""The table of what is proven: every test marked `proof(row)` counts its cells under its property."""

from __future__ import annotations

import importlib.util
import sys
from collections import defaultdict
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PROPERTIES = {
    "error": "forward and gradient error at most twice eager's, against float64",
    "gradcheck": "float64 gradients are the derivatives, double backward is refused",
    "mutation": "seeded defects of the kernels are killed",
    "fuzz": "random configurations within the budget",
    "int32": "no 32-bit overflow of an offset beyond 2^31 elements",
    "bounds": "no access beyond either end of a tensor",
    "poison": "uninitialised memory never matters, every masked load has `other`",
    "order": "the order of programs never matters",
    "rerun": "run-to-run bits",
    "batch": "a sample's bits do not depend on its batch; launches do not either",
    "isolation": "a NaN sample leaves every other bit alone",
    "layout": "any strides, offset or overlap give the same bits",
    "degenerate": "empty, single and odd sizes",
    "contract": "opcheck, fake tensors, no graph break",
    "graphs": "no host synchronisation, no allocation in the persistent launch",
    "variants": "few compiled variants, the batch never a constant",
    "caches": "cold starts on one folder; nothing left by another batch, no memory kept for one",
    "compile": "compiled for every architecture within its limits, table up to date",
    "compiled": "run as compiled for sm_90 and sm_80 in every dtype: values, bounds, races; seeded defects are found",
    "cost": "FLOPs, bytes and special functions as the kernels execute them; modelled ACT step",
}
"""Row of the table -> what it says, in the order of the table."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.slow)
        if marker := item.get_closest_marker("proof"):
            assert marker.args[0] in PROPERTIES, f"{item.nodeid}: unknown property {marker.args[0]!r}"
            item.user_properties.append(("proof", marker.args[0]))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            found = dict(getattr(report, "user_properties", ()))
            if "proof" in found:
                counts[found["proof"]][outcome] += found.get("cells", 1)
    if not counts or importlib.util.find_spec("rich") is None:
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title="proof; a skipped cell needs a GPU or a tool that is not here, and is not a pass")
    for column in ("property", "what holds", "run", "passed", "failed", "skipped"):
        table.add_column(column, justify="left" if column in ("property", "what holds") else "right")
    for name, text in PROPERTIES.items():
        if name in counts:
            c = counts[name]
            failed = c["failed"] + c["error"]
            figures = (c["passed"] + failed, c["passed"], failed, c["skipped"])
            table.add_row(name, text, *map(str, figures), style="red" if failed else None)
    terminalreporter.ensure_newline()
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 140).print(table)
