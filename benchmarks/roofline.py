"""python -m benchmarks.roofline: what bounds each kernel of an ACT or training step on an H200, and how long it takes.

FLOPs, special functions and bytes of HBM come from the ops' cost models (`benchmarks/costs`), which
`tests/proof/test_cost.py` holds to what the kernels do. Everything else comes from executed compiled code
(`benchmarks/pipes.py`, `benchmarks/simulation.py`). It is arithmetic: a measured time stands beside it where a profile
has one.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.costs import KernelCost, Limits
from benchmarks.costs import adam_atan2 as adam_cost
from benchmarks.costs import attention_norm as attention_cost
from benchmarks.costs import halting as halting_cost
from benchmarks.costs import mixer_norm as mixer_cost
from benchmarks.costs import swiglu_norm as swiglu_cost
from benchmarks.costs import token_loss as loss_cost
from benchmarks.simulation import L2, PIPES, Executed, seconds_of, simulate
from rtm_kernels.impl import triton_interpreted
from rtm_kernels.program import trm

H200 = Limits(flops=790e12, bytes=4.3e12, special=132 * 16 * 1.755e9)
NODE = 1.3e-6
"""Seconds from the end of a node of a CUDA graph to the start of the next, as others measured on an H200."""
BATCHES = (1, 8, 64, 768)
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
    number: int = 0
    """Of the kernel among the lines of its op that launch the same one."""


def parameters(mixer: str) -> int:
    """Parameters that AdamATan2 updates: the layers, the embedding of the tokens, both heads."""
    return LAYERS * (MIXERS[mixer] + 3 * INNER * WIDTH) + 2 * WIDTH * VOCABULARY + 2 * (WIDTH + 1)


def _mixer(batch: int, mixer: str, terms: int, backward: bool) -> list[tuple[str, KernelCost]]:
    """The launches of the first half of a layer."""
    if mixer == "mlp":
        sizes = (batch, LENGTH, WIDTH, MIXER_INNER, terms)
        found = mixer_cost.backward(*sizes) if backward else mixer_cost.forward(*sizes)
        return [("mixer_norm backward" if backward else f"mixer_norm +{terms}", c) for c in found]
    if backward:
        return [("attention_norm backward", c) for c in attention_cost.backward(batch, LENGTH, WIDTH, HEADS)]
    return [(f"attention_norm +{terms}", c) for c in attention_cost.forward(batch, LENGTH, WIDTH, HEADS, terms)]


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
    lines: list[Line] = []
    for (step, cost), calls in counts.items():
        number = sum((line.step, line.cost.kernel) == (step, cost.kernel) for line in lines)
        lines.append(Line(step, calls, cost, number))
    return lines


def modelled_milliseconds(lines: list[Line], limits: Limits = H200) -> float:
    """The sum of the least times of all launches by FLOPs, bytes of HBM and special functions alone."""
    return 1e3 * sum(line.calls * limits.seconds(line.cost) for line in lines)


def estimate(line: Line, executed: Executed) -> float:
    """Seconds of one launch: by HBM or by what its executed program says; by the cost model where PyTorch launches."""
    launch = executed.get((line.step, line.cost.kernel, line.number))
    if launch is None:
        return H200.seconds(line.cost)
    return max(line.cost.bytes / H200.bytes, seconds_of(launch))


def step_milliseconds(lines: list[Line], executed: Executed) -> float:
    """A captured step: all launches one after the other, as nodes of a graph."""
    return 1e3 * sum(line.calls * (estimate(line, executed) + NODE) for line in lines)


def measured(folder: Path) -> Iterator[tuple[str, float]]:
    """(kernel, milliseconds of one launch) of every kernel that a GPU profile below `folder` measured."""
    for path in sorted(folder.glob("*/kernels.json")):
        for row in json.loads(path.read_text()):
            yield row["kernel"], row["milliseconds"]


COLUMNS = ("op", "kernel", "calls", "programs", "waves", "per SM", "GFLOP", "useful", "HBM", *PIPES, "before",
           "products", "after", "bound by", "ms", "ms in all", "measured")  # fmt: skip


def facts(lines: list[Line], executed: Executed) -> Iterator[dict[str, Any]]:
    """What the cost model says of each launch, and what executed code says of it."""
    for line in lines:
        row = {"op": line.step, "calls": line.calls, **vars(line.cost), "milliseconds": 1e3 * estimate(line, executed)}
        launch = executed.get((line.step, line.cost.kernel, line.number))
        if launch is not None:
            row |= {
                "executed_flops": launch.flops,
                "executed_special": launch.special,
                "L2_bytes": launch.seconds("L2") * L2,
            }
        yield row


def rows(lines: list[Line], executed: Executed, times: dict[str, float]) -> Iterator[dict[str, str]]:
    """The table of a step: limits of a launch in milliseconds, clocks of one program alone, and the estimate."""
    for line in lines:
        c, launch = line.cost, executed.get((line.step, line.cost.kernel, line.number))
        limits = {"HBM": c.bytes / H200.bytes}
        row = {"op": line.step, "kernel": c.kernel, "calls": str(line.calls), "GFLOP": f"{c.flops / 1e9:.1f}",
               "useful": f"{c.useful / 1e9:.1f}"}  # fmt: skip
        if launch is None:
            limits |= {"tensor": c.flops / H200.flops, "special": c.special / H200.special}
        else:
            limits |= {pipe: launch.seconds(pipe) for pipe in PIPES}
            phases = simulate(launch, 1, 1)[1]
            row |= {name: f"{clocks:.0f}" for name, clocks in zip(("before", "products", "after"), phases, strict=True)}
            row |= {"programs": str(launch.grid), "waves": f"{launch.waves:.1f}", "per SM": str(launch.resident)}
        time = estimate(line, executed)
        bound = max(limits, key=lambda name: limits[name])
        row |= {name: f"{1e3 * seconds:.3f}" for name, seconds in limits.items()}
        row |= {"bound by": bound if time < 1.15 * limits[bound] else f"{bound} + waits", "ms": f"{1e3 * time:.3f}",
                "ms in all": f"{1e3 * line.calls * (time + NODE):.2f}"}  # fmt: skip
        row["measured"] = f"{times[c.kernel]:.3f}" if c.kernel in times else ""
        yield row


def print_table(title: str, lines: list[Line], executed: Executed, times: dict[str, float]) -> None:
    """One line per kernel, and the sum."""
    shown = [name for name in COLUMNS if name != "measured" or times]
    table = Table(title=title, padding=(0, 0, 0, 1), pad_edge=False)
    for name in shown:
        table.add_column(name, justify="left" if name in ("op", "kernel", "bound by") else "right", no_wrap=True)
    for row in rows(lines, executed, times):
        table.add_row(*(row.get(name, "") for name in shown))
    total = {"op": "sum", "calls": str(sum(line.calls for line in lines)),
             "ms in all": f"{step_milliseconds(lines, executed):.2f}"}  # fmt: skip
    table.add_section()
    table.add_row(*(total.get(name, "") for name in shown))
    Console(width=None if sys.stdout.isatty() else 210).print(table)


def print_sums(mixer: str) -> None:
    """Milliseconds of an ACT step by batch and executor."""
    from benchmarks.executed import persistent, run

    table = Table(title="ms of an ACT step")
    for name in ("batch", "graph", "persistent: sum", "mixer", "gate_up", "down", "barriers"):
        table.add_column(name, justify="right")
    for batch in BATCHES:
        cells = [f"{step_milliseconds(act_step(batch, mixer), run(batch, mixer)):.2f}"]
        if mixer == "mlp":
            parts = persistent(batch)
            cells += [f"{1e3 * seconds:.2f}" for seconds in (sum(parts.values()), *parts.values())]
        table.add_row(str(batch), *cells)
    Console(width=None if sys.stdout.isatty() else 150).print(table)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="model every kernel of an ACT step and of a training step")
    parser.add_argument("--batch", type=int, default=768)
    parser.add_argument("--mixer", default="mlp", choices=sorted(MIXERS), help="which official Sudoku model")
    parser.add_argument("--json", action="store_true", help="print the rows of the training step as JSON instead")
    options = parser.parse_args(argv)
    if triton_interpreted():
        print("error: Triton interprets, and this executes compiled code: unset TRITON_INTERPRET")
        return 1
    from benchmarks.executed import run

    times = dict(measured(Path(__file__).resolve().parent.parent / "profiles"))
    lines, executed = training_step(options.batch, options.mixer), run(options.batch, options.mixer, training=True)
    if options.json:
        print(json.dumps(list(facts(lines, executed))))
        return 0
    title = f"B = {options.batch}; ms of one launch by pipe if nothing else held it up, clocks of one program alone"
    print("H200: 790 TFLOP/s, HBM 4.3 TB/s, L2 7 TB/s, 132 SMs at 1.755 GHz: 64 B/clk from L2, 128 of shared memory")
    forward = act_step(options.batch, options.mixer)
    print_table(f"ACT step, {title}", forward, executed, times)
    print_table(f"training step beyond its ACT step, {title}", lines[len(forward) :], executed, times)
    print(f"training step: {step_milliseconds(lines, executed):.1f} ms")
    print_sums(options.mixer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
