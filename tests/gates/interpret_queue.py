"""Cases of the halting queue for the interpreter gate: who leaves, moves up and enters, with their rows."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from rtm_kernels.recursion.queue import kernels, schedule
from rtm_kernels.recursion.queue.schedule import FINISHED, Moved, Schedule
from tests.gates.interpret_gate import OpCase, Tensors

CASES = (  # slots, samples of the queue before the step, samples in all, shape of a row
    (1, 1, 1, (3,)),
    (1, 1, 4, (7, 24)),
    (2, 2, 2, (9, 70)),
    (3, 3, 4, (97, 16)),
    (5, 3, 3, (5, 5)),
    (7, 7, 30, (1, 130)),
    (8, 8, 9, (17, 33)),
    (13, 13, 15, (2, 40)),
    (16, 4, 4, (1,)),
    (31, 31, 40, (11,)),
    (33, 33, 33, (3, 3)),
    (40, 0, 25, (2, 7)),
)


def _make(slots: int, before: int, total: int, shape: tuple[int, ...], g: torch.Generator) -> dict[str, Tensor]:
    owner = torch.full((slots,), -1, dtype=torch.int32)
    owner[:before] = torch.randperm(before, generator=g).to(torch.int32)
    return {
        "rows": torch.randn(slots, *shape, generator=g),
        "fresh": torch.randn(total, *shape, generator=g),
        "owner": owner,
        "alive": torch.rand(slots, generator=g) < 0.6,
        "line": before + torch.randperm(total - before, generator=g).to(torch.int32),
        "finished": torch.tensor(before // 3, dtype=torch.int32),
    }


def _call(impl: str, t: Tensors) -> tuple[Tensor, ...]:
    how = kernels if impl == "triton" else schedule
    s = Schedule.empty(len(t["owner"]), len(t["fresh"]), t["rows"].device)
    s.owner.copy_(t["owner"])
    s.wait(t["line"].tolist())
    s.counts[FINISHED] = t["finished"]
    s.floor.fill_(2)
    rows, results, steps = (
        t["rows"].clone(),
        t["fresh"].new_zeros(2 * len(t["fresh"]), *t["fresh"].shape[1:]),
        t["rows"].new_ones(len(s.owner), 1),
    )
    how.plan(s, t["alive"])
    how.carry_out(s, [Moved(rows, t["fresh"], results), Moved(steps, steps.new_zeros(1, 1))])
    return s.owner, s.line, s.counts, s.more, rows, results, steps


def case(slots: int, before: int, total: int, shape: tuple[int, ...]) -> OpCase:
    """One configuration."""
    name = f"{slots} slots, {before} of {total} {list(shape)}"
    return OpCase("queue", name, partial(_make, slots, before, total, shape), _call)


def interpret_cases() -> Iterator[OpCase]:
    """Full, partly filled and empty slots, with queues that last and that run out."""
    return (case(*row) for row in CASES)
