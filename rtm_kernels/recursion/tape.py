"""A program as an integer tape, for executors that interpret it in native code.

One int32 row of `WIDTH` per step:

    dst, stack, grad, n_state, n_inject, state[MAX_TERMS], inject[MAX_TERMS]

Latents are slots and stacks are numbers: slot 0 is the input embedding `x`, which no step writes, and slots
1, 2, … are `Program.latents` in order; stacks are numbered as in `Program.stacks`. Unused terms are -1.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from rtm_kernels.errors import InputError, require
from rtm_kernels.program import ADAPTER, INPUT, Program, Step

MAX_TERMS = 8
"""Longest sum that a step may have, for the state and for the injection each."""

DST, STACK, GRAD, N_STATE, N_INJECT, TERMS = range(6)
"""Columns of a row; the state terms start at TERMS, the injected terms at TERMS + MAX_TERMS."""

WIDTH = TERMS + 2 * MAX_TERMS


@dataclass(frozen=True)
class Tape:
    """An encoded program: `rows` [n_steps, WIDTH] int32 on the CPU, and the names behind its numbers."""

    rows: Tensor
    slots: tuple[str, ...]
    """Slot -> latent name; slot 0 is the input embedding."""
    stacks: tuple[str, ...]
    """Stack number -> name."""
    output: int
    """Slot that the heads read."""
    name: str

    def written(self) -> tuple[int, ...]:
        """Slots that the program writes, in order of their first write."""
        return tuple(dict.fromkeys(int(slot) for slot in self.rows[:, DST]))


def why_not_program(program: Program) -> str | None:
    """What keeps `program` from being encoded, or None when it can be."""
    for i, step in enumerate(program.steps):
        for role, names in (("state", step.state), ("inject", step.inject)):
            if len(names) > MAX_TERMS:
                return f"steps[{i}].{role} sums {len(names)} latents, and a tape holds at most {MAX_TERMS}"
        if step.keep:
            return f"steps[{i}] keeps {step.keep} of its latent, and a tape only replaces latents"
        if step.stack.startswith(ADAPTER):
            return f"steps[{i}] applies the linear adapter {step.stack}, and a tape only stacks of blocks"
    return None


def encode(program: Program) -> Tape:
    """The tape of `program`.

    Errors: `InputError` for what `why_not_program` names.
    """
    reason = why_not_program(program)
    if reason is not None:
        raise InputError(reason)
    slots = (INPUT, *program.latents)
    number = {name: i for i, name in enumerate(slots)}
    stack_number = {name: i for i, name in enumerate(program.stacks)}

    def terms(names: tuple[str, ...]) -> list[int]:
        return [number[name] for name in names] + [-1] * (MAX_TERMS - len(names))

    rows = [
        [number[s.dst], stack_number[s.stack], int(s.grad), len(s.state), len(s.inject),
         *terms(s.state), *terms(s.inject)]
        for s in program.steps
    ]  # fmt: skip
    table = torch.tensor(rows, dtype=torch.int32).reshape(-1, WIDTH)
    return Tape(table, slots, program.stacks, number[program.output], program.name)


def decode(tape: Tape) -> Program:
    """The program of `tape`; `decode(encode(program)) == program`.

    Errors: `InputError` naming the row and column of a number that stands for nothing.
    """
    rows = tape.rows.tolist()
    steps = tuple(_decode_step(tape, i, row) for i, row in enumerate(rows))
    return Program(tape.name, steps, output=_name(tape.slots, tape.output, "output"))


def _decode_step(tape: Tape, index: int, row: list[int]) -> Step:
    if len(row) != WIDTH:
        raise InputError(f"rows[{index}] has {len(row)} columns, a step has {WIDTH}")

    def sum_of(column: int, first: int, role: str) -> tuple[str, ...]:
        where = f"rows[{index}].{role}"
        require(0 <= row[column] <= MAX_TERMS, f"n of {where}", row[column], f"0 to {MAX_TERMS}")
        return _names(tape.slots, row[first : first + row[column]], where)

    return Step(
        dst=_name(tape.slots, row[DST], f"rows[{index}].dst"),
        state=sum_of(N_STATE, TERMS, "state"),
        inject=sum_of(N_INJECT, TERMS + MAX_TERMS, "inject"),
        stack=_name(tape.stacks, row[STACK], f"rows[{index}].stack"),
        grad=bool(row[GRAD]),
    )


def _names(table: tuple[str, ...], numbers: Iterable[int], where: str) -> tuple[str, ...]:
    return tuple(_name(table, number, where) for number in numbers)


def _name(table: tuple[str, ...], number: int, where: str) -> str:
    require(0 <= number < len(table), where, number, f"0 to {len(table) - 1}")
    return table[number]
