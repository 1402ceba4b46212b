"""The queue between two ACT steps: who leaves, moves up and enters, with their rows."""

from __future__ import annotations

import random
from functools import partial

import torch
from torch import Tensor

from rtm_kernels.recursion.queue import kernels, schedule
from rtm_kernels.recursion.queue.kernels import TABLE
from rtm_kernels.recursion.queue.schedule import FINISHED, Moved, Schedule
from tests.cases.case import Case, Op, Tensors, meta

SMALL = ((5, 5, 7, (9, 70)), (7, 7, 7, (3, 40)))
GATE = (  # slots, samples of the queue before the step, samples in all, shape of a row
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
    rows, steps = t["rows"].clone(), t["rows"].new_ones(len(s.owner), 1)
    results = t["fresh"].new_zeros(2 * len(t["fresh"]), *t["fresh"].shape[1:])
    how.plan(s, t["alive"])
    how.carry_out(s, [Moved(rows, t["fresh"], results), Moved(steps, steps.new_zeros(1, 1))])
    return s.owner, s.line, s.counts, s.more, rows, results, steps


def queue(slots: int, before: int, total: int, shape: tuple[int, ...]) -> Case:
    """One exchange: full, partly filled and empty slots, queues that last and that run out."""
    name = f"{slots} slots, {before} of {total} {list(shape)}"
    return Case("queue", name, partial(_make, slots, before, total, shape), _call)


def launch_queue(dtype: torch.dtype) -> None:
    """One exchange at the official Sudoku sizes on meta tensors."""
    waiting = Schedule.empty(64, 1000, torch.device("meta"))
    kernels.plan(waiting, meta(64, dtype=torch.bool))
    latents, line = (meta(n, 97, 512, dtype=dtype) for n in (64, 1000))
    active = meta(64, 1, dtype=torch.bool)
    kernels.carry_out(waiting, [Moved(latents, line, line), Moved(active, active[:1])])


def draw(rng: random.Random) -> tuple[Case, torch.dtype]:
    slots = rng.choice((1, 2, 5, 13, 31, 33, 64, 65))
    before = rng.randint(0, slots)
    shape = (rng.choice((1, 2, 17)), rng.choice((1, 5, 33, 70)))
    return queue(slots, before, max(1, before + rng.randint(0, 2 * slots)), shape), torch.float32


OP = Op(
    gate=[queue(*row) for row in GATE],
    small=[queue(*row) for row in SMALL],
    drawn=[draw],
    launched={f"queue {str(d)[6:]}": partial(launch_queue, d) for d in (torch.bfloat16, torch.float32)},
    by_batch={},
    tuned=[],
    tables={"queue": TABLE},
)
