"""Interpreter gate: every kernel, forward and backward, interpreted on CPU and held to the float64 reference.

    python -m tests.gates.interpret_gate [FILTER ...]

The cases are in `tests/cases`. New tensors are filled with NaN, so an output that is not written is seen.
"""

from __future__ import annotations

import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import argparse
import traceback

import torch

from tests.cases import gate_cases
from tests.cases.case import Outcome, check
from tests.interpreter import take_loop_bounds


def print_table(outcomes: list[Outcome]) -> None:
    """One line per case; `error / budget` of outputs and gradients, failures last."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="interpreter gate, float32; error / budget, at most 1")
    for column in ("op", "case", "outputs", "gradients", "launches", "seconds", "result"):
        table.add_column(column, justify="left" if column in ("op", "case", "result") else "right")
    for o in outcomes:
        figures = (f"{o.forward:.2f}", f"{o.backward:.2f}", str(o.launches), f"{o.seconds:.1f}")
        table.add_row(o.case.op, o.case.name, *figures, "[red]" + "; ".join(o.failures) if o.failures else "ok")
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="interpret every kernel and hold it to the float64 reference")
    parser.add_argument("filters", nargs="*", help="keep cases whose op or name contains one of these")
    options = parser.parse_args(argv)
    take_loop_bounds()
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    outcomes = []
    for case in gate_cases():
        if options.filters and not any(f in case.op or f in case.name for f in options.filters):
            continue
        try:
            outcomes.append(check(case))
        except Exception:
            outcomes.append(Outcome(case, failures=[traceback.format_exc().strip().splitlines()[-1]]))
    print_table(outcomes)
    failed = sum(bool(o.failures) for o in outcomes)
    print(f"{len(outcomes)} cases, {failed} failed, {sum(o.seconds for o in outcomes):.0f} s interpreting")
    return 1 if failed or not outcomes else 0


if __name__ == "__main__":
    sys.exit(main())
