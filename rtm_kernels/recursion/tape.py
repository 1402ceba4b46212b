"""A program as integers, which the C++ executors and the persistent kernel read.

Latents are numbered as `Program.latents` lists them, the input embedding `x` comes after them, and stacks are
numbered as in `Program.stacks`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from rtm_kernels.errors import InputError
from rtm_kernels.program import ADAPTER, INPUT, Program

MAX_TERMS = 8
"""Longest sum that a step may have, for the state and for the injection each."""

ROW_WIDTH = 4 + 2 * MAX_TERMS


class TapeStep(NamedTuple):
    """One step of a program: numbers of its latent and stack, and of the latents that it sums."""

    dst: int
    stack: int
    state: list[int]
    inject: list[int]


def why_not_program(program: Program) -> str | None:
    """What keeps `program` from being encoded, or None when it can be."""
    for i, step in enumerate(program.steps):
        for role, names in (("state", step.state), ("inject", step.inject)):
            if len(names) > MAX_TERMS:
                return f"steps[{i}].{role} sums {len(names)} latents, and a tape holds at most {MAX_TERMS}"
        if step.keep:
            return f"steps[{i}] keeps {step.keep} of its latent, and a tape only replaces latents"
        if step.noise:
            return f"steps[{i}] adds noise of deviation {step.noise}, and a tape adds none"
        if step.stack.startswith(ADAPTER):
            return f"steps[{i}] applies the linear adapter {step.stack}, and a tape only stacks of blocks"
    return None


def numbers(program: Program) -> dict[str, int]:
    """The number of each latent, and of the input embedding."""
    return {name: i for i, name in enumerate((*program.latents, INPUT))}


def encode(program: Program) -> list[TapeStep]:
    """The steps of `program`. Errors: `InputError` for what `why_not_program` names."""
    reason = why_not_program(program)
    if reason is not None:
        raise InputError(reason)
    place = numbers(program)
    return [
        TapeStep(place[s.dst], program.stacks.index(s.stack), [place[n] for n in s.state], [place[n] for n in s.inject])
        for s in program.steps
    ]


def layer_rows(program: Program, stack_layers: Mapping[str, range]) -> Tensor:
    """The steps of `program` layer by layer, [layers applied, ROW_WIDTH] int32, as the persistent kernel reads them:

        dst, layer, n_state, n_inject, state[MAX_TERMS], inject[MAX_TERMS]

    `layer` counts the packed layers, of which `stack_layers` gives those of each stack. A term is
    `2 * number + pending`: the kernel stores what it writes before its norm, and whoever reads it applies the norm.
    """
    rows: list[list[int]] = []
    pending: set[int] = set()

    def terms(latents: list[int]) -> list[int]:
        return [2 * n + (n in pending) for n in latents] + [0] * (MAX_TERMS - len(latents))

    for dst, stack, state, inject in encode(program):
        for layer in stack_layers[program.stacks[stack]]:
            rows.append([dst, layer, len(state), len(inject), *terms(state), *terms(inject)])
            pending.add(dst)
            state, inject = [dst], []
    return torch.tensor(rows, dtype=torch.int32, device="cpu").reshape(-1, ROW_WIDTH)
