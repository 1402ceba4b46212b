"""The tape that the persistent kernel reads: one row per layer application, with pending norms marked.

    dst, layer, n_state, n_inject, state[MAX_TERMS], inject[MAX_TERMS]

`layer` is an index into the packed weights, and a term is `2 * slot + pending`: a latent that this program has
written already is stored un-normalised, and whoever reads it applies the norm on load.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rtm_kernels.recursion.tape import DST, MAX_TERMS, N_INJECT, N_STATE, STACK, TERMS, Tape

ROW_WIDTH = 4 + 2 * MAX_TERMS


@dataclass(frozen=True)
class Instructions:
    """`rows` [layer applications, ROW_WIDTH] and `written` [slots to normalise at the end], int32."""

    rows: Tensor
    written: Tensor


def instructions(tape: Tape, stack_layers: Mapping[str, range]) -> Instructions:
    """The layer applications of `tape`; `stack_layers` gives the packed layers of each stack."""
    rows = []
    pending: set[int] = set()

    def terms(slots: list[int]) -> list[int]:
        return [2 * slot + (slot in pending) for slot in slots] + [0] * (MAX_TERMS - len(slots))

    for step in tape.rows.tolist():
        dst = step[DST]
        state = step[TERMS : TERMS + step[N_STATE]]
        inject = step[TERMS + MAX_TERMS : TERMS + MAX_TERMS + step[N_INJECT]]
        for layer in stack_layers[tape.stacks[step[STACK]]]:
            rows.append([dst, layer, len(state), len(inject), *terms(state), *terms(inject)])
            pending.add(dst)
            state, inject = [dst], []
    table = torch.tensor(rows, dtype=torch.int32).reshape(-1, ROW_WIDTH)
    return Instructions(table, torch.tensor(tape.written(), dtype=torch.int32))
