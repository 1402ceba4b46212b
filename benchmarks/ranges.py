"""python -m benchmarks.ranges: what the NVTX ranges cost while no profiler is attached.

Two processes take turns at the same ACT step: the package as it is, and the package from whose source every `@ranged`
was taken as it was imported. Writes profiles/<machine>/ranges.json.
"""

from __future__ import annotations

import argparse
import ast
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any

SIDES = ("kept", "removed")
CALLS = 10
"""ACT steps of one turn."""


class Stripped(SourceFileLoader):
    """Loads a module without the decorators `@ranged(...)`, and counts them."""

    count = 0

    def get_code(self, fullname: str) -> CodeType:
        """The code of the changed source; what is cached on disk is not read."""
        tree = ast.parse(self.get_data(self.path))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                kept = [d for d in node.decorator_list if not ast.unparse(d).startswith("ranged(")]
                Stripped.count += len(node.decorator_list) - len(kept)
                node.decorator_list = kept
        return compile(tree, self.path, "exec")


class Finder(MetaPathFinder):
    """Finds the modules of the package for `Stripped`."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """As the ordinary finder does."""
        spec = PathFinder.find_spec(fullname, path) if fullname.partition(".")[0] == "rtm_kernels" else None
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = Stripped(spec.loader.name, spec.loader.path)
        return spec


def work(side: str) -> None:
    """One process: says how many decorators it took out, then the processor's seconds of an ACT step for every line it
    reads, which other programs on the machine add little to."""
    if side == "removed":
        sys.meta_path.insert(0, Finder())
    import torch

    from benchmarks.cases import Case
    from benchmarks.harness import caller
    from benchmarks.problem import make
    from benchmarks.providers import REFERENCE

    torch.set_num_threads(1)
    call = caller(REFERENCE, make(Case("small", "act_step", 1, "float32", "cpu")))
    for i in range(CALLS):
        call(i)
    print(Stripped.count, flush=True)
    for _ in sys.stdin:
        begin = time.process_time()
        for i in range(CALLS):
            call(i)
        print((time.process_time() - begin) / CALLS, flush=True)


def measure(rounds: int) -> tuple[dict[str, list[float]], int]:
    """Side -> processor seconds of an ACT step in each round, in turns; how many decorators were taken out."""
    command = [sys.executable, "-m", "benchmarks.ranges", "--side"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = {side: subprocess.Popen([*command, side], cwd=Path(__file__).parents[1], **pipes) for side in SIDES}
    try:
        counts = {side: int(_answer(process)) for side, process in processes.items()}
        samples: dict[str, list[float]] = {side: [] for side in SIDES}
        for turn in range(rounds):
            for side in SIDES if turn % 2 == 0 else SIDES[::-1]:
                processes[side].stdin.write("go\n")
                processes[side].stdin.flush()
                samples[side].append(float(_answer(processes[side])))
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    return samples, counts["removed"]


def _answer(process: Any) -> str:
    line: str = process.stdout.readline()
    if not line:
        raise RuntimeError(f"a process ended with status {process.wait()}")
    return line


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ranges", description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--folder", type=Path, help="folder to write to (default: profiles/<machine>)")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.side is not None:
        work(args.side)
        return 0
    from benchmarks import machine, report, rows
    from benchmarks.timing import median_interval

    samples, count = measure(args.rounds)
    pairs = zip(samples["kept"], samples["removed"], strict=True)
    ratio, low, high = median_interval([kept / removed for kept, removed in pairs])
    facts = {"ratio": ratio, "low": low, "high": high, "rounds": args.rounds, "calls": CALLS, "decorators": count}
    facts |= {"seconds": {side: median_interval(values)[0] for side, values in samples.items()}}
    facts |= {"machine": machine.device_name("cpu"), "commit": machine.commit(), "versions": machine.versions()}
    path = (args.folder or report.PROFILES / machine.slug("cpu")) / "ranges.json"
    rows.replace(path, json.dumps(facts, indent=1) + "\n")
    print(f"with ranges / without: {ratio:.4f} ({low:.4f} to {high:.4f}), {count} decorators; written to {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
