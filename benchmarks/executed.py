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
from benchmarks.simulation import GRID_BARRIER, PIPES, Launch, Place, Step, steps_of
from rtm_kernels.block import FusedTRMBlock
from rtm_kernels.impl import launches
from rtm_kernels.ops.attention_norm import op as attention
from rtm_kernels.ops.attention_norm.reference import rope_tables
from rtm_kernels.ops.swiglu_norm import op as swiglu
from rtm_kernels.program import trm
from rtm_kernels.recursion.persistent.pack import PackedLayers
from rtm_kernels.recursion.persistent.runner import PersistentRecursion
from tests.gates.compile_gate import read_cubin

LENGTH, WIDTH, MIXER_INNER, INNER, HEADS = 97, 512, 512, 1536, 8
"""The official Sudoku model of TRM: 81 cells behind 16 places of the puzzle embedding."""


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
        size, registers = sum(machine.touched.values()), read_cubin(binary.asm["cubin"])["registers"]
        found.append(Launch(row, programs, size, machine.T, registers, binary.metadata.shared, ran))

    with tracing(after):
        yield found


def swiglu_norm(axis: str, batch: int, terms: int, backward: bool) -> list[Launch]:
    """The launches of mixer_norm ("sequence") or swiglu_norm ("hidden"), or of their backward."""
    x, *others = (_zeros(batch, LENGTH, WIDTH) for _ in range(3))
    size, inner = (LENGTH, MIXER_INNER) if axis == "sequence" else (WIDTH, INNER)
    weights = _zeros(2 * inner, size), _zeros(size, inner)
    with collected() as found:
        if backward:
            rstd = torch.zeros(batch * (WIDTH if axis == "sequence" else LENGTH))
            swiglu.backward(_zeros(*x.shape), _zeros(*x.shape), rstd, x, *weights, others[:terms], axis, axis, 1e-5)
        else:
            swiglu.forward(x, *weights, others[:terms], axis, axis, 1e-5)
    return found


def attention_norm(batch: int, terms: int, backward: bool) -> list[Launch]:
    """The launches of attention_norm or of its backward, without those of PyTorch."""
    x, *others = (_zeros(batch, LENGTH, WIDTH) for _ in range(3))
    weights = _zeros(3 * WIDTH, WIDTH), _zeros(WIDTH, WIDTH)
    options = (*rope_tables(LENGTH, WIDTH // HEADS, 10000.0, x.device), HEADS, False, False, 1e-5)
    with collected() as found:
        if backward:
            attention.backward(*others, torch.zeros(batch, LENGTH), x, *weights, *options)
        else:
            attention.forward(x, *weights, others[:terms], *options, use_flash=False)
    return found


SCALED = 8
"""The largest batch that the persistent kernel is executed for; larger ones take as many times longer."""


@cache
def persistent(batch: int) -> dict[str, float]:
    """Seconds of an ACT step of the persistent kernel: its phases, and its barriers."""
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
