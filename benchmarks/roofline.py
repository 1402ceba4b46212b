"""python -m benchmarks.roofline: what bounds each kernel of an ACT or training step on an H200, and how long it takes.

Everything comes from executed compiled code (`benchmarks/executed.py`, `benchmarks/simulation.py`). Launches of
PyTorch, heads, losses and optimisers are modelled by their bytes alone. It is arithmetic: a measured time stands beside
it where a profile has one.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.executed import INNER, LENGTH, MIXER_INNER, WIDTH, attention_norm, persistent, swiglu_norm
from benchmarks.simulation import HBM, PIPES, Launch, seconds_of, simulate
from rtm_kernels.impl import triton_interpreted
from rtm_kernels.program import trm

NODE = 1.3e-6
"""Seconds from the end of a node of a CUDA graph to the start of the next, as others measured on an H200."""
BATCHES = (1, 8, 64, 768)
VOCABULARY, LAYERS = 11, 2
MIXERS = {"mlp": 3 * MIXER_INNER * LENGTH, "attention": 4 * WIDTH * WIDTH}
"""Mixer of a layer -> its parameters."""


@dataclass(frozen=True, eq=False)
class Line:
    """A kernel, and how often a step launches it; `launch` is None for what is not executed and only moves bytes."""

    op: str
    kernel: str
    calls: int
    launch: Launch | None
    bytes: int

    @property
    def seconds(self) -> float:
        """Of one launch."""
        return self.bytes / HBM if self.launch is None else seconds_of(self.launch)


def _op(op: str, calls: int, found: list[Launch]) -> Iterator[Line]:
    yield from (Line(op, launch.kernel, calls, launch, launch.bytes) for launch in found)


def _half(batch: int, mixer: str, terms: int, calls: int, backward: bool) -> Iterator[Line]:
    """The launches of the first half of a layer."""
    name = f"{'mixer' if mixer == 'mlp' else mixer}{' backward' * backward} +{terms}"
    if mixer == "mlp":
        yield from _op(name, calls, swiglu_norm("sequence", batch, terms, backward))
        return
    yield from _op(name, calls, attention_norm(batch, terms, backward))
    latent = 2 * batch * LENGTH * WIDTH
    yield Line(name, "attention, copies (PyTorch)", calls, None, (16 if backward else 6) * latent)


def _layers(batch: int, mixer: str, backward: bool) -> list[Line]:
    """The launches of every layer application, or of the backward of those with a gradient."""
    steps = [step for step in trm(3, 6).steps if step.grad or not backward]
    applied, name = LAYERS * len(steps), f"channel{' backward' * backward}"
    channel = _op(name, applied, swiglu_norm("hidden", batch, 0, backward))
    if backward:  # the injection is a launch of its own, and all others do not depend on it
        lines = list(_half(batch, mixer, 2, applied, backward))
        return [*(replace(n, calls=len(steps)) if n.kernel == "inject" else n for n in lines), *channel]
    counts = Counter(min(len(step.state) + len(step.inject) - 1, 2) for step in steps)
    counts[0] += applied - len(steps)
    return [*(line for terms, n in counts.items() for line in _half(batch, mixer, terms, n, backward)), *channel]


def act_step(batch: int, mixer: str = "mlp") -> list[Line]:
    """The launches of one forward ACT step of `batch` puzzles: every layer application, both heads, halting."""
    latent = 2 * batch * LENGTH * WIDTH
    logits = 2 * batch * LENGTH * VOCABULARY
    heads = Line("lm head", "linear (PyTorch)", 1, None, latent + logits), Line("halting", "step", 1, None, 3 * latent)
    return [*_layers(batch, mixer, backward=False), *heads]


def backward(batch: int, mixer: str = "mlp") -> list[Line]:
    """What a training step launches beyond its ACT step: the loss, the backward of the last H cycle, the optimisers."""
    logits, rows = 2 * batch * LENGTH * VOCABULARY, 4 * batch * WIDTH
    parameters = LAYERS * (MIXERS[mixer] + 3 * INNER * WIDTH) + 2 * WIDTH * VOCABULARY + 2 * (WIDTH + 1)
    loss = [Line("loss", "forward", 1, None, 2 * logits), Line("loss", "backward", 1, None, 3 * logits)]
    update = Line("optimiser", "adam_atan2", 1, None, 28 * parameters), Line("optimiser", "sign_sgd", 1, None, 3 * rows)
    return [*loss, *_layers(batch, mixer, backward=True), *update]


def milliseconds(lines: list[Line]) -> float:
    """A captured step: all launches one after the other, as nodes of a graph."""
    return 1e3 * sum(line.calls * (line.seconds + NODE) for line in lines)


def measured(folder: Path) -> Iterator[tuple[str, float]]:
    """(kernel, milliseconds of one launch) of every kernel that a GPU profile below `folder` measured."""
    for path in sorted(folder.glob("*/kernels.json")):
        for row in json.loads(path.read_text()):
            yield row["kernel"], row["milliseconds"]


def facts(line: Line) -> dict[str, object]:
    """A line as JSON."""
    row = {"op": line.op, "kernel": line.kernel, "calls": line.calls, "bytes": line.bytes,
           "milliseconds": 1e3 * line.seconds}  # fmt: skip
    if line.launch is None:
        return row
    limits = {pipe: 1e3 * line.launch.seconds(pipe) for pipe in PIPES}
    return row | {"flops": line.launch.flops, "special": line.launch.special, "limits": limits}


COLUMNS = ("op", "kernel", "calls", "programs", "waves", "per SM", "GFLOP", *PIPES, "before", "products", "after",
           "bound by", "ms", "in all", "measured")  # fmt: skip


def cells(line: Line, times: dict[str, float]) -> dict[str, str]:
    """A line of the table: limits of a launch in milliseconds, clocks of one program alone, and the estimate."""
    launch, limits, row = line.launch, {"HBM": line.bytes / HBM}, {}
    if launch is not None:
        limits = {pipe: launch.seconds(pipe) for pipe in PIPES}
        phases = simulate(launch, 1, 1)[1]
        row = {name: f"{clocks:.0f}" for name, clocks in zip(("before", "products", "after"), phases, strict=True)}
        row |= {"programs": str(launch.grid), "waves": f"{launch.waves:.1f}", "per SM": str(launch.resident),
                "GFLOP": f"{launch.flops / 1e9:.1f}"}  # fmt: skip
    bound = max(limits, key=lambda name: limits[name])
    row |= {name: f"{1e3 * seconds:.3f}" for name, seconds in limits.items()}
    waits = " + waits" if line.seconds > 1.15 * limits[bound] else ""
    row |= {"op": line.op, "kernel": line.kernel, "calls": str(line.calls), "bound by": bound + waits,
            "ms": f"{1e3 * line.seconds:.3f}", "in all": f"{milliseconds([line]):.2f}"}  # fmt: skip
    return row | ({"measured": f"{times[line.kernel]:.3f}"} if line.kernel in times else {})


def print_table(title: str, lines: list[Line], times: dict[str, float]) -> None:
    """One line per kernel, and the sum."""
    shown = [name for name in COLUMNS if name != "measured" or times]
    table = Table(title=title, padding=(0, 0, 0, 1), pad_edge=False)
    for name in shown:
        table.add_column(name, justify="left" if name in ("op", "kernel", "bound by") else "right", no_wrap=True)
    for line in lines:
        row = cells(line, times)
        table.add_row(*(row.get(name, "") for name in shown))
    total = {"op": "sum", "calls": str(sum(line.calls for line in lines)), "in all": f"{milliseconds(lines):.2f}"}
    table.add_section()
    table.add_row(*(total.get(name, "") for name in shown))
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def print_sums(mixer: str, largest: list[Line]) -> None:
    """Milliseconds of an ACT step by batch and executor; `largest` is the step of the last batch."""
    table = Table(title="ms of an ACT step")
    for name in ("batch", "graph", "persistent", "of it mixer", "gate_up", "down", "barriers"):
        table.add_column(name, justify="right")
    for batch in BATCHES:
        parts = persistent(batch) if mixer == "mlp" else {}
        times = [sum(parts.values()), *parts.values()]
        graph = milliseconds(largest if batch == BATCHES[-1] else act_step(batch, mixer))
        table.add_row(str(batch), f"{graph:.2f}", *(f"{1e3 * seconds:.2f}" for seconds in times if parts))
    Console(width=None if sys.stdout.isatty() else 150).print(table)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="model every kernel of an ACT step and of a training step")
    parser.add_argument("--batch", type=int, default=BATCHES[-1])
    parser.add_argument("--mixer", default="mlp", choices=sorted(MIXERS), help="which official Sudoku model")
    parser.add_argument("--json", action="store_true", help="print the lines of the training step as JSON instead")
    options = parser.parse_args(argv)
    if triton_interpreted():
        print("error: this executes compiled code, and TRITON_INTERPRET is set", file=sys.stderr)
        return 1
    times = dict(measured(Path(__file__).resolve().parent.parent / "profiles"))
    sizes = options.batch, options.mixer
    forward, more = act_step(*sizes), backward(*sizes)
    if options.json:
        print(json.dumps([facts(line) for line in (*forward, *more)]))
        return 0
    print("H200: 790 TFLOP/s, HBM 4.3 TB/s, L2 7 TB/s, 132 SMs at 1.755 GHz: 64 B/clk from L2, 128 of shared memory.")
    print("ms of one launch, by pipe as if nothing else held it up; clocks of one program alone; ms of all launches.")
    print_table(f"ACT step, B = {options.batch}", forward, times)
    print_table(f"training step, beyond its ACT step, B = {options.batch}", more, times)
    print(f"training step, B = {options.batch}: {milliseconds(forward + more):.1f} ms")
    print_sums(options.mixer, forward if options.batch == BATCHES[-1] else act_step(BATCHES[-1], options.mixer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
