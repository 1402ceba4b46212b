"""python -m benchmarks.loops: the gap between ACT steps, of the loop that the host polls and of the WHILE node.

Both run the same captured step of the official Sudoku model `halt_max_steps` times; the gap is what a step takes more
than in a row of replays that nobody looks at. Writes the rows `step_gap` of summary.json.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine, report
from benchmarks.cases import Case, dtype_on
from benchmarks.problem import make
from benchmarks.timing import Call, Clock, interleave, median_interval
from rtm_kernels.recursion import conditional, fused
from rtm_kernels.recursion.act_graph import LOOPS, ActGraph
from rtm_kernels.recursion.head import HaltingHead

METRICS = ("run", "step_gap")
REPLAYS = "replays"


def calls(case: Case) -> dict[str, Call]:
    """Name -> all ACT steps of one batch, from loading it to the host knowing that it is done: `replays` in a row
    without a look at the halting state, and both loops."""
    problem = make(case, copies=1)
    model, inputs, steps = problem.model, problem.inputs[0], problem.config.halt_max_steps
    stacks = fused.stacks_of({name: model.get_submodule(name) for name in model.config.layers}, model.cos_sin())
    head = HaltingHead("fixed", steps)
    with torch.no_grad():
        x = model.embed(inputs["inputs"], inputs["puzzle_identifiers"])
    latents = {name: inputs[name] for name in model.program.carried}

    def run_of(loop: str) -> Call:
        graph = ActGraph(model.program, stacks, head, latents, x, loop="poll" if loop == REPLAYS else loop)

        def run(i: int) -> int:
            graph.load(latents, x)
            if loop != REPLAYS:
                return graph.run()
            for _ in range(steps):
                graph.step()
            return int(graph.steps.item())

        return torch.inference_mode()(run)

    return {loop: run_of(loop) for loop in (REPLAYS, *LOOPS)}


def measure(case: Case, seconds: float) -> list[dict[str, Any]]:
    """Rows of a summary: seconds of a whole run, and the gap between two of its steps, with their intervals."""
    steps = case.config.halt_max_steps
    timed = interleave(calls(case), Clock(case.device), seconds=seconds)
    where = {
        "case": f"{case.model}-loop-B{case.batch}-{case.dtype}-{case.device}", "baseline": "poll",
        **machine.facts(case.device), "unit": "s", "fraction_of_limit": None,
    }  # fmt: skip
    found: list[dict[str, Any]] = []
    for name, samples in timed.items():
        ratio, low, high = median_interval([p / s for p, s in zip(timed["poll"], samples, strict=True)])
        ratios = {"ratio": ratio, "ratio_low": low, "ratio_high": high}
        found.append(where | {"impl": name, "metric": "run", "value": median_interval(samples)[0]} | ratios)
        if name == REPLAYS:
            continue
        gap, low, high = median_interval([(s - r) / steps for s, r in zip(samples, timed[REPLAYS], strict=True)])
        none = dict.fromkeys(ratios)
        found.append(where | {"impl": name, "metric": "step_gap", "value": gap, "low": low, "high": high} | none)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: 0 when both loops were measured at every batch size."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loops", description=__doc__)
    parser.add_argument("--model", default="sudoku")
    parser.add_argument("--batch", type=int, action="append", help="batch sizes (default: 1 and 8)")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds after which no batch size begins")
    parser.add_argument("--seconds", type=float, default=1.0, help="seconds of timed rounds per batch size")
    parser.add_argument("--folder", type=Path, help="folder to write to (default: profiles/<gpu>)")
    args = parser.parse_args(argv)
    reason = conditional.why_not()
    if reason is not None:
        parser.error(f"WHILE nodes cannot run: {reason}")
    device, begin, wanted = "cuda", time.monotonic(), args.batch or [1, 8]
    folder = args.folder or report.PROFILES / machine.slug(device)
    found: list[dict[str, Any]] = []
    told: list[str] = []
    for batch in wanted:
        if time.monotonic() - begin > args.limit:
            break
        rows = measure(Case(args.model, "solve", batch, dtype_on(device), device), args.seconds)
        found += rows
        report.update_summary(folder, found, METRICS)
        gaps = [f"{r['impl']} {1e6 * r['value']:.1f} us" for r in rows if r["metric"] == "step_gap"]
        told.append(f"B{batch}: {', '.join(gaps)} between steps")
        print(told[-1], flush=True)
    print("; ".join(told))
    return int(len(told) < len(wanted))


if __name__ == "__main__":
    raise SystemExit(main())
