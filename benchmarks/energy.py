"""python -m benchmarks.energy: joules per ACT step and per puzzle, in windows of 30 s, and watts when idle.

Contestants take turns. The counter is that of the GPU board (NVML) or processor package (RAPL); where neither can be
read the file says `null`, and nothing is estimated.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import machine, rows
from benchmarks.cases import Case
from benchmarks.gate import refusal
from benchmarks.harness import caller
from benchmarks.problem import make
from benchmarks.providers import BASELINE, PROVIDERS

WINDOW = 30.0
"""Seconds of one window, long against the counter's refresh."""


def measure(case: Case, impls: Sequence[str], window: float) -> list[dict[str, object]]:
    """Gross joules per call, per sample and ACT step, and per puzzle of `halt_max_steps` ACT steps."""
    problem, found = make(case), []
    for provider in PROVIDERS:
        if provider.name not in impls:
            continue
        reason = provider.why_not(case) or refusal(provider, problem)
        energy = None if reason else machine.energy(caller(provider, problem), case.device, window)
        row: dict[str, object] = {"case": case.name, "impl": provider.name, "reason": reason, "energy": energy}
        if energy is not None:
            each = float(energy["joules_per_call"]) / case.batch
            row |= {"joules_per_act_step": each, "joules_per_puzzle": each * case.config.halt_max_steps}
        found.append(row)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; 1 where no counter can be read."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.energy", description=__doc__)
    gpu = torch.cuda.is_available()
    parser.add_argument("--model", default="sudoku" if gpu else "small")
    parser.add_argument("--batch", type=int, default=768 if gpu else 1)
    parser.add_argument("--impl", action="append", help="providers (default: the baseline and the best of ours)")
    parser.add_argument("--window", type=float, default=WINDOW)
    parser.add_argument("--folder", type=Path, help="folder to write to (default: profiles/<machine>)")
    args = parser.parse_args(argv)
    device = "cuda" if gpu else "cpu"
    case = Case(args.model, "act_step", args.batch, "bfloat16" if gpu else "float32", device)
    idle = machine.idle_watts(device)
    found = measure(case, args.impl or [BASELINE.name, "rtm_triton_graph" if gpu else "rtm_native"], args.window)
    facts = {"machine": machine.device_name(device), "commit": machine.commit(), "idle_watts": idle}
    path = (args.folder or machine.ROOT / "profiles" / machine.slug(device)) / "energy.json"
    rows.replace(path, json.dumps({**facts, "versions": machine.versions(), "rows": found}, indent=1) + "\n")
    read = [row for row in found if row["energy"] is not None]
    print(f"{len(read)} of {len(found)} measured, idle {idle} W, written to {path}")
    return int(len(read) < len(found))


if __name__ == "__main__":
    raise SystemExit(main())
