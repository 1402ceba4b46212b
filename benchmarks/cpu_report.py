"""python -m benchmarks.cpu_report: writes the tables of profiles/findings/cpu.md from the raw rows of every machine.

A table stands between `<!-- table NAME FILE -->` and `<!-- end -->`; FILE is a file of rows below profiles/.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.cpu_int8 import may_be_default
from benchmarks.cpu_peers import CASES
from benchmarks.machine import ROOT
from benchmarks.rows import replace

PAGE = ROOT / "profiles" / "findings" / "cpu.md"
NAMES = {
    "sgemm": "sgemm of 1536",
    "native": "**native, float32**",
    "eager_float32": "official structure, eager float32",
    "eager_bfloat16": "official structure, eager bfloat16",
    "compile": "torch.compile",
    "compile_max_autotune_frozen": "torch.compile, max-autotune, frozen",
    "onnxruntime": "ONNX Runtime",
    "native_bfloat16": "**native, bfloat16**",
    "native_int8": "**native, int8**",
}
PEERS = ("eager_float32", "compile", "compile_max_autotune_frozen", "onnxruntime")
"""Those that compute in float32."""

Row = dict[str, Any]


def read(file: str) -> list[Row]:
    """The rows that a benchmark wrote."""
    return [json.loads(line) for line in (ROOT / "profiles" / file).read_text().splitlines()]


def rates(file: str) -> list[str]:
    """Case by candidate: the median over the rounds in GFLOP/s, and the fastest round."""
    found = {(row["case"], row["impl"]): row for row in read(file)}
    cases = [case.name for case in CASES if (case.name, "native") in found]
    lines = [f"| GFLOP/s: median (fastest round) | {' | '.join(cases)} |", "|---|" + "--:|" * len(cases)]
    for impl, title in NAMES.items():
        cells = [found.get((case, impl)) for case in cases]
        values = ["" if row is None else f"{row['value']:.0f} ({row['best']:.0f})" for row in cells]
        lines.append(f"| {title} | {' | '.join(values)} |")
    return lines


def targets(file: str) -> list[str]:
    """Targets by case: the ratio of medians round by round, that of the fastest rounds, and whether both reach it."""
    found = {(row["case"], row["impl"]): row for row in read(file)}
    lines = ["| case | rate | wanted | medians | fastest rounds | holds |", "|---|---|--:|--:|--:|---|"]
    for case in [case for case in CASES if (case.name, "native") in found]:
        mine = {impl: row for (name, impl), row in found.items() if name == case.name}
        peers = [mine[peer] for peer in PEERS if peer in mine]
        by_peer = min(row["native_over_this"] for row in peers), min(row["native_over_this_best"] for row in peers)
        of_peer = 1.5 if case.batch == 1 and case.mixer == "mlp" else 1.2
        gemm = mine["sgemm"]["native_over_this"], mine["sgemm"]["native_over_this_best"]
        wanted = [("float32 to the best float32 peer", of_peer, by_peer), ("float32 to sgemm", 0.85, gemm)]
        if "native_int8" in mine:
            times = mine["native_int8"]
            ratios = by_peer[0] / times["native_over_this"], by_peer[1] / times["native_over_this_best"]
            wanted.append(("int8 to the best float32 peer", 2.5, ratios))
        for what, least, (median, best) in wanted:
            holds = {0: "no", 1: "in one of the two", 2: "yes"}[(median >= least) + (best >= least)]
            lines.append(f"| {case.name} | {what} | {least} | {median:.2f} | {best:.2f} | {holds} |")
    return lines


def answers(file: str) -> list[str]:
    """Agreement with float32 by list, policy and format."""
    lines = [
        "| puzzles | policy | format | solved | same answer, of those float32 solves | at least | steps | speed |",
        "|---|---|---|--:|--:|--:|--:|--:|",
    ]
    for row in read(file):
        low, _ = row["interval_of_solved"]
        lines.append(
            f"| {row['n']} {row['case']} | {row['policy']} | {row['impl'].removeprefix('native_')} | {row['solved']} "
            f"| {row['agree_of_solved']} of {row['solved_float32']} | {low:.4f} | {row['mean_steps']:.2f} "
            f"| {row['speedup']:.2f} |"
        )
    weights = sorted({row["weights_sha256"][:8] for row in read(file)})
    formats = list(dict.fromkeys(row["impl"].removeprefix("native_") for row in read(file)))[1:]
    verdict = [f"{name} {'may' if may_be_default(read(file), name) else 'may not'}" for name in formats]
    return [*lines, "", f"Weights {', '.join(weights)}. As the default of a solver: {', '.join(verdict)}."]


def training(file: str) -> list[str]:
    """CPU time of an optimiser step of a recipe, by way of training."""
    lines = ["| way | ms of one thread | speed | quartiles |", "|---|--:|--:|--:|"]
    for row in json.loads((ROOT / "profiles" / file).read_text())["rows"]:
        low, high = row["quartiles"]
        lines.append(f"| {row['way']} | {row['cpu_ms']:.0f} | {row['speedup']:.2f} | {low:.2f} to {high:.2f} |")
    return lines


TABLES: dict[str, Callable[[str], list[str]]] = {
    "rates": rates, "targets": targets, "answers": answers, "training": training
}  # fmt: skip


def filled(text: str) -> str:
    """`text` with every table made anew. Errors: `KeyError` for a table that is not known."""

    def table(found: re.Match[str]) -> str:
        return "\n".join([found[1], *TABLES[found[2]](found[3]), "<!-- end -->"])

    return re.sub(r"(?s)(<!-- table (\w+) ([\w/.-]+) -->)\n.*?<!-- end -->", table, text)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    replace(PAGE, filled(PAGE.read_text()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
