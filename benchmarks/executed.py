"""The launches of the official Sudoku layers as compiled for sm_90, in bfloat16, with what their first program does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

from benchmarks.pipes import CLOCK, SMS, Traced, tracing
from benchmarks.simulation import GRID_BARRIER, PIPES, Executed, Launch, Place, Step, steps_of
from rtm_kernels.block import FusedTRMBlock
from rtm_kernels.impl import launches
from rtm_kernels.ops.attention_norm import op as attention
from rtm_kernels.ops.attention_norm.reference import rope_tables
from rtm_kernels.ops.swiglu_norm import op as swiglu
from rtm_kernels.program import trm
from tests.gates.compile_gate import read_cubin

LENGTH, WIDTH, MIXER_INNER, INNER, HEADS = 97, 512, 512, 1536, 8


def _zeros(*shape: int) -> Tensor:
    """Memory that nobody touches before a kernel does."""
    return torch.zeros(*shape, dtype=torch.bfloat16)


@contextmanager
def collected() -> Iterator[list[Launch]]:
    """The launches within, under the names of their launch rows."""
    found: list[Launch] = []
    blocks: dict[int, list[list[Step]]] = {}
    counted = Counter(launches)

    def after(name: str, binary: Any, machine: Traced) -> None:
        kernel = machine.code.kernel
        if id(kernel) not in blocks:
            loads = [i for block in kernel.blocks for i in block if i.parts[0] in ("ld", "ldmatrix", "atom")]
            loaded = {r for i in loads for r in i.writes}
            blocks[id(kernel)] = [steps_of(block, loaded) for block in kernel.blocks]
        ran = [(blocks[id(kernel)][n], warps, notes) for n, warps, notes in machine.trace]
        row = next((n for n in launches if launches[n] != counted[n]), name)
        counted[row] = launches[row]
        programs = int(machine.programs[0][0]) * int(machine.programs[1][0])
        registers = read_cubin(binary.asm["cubin"])["registers"]
        found.append(Launch(row, programs, machine.T, registers, binary.metadata.shared, ran))

    with tracing(after):
        yield found


def _swiglu(axis: str, batch: int, terms: int, backward: bool) -> None:
    x = _zeros(batch, LENGTH, WIDTH)
    size, inner = (LENGTH, MIXER_INNER) if axis == "sequence" else (WIDTH, INNER)
    weights = _zeros(2 * inner, size), _zeros(size, inner)
    if backward:
        rstd = torch.zeros(batch * (WIDTH if axis == "sequence" else LENGTH))
        swiglu.backward(x, x, rstd, x, *weights, [x] * terms, axis, axis, 1e-5)
    else:
        swiglu.forward(x, *weights, [x] * terms, axis, axis, 1e-5)


def _attention(batch: int, terms: int, backward: bool) -> None:
    x, qkv, out = (_zeros(*shape) for shape in ((batch, LENGTH, WIDTH), (3 * WIDTH, WIDTH), (WIDTH, WIDTH)))
    options = (*rope_tables(LENGTH, WIDTH // HEADS, 10000.0, x.device), HEADS, False, False, 1e-5)
    if backward:
        attention.backward(x, x, torch.zeros(batch, LENGTH), x, qkv, out, *options)
    else:
        attention.forward(x, qkv, out, [x] * terms, *options, use_flash=False)


def run(batch: int, mixer: str = "mlp", training: bool = False) -> Executed:
    """The launches of an ACT step at this batch, and of the backward of a training step."""
    found: Executed = {}

    def note(op: str, got: list[Launch]) -> None:
        for launch in got:
            number = sum(key[:2] == (op, launch.kernel) for key in found)
            found[op, launch.kernel, number] = launch

    for backward in (False, True)[: 1 + training]:
        for terms in (2, 1, 0)[: 1 if backward else 3]:
            with collected() as got:
                _swiglu("sequence", batch, terms, backward) if mixer == "mlp" else _attention(batch, terms, backward)
            name = "mixer_norm" if mixer == "mlp" else "attention_norm"
            note(f"{name} backward" if backward else f"{name} +{terms}", got)
        with collected() as got:
            _swiglu("hidden", batch, 0, backward)
        note("swiglu_norm backward" if backward else "swiglu_norm", got)
    return found


SCALED = 8
"""The largest batch that the persistent kernel is executed for; larger ones take as many times longer."""


@cache
def persistent(batch: int) -> dict[str, float]:
    """Seconds of an ACT step of the persistent kernel: its phases, and its barriers."""
    from rtm_kernels.recursion.persistent.pack import PackedLayers
    from rtm_kernels.recursion.persistent.runner import PersistentRecursion

    if batch > SCALED:
        return {name: time * (1 if name == "barriers" else batch / SCALED) for name, time in persistent(SCALED).items()}
    program, layers = trm(1, 1), [FusedTRMBlock(WIDTH, LENGTH) for _ in range(2)]
    weights = PackedLayers({"L_level": layers}, torch.bfloat16)
    with collected() as found:
        head = torch.zeros(2, WIDTH), torch.zeros(2)
        PersistentRecursion(program, weights, batch, head=head, grid=SMS).step()
    place = Place(found[0], dict.fromkeys(PIPES, 0.0))
    for _ in place.run():
        pass
    starts = [0.0, *(at + GRID_BARRIER for at in place.arrivals)]
    phases = [end - start for start, end in zip(starts, [*place.arrivals, place.now], strict=True)]
    per_layer = (len(phases) - 2) // 4  # four layers, of an L step and of an H step; then norms and the head
    calls = [18] * 2 * per_layer + [3] * 2 * per_layer
    out = {name: 0.0 for name in ("mixer", "gate_up", "down", "barriers")}
    for n, (count, clocks) in enumerate(zip(calls, phases, strict=False)):
        out[("mixer", "gate_up", "down")[n % per_layer]] += count * clocks / CLOCK
    out["down"] += sum(phases[-2:]) / CLOCK
    out["barriers"] = (sum(calls) + 1) * GRID_BARRIER / CLOCK
    return out
