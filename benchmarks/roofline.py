"""python -m benchmarks.roofline: what each kernel of an ACT or training step computes and moves, and its least time.

The counts come from the ops' cost models (`benchmarks/costs`), which `tests/proof/test_cost.py` holds to
what the kernels do. The limits are those of an H200 that a good kernel reaches: 790 TFLOP/s in bfloat16, 4.3 TB/s, and
16 special functions per clock and multiprocessor. A measured time stands beside the model where a profile has one, and
`unproven` where none has. A last table counts the cycles of each pipe in compiled code (`benchmarks/pipes.py`).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.costs import KernelCost, Limits
from benchmarks.costs import adam_atan2 as adam_cost
from benchmarks.costs import attention_norm as attention_cost
from benchmarks.costs import halting as halting_cost
from benchmarks.costs import mixer_norm as mixer_cost
from benchmarks.costs import swiglu_norm as swiglu_cost
from benchmarks.costs import token_loss as loss_cost
from rtm_kernels.impl import triton_interpreted
from rtm_kernels.program import trm

H200 = Limits(flops=790e12, bytes=4.3e12, special=132 * 16 * 1.755e9)
LENGTH, WIDTH, MIXER_INNER, INNER, VOCABULARY, LAYERS, HEADS = 97, 512, 512, 1536, 11, 2, 8
"""The official Sudoku model of TRM: 81 cells behind 16 places of the puzzle embedding."""
MIXERS = {"mlp": 3 * MIXER_INNER * LENGTH, "attention": 4 * WIDTH * WIDTH}
"""Mixer of a layer -> its parameters."""


@dataclass(frozen=True)
class Line:
    """A kernel, and how often a step launches it."""

    step: str
    calls: int
    cost: KernelCost


def parameters(mixer: str) -> int:
    """Parameters that AdamATan2 updates: the layers, the embedding of the tokens, both heads."""
    return LAYERS * (MIXERS[mixer] + 3 * INNER * WIDTH) + 2 * WIDTH * VOCABULARY + 2 * (WIDTH + 1)


def _mixer(batch: int, mixer: str, terms: int, backward: bool) -> list[tuple[str, KernelCost]]:
    """The launches of the first half of a layer."""
    if mixer == "mlp":
        sizes = (batch, LENGTH, WIDTH, MIXER_INNER, terms)
        found = mixer_cost.backward(*sizes) if backward else mixer_cost.forward(*sizes)
        return [("mixer_norm backward" if backward else "mixer_norm", c) for c in found]
    if backward:
        return [("attention_norm backward", c) for c in attention_cost.backward(batch, LENGTH, WIDTH, HEADS)]
    return [("attention_norm", c) for c in attention_cost.forward(batch, LENGTH, WIDTH, HEADS, terms)]


def act_step(batch: int, mixer: str = "mlp") -> list[Line]:
    """The launches of one forward ACT step of `batch` puzzles: every layer application, both heads, halting."""
    lines = []
    for step in trm(3, 6).steps:
        for layer in range(LAYERS):
            terms = len(step.state) + len(step.inject) - 1 if layer == 0 else 0
            lines += _mixer(batch, mixer, min(terms, 2), backward=False)
            lines += [("swiglu_norm", c) for c in swiglu_cost.forward(batch, LENGTH, WIDTH, INNER, 0)]
    lines += [("lm head (PyTorch)", _linear(batch * LENGTH, WIDTH, VOCABULARY))]
    lines += [("halting", halting_cost.step(batch, LENGTH, WIDTH, tokens=81, vocabulary=VOCABULARY))]
    return _counted(lines)


def training_step(batch: int, mixer: str = "mlp") -> list[Line]:
    """The launches of one training step: an ACT step, the loss, the backward of the last H cycle, the optimisers."""
    lines = [("loss", c) for c in loss_cost.forward(batch, LENGTH, VOCABULARY, True, block=128)]
    lines += [("loss", c) for c in loss_cost.backward(batch, LENGTH, VOCABULARY, True)]
    for step in trm(3, 6).steps:
        for layer in range(LAYERS if step.grad else 0):
            terms = len(step.state) + len(step.inject) - 1 if layer == 0 else 0
            lines += _mixer(batch, mixer, min(terms, 2), backward=True)
            lines += [("swiglu_norm backward", c) for c in swiglu_cost.backward(batch, LENGTH, WIDTH, INNER, 0)]
    lines += [("optimiser", adam_cost.adam_atan2(parameters(mixer))), ("optimiser", adam_cost.sign_sgd(batch, WIDTH))]
    return act_step(batch, mixer) + _counted(lines)


def _linear(rows: int, inputs: int, outputs: int, element: int = 2) -> KernelCost:
    flops = 2 * rows * inputs * outputs
    return KernelCost("linear", flops, flops, element * (rows * (inputs + outputs) + inputs * outputs), 0)


def _counted(launches: list[tuple[str, KernelCost]]) -> list[Line]:
    counts: dict[tuple[str, KernelCost], int] = {}
    for launch in launches:
        counts[launch] = counts.get(launch, 0) + 1
    return [Line(step, calls, cost) for (step, cost), calls in counts.items()]


def modelled_milliseconds(lines: list[Line], limits: Limits = H200) -> float:
    """The sum of the least times of all launches, one after the other."""
    return 1e3 * sum(line.calls * limits.seconds(line.cost) for line in lines)


def measured(folder: Path) -> Iterator[tuple[str, float]]:
    """(kernel, milliseconds of one launch) of every kernel that a GPU profile below `folder` measured."""
    for path in sorted(folder.glob("*/kernels.json")):
        for row in json.loads(path.read_text()):
            yield row["kernel"], row["milliseconds"]


def print_table(title: str, lines: list[Line], times: dict[str, float], limits: Limits = H200) -> None:
    """One line per kernel, and the sum."""
    table = Table(title=title)
    columns = ("op", "kernel", "calls", "GFLOP", "useful", "MB", "Mspecial", "bound by", "model ms", "measured ms",
               "of the model")  # fmt: skip
    for column in columns:
        table.add_column(column, justify="left" if column in ("op", "kernel", "bound by") else "right")
    for line in lines:
        c, least = line.cost, 1e3 * limits.seconds(line.cost)
        bounds = {"products": c.flops / limits.flops, "bytes": c.bytes / limits.bytes,
                  "special": c.special / limits.special}  # fmt: skip
        time = times.get(c.kernel)
        proven = ("unproven", "") if time is None else (f"{time:.3f}", f"{least / time:.0%}")
        figures = (f"{c.flops / 1e9:.1f}", f"{c.useful / 1e9:.1f}", f"{c.bytes / 1e6:.1f}", f"{c.special / 1e6:.0f}")
        bound = max(bounds, key=lambda name: bounds[name])
        table.add_row(line.step, c.kernel, str(line.calls), *figures, bound, f"{least:.3f}", *proven)
    table.add_section()
    flops = sum(line.calls * line.cost.flops for line in lines)
    total = (f"{flops / 1e9:.0f}", *[""] * 4, f"{modelled_milliseconds(lines, limits):.2f}", "", "")
    table.add_row("sum", "", str(sum(line.calls for line in lines)), *total)
    Console(width=None if sys.stdout.isatty() else 150).print(table)


def print_compiled() -> None:
    """The least cycles of one program of each kernel, from its compiled code; a minute when nothing is compiled yet."""
    from benchmarks.pipes import bounds, rows

    table = Table(title="least cycles of one program by pipe, sm_90, bfloat16, L = 97: arithmetic from compiled code")
    columns = (
        "op",
        "kernel",
        "tensor",
        "fma",
        "special",
        "shared",
        "global",
        "issue",
        "limit",
        "registers",
        "KiB",
        "resident",
    )
    for column in columns:
        table.add_column(column, justify="left" if column in ("op", "kernel", "limit") else "right")
    rows(bounds(), table.add_row)
    Console(width=None if sys.stdout.isatty() else 150).print(table)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="model every kernel of an ACT step and of a training step")
    parser.add_argument("--batch", type=int, default=768)
    parser.add_argument("--mixer", default="mlp", choices=sorted(MIXERS), help="which official Sudoku model")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON instead")
    options = parser.parse_args(argv)
    profiles = Path(__file__).resolve().parent.parent / "profiles"
    times = dict(measured(profiles))
    parts = {
        f"forward ACT step, B = {options.batch}": act_step(options.batch, options.mixer),
        f"training step, B = {options.batch}": training_step(options.batch, options.mixer),
    }
    if options.json:
        rows = [
            {"part": part, "op": line.step, "calls": line.calls, **vars(line.cost),
             "model_ms": 1e3 * H200.seconds(line.cost), "measured_ms": times.get(line.cost.kernel)}
            for part, lines in parts.items() for line in lines
        ]  # fmt: skip
        print(json.dumps(rows))
        return 0
    for part, lines in parts.items():
        print_table(f"{part}; 790 TFLOP/s, 4.3 TB/s, 3.7e12 special functions per second", lines, times)
    if triton_interpreted():
        print("no table of compiled code: Triton interprets")
    else:
        print_compiled()
    return 0


if __name__ == "__main__":
    sys.exit(main())
