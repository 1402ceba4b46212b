"""Compiled gate: the launchers of every op run as Triton compiles them for sm_90 and sm_80, executed on a CPU.

    python -m tests.gates.compiled_gate [--arch 90] [--dtype bfloat16] [--jobs 2] [FILTER ...]

Every case runs forward and backward in each dtype of its op. It fails where an error against float64 is above the
budget of `tests/cases`, where a launch leaves other results than its source does interpreted (at official lengths in
bfloat16, the first and the last program of each kernel's first launch), where accesses race, are out of bounds, not
aligned or to what nobody wrote, where a copy or a product is used before it is waited for, and where new memory (NaN)
reaches a result. The persistent kernel also runs as 1, 2 and 5 programs that take turns at random; its bits must not
depend on that. `tests/compiled` is how.
"""

from __future__ import annotations

import os

if __name__ == "__main__":
    os.environ.pop("TRITON_INTERPRET", None)  # this gate compiles

import argparse
import multiprocessing
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch

from tests.cases import gate_cases, name_of, small_cases
from tests.cases.case import Case, check, run
from tests.compiled.launching import Executor, Launch, installed
from tests.gates.source import CARRIED, LAST_BITS

ARCHITECTURES = (90, 80)
DTYPES = ("bfloat16", "float16", "float32")
SKIPPED = {"float16": ("[1,916",), "float32": ("[1,916", ",512]")}
"""What takes longest, by dtype: L = 916 runs in bfloat16 only, D = 512 in 16 bits only."""
MASTERS = ("adam_atan2", "sign_sgd")
"""Ops whose weights are float32."""
OFFICIAL = (
    "swiglu_norm-[2,97,24]", "swiglu_norm-[2,97,512]", "swiglu_norm-[1,1030,264]", "mixer_norm-[3,97,512]",
    "mixer_norm-[1,97,512]", "mixer_norm-[1,916,64]", "attention_norm-[2,97,64]", "attention_norm-[1,97,512]",
    "halting-[5,97,512]", "token_loss-[3,97,11]", "persistent-transformer[1,97,48]", "queue-3slots,3of4[97,16]",
)  # fmt: skip
"""Starts of the names of the cases at L = 97 and 916, besides the small ones."""
TURNS = ((2, 0), (2, 1), (5, 0), (5, 1), (5, 2))
"""Programs of a persistent launch, and the seed of their order."""


@dataclass
class Executed:
    """One case in one dtype for one architecture."""

    case: str
    op: str
    dtype: str
    arch: int
    forward: float = 0.0
    backward: float = 0.0
    launches: int = 0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)


def cases() -> dict[str, Case]:
    """Those that together launch every kernel, and those at official lengths."""
    chosen = [*small_cases(), *(c for c in gate_cases() if name_of(c).startswith(OFFICIAL))]
    return {name_of(c): c for c in chosen}


def take_turns(case: Case, dtype: torch.dtype, executor: Executor) -> list[str]:
    """Numbers of programs, and seeds, whose bits are not those of one program."""
    from rtm_kernels.recursion.persistent import runner

    made, alone, found = case.make(torch.Generator().manual_seed(0)), runner.multiprocessors, []
    wanted, _ = run(case, "triton", made, dtype)
    try:
        for programs, executor.seed in TURNS:
            runner.multiprocessors = lambda device, otherwise, n=programs: n  # type: ignore[misc]
            got, _ = run(case, "triton", made, dtype)
            if not all(map(torch.equal, got, wanted)):
                found.append(f"other bits with {programs} programs in order {executor.seed}")
    finally:
        runner.multiprocessors = alone
    return found


def sampled(launch: Launch, n: int) -> list[Any]:
    """What is held to its source at official lengths, where the interpreter takes long."""
    return list(dict.fromkeys([launch.programs[0], launch.programs[-1]])) if n == 1 else []


def execute(job: tuple[str, str, int]) -> Executed:
    """One case (name, dtype, architecture)."""
    name, dtype, arch = job
    case = cases()[name]
    result, start = Executed(name, case.op, dtype, arch), time.process_time()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)  # new memory is NaN
    with installed(arch) as executor:
        if not name.startswith(OFFICIAL):
            executor.checks = lambda launch, n: launch.programs
        elif dtype == "bfloat16":
            executor.checks, executor.wide = sampled, CARRIED if case.op == "persistent" else LAST_BITS
        try:
            outcome = check(case, getattr(torch, dtype))
            result.forward, result.backward, result.failures = outcome.forward, outcome.backward, outcome.failures
            if case.op == "persistent":
                result.failures += take_turns(case, getattr(torch, dtype), executor)
        except Exception as error:
            result.failures.append(f"{type(error).__name__}: {error}")
    result.failures += executor.found
    result.launches, result.seconds = executor.launches.total(), time.process_time() - start
    return result


def print_table(results: Sequence[Executed]) -> None:
    """A line per op, dtype and architecture, and one per failure."""
    print(f"{'op':16} {'dtype':10} {'arch':6} cases launches forward backward seconds  (largest error / budget)")
    for key in dict.fromkeys((r.op, r.dtype, r.arch) for r in results):
        own = [r for r in results if (r.op, r.dtype, r.arch) == key]
        forward, backward = max(r.forward for r in own), max(r.backward for r in own)
        launches, seconds = sum(r.launches for r in own), sum(r.seconds for r in own)
        op, dtype, arch = key
        print(
            f"{op:16} {dtype:10} sm_{arch:<3} {len(own):5} {launches:8} {forward:7.2f} {backward:8.2f} {seconds:7.1f}"
        )
    for r in results:
        for failure in r.failures:
            print(f"{r.case} {r.dtype} sm_{r.arch}: {failure}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="run the kernels as compiled, on a CPU")
    parser.add_argument("filters", nargs="*", help="keep cases whose name contains one of these")
    parser.add_argument("--arch", type=int, nargs="+", default=ARCHITECTURES, choices=ARCHITECTURES)
    parser.add_argument("--dtype", nargs="+", default=DTYPES, choices=DTYPES)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args(argv)
    chosen = {n: c for n, c in cases().items() if not options.filters or any(f in n for f in options.filters)}
    jobs = [
        (name, dtype, arch) for arch in options.arch for dtype in options.dtype for name, case in chosen.items()
        if (dtype == "float32" or case.op not in MASTERS) and not any(part in name for part in SKIPPED.get(dtype, ()))
    ]  # fmt: skip
    with ProcessPoolExecutor(options.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        results = []
        for result in pool.map(execute, jobs):
            results.append(result)
            print(f"{result.case} {result.dtype} sm_{result.arch} {result.seconds:.1f} s", *result.failures, flush=True)
    print_table(results)
    failed = sum(bool(r.failures) for r in results)
    print(f"{len(results)} cases, {failed} failed, {sum(r.seconds for r in results):.0f} s of processors")
    return 1 if failed or not results else 0


if __name__ == "__main__":
    sys.exit(main())
