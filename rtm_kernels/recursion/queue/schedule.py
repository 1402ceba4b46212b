"""Which sample is in which slot, and what changes between two ACT steps: the specification in plain PyTorch.

After a step a slot whose sample has halted is free. Free slots take the samples that wait, lowest slot first; when none
waits the others move up in stable order, so that the occupied slots are always the first ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LEAVE, MOVE, FRESH = range(3)
"""Rows of `Schedule.pairs`, in the order in which they are carried out, and columns of their lengths."""

ACTIVE, FINISHED, WAITING = range(3, 6)
"""Columns of `Schedule.counts` that the host polls."""


@dataclass(frozen=True)
class Schedule:
    """The occupancy of S slots, who waits, and the changes just decided, all int32 on the device, updated in place.

    A sample is a number from 0 to C - 1, the row of its tables; C is how many are held, in slots and waiting.
    """

    owner: Tensor  # [S], the sample in a slot, -1 in a free one
    line: Tensor  # [2 + C], how many of the line have entered slots, its length, and the samples in it
    pairs: Tensor
    """[3, 2, S]: LEAVE (slot, row of the results), MOVE (from, to) with `to` ascending, FRESH (sample, slot)."""
    counts: Tensor
    """[6], lengths of the three lists; occupied slots; samples finished since the host set it to 0; samples waiting."""
    floor: Tensor  # [1], up to how many occupied slots a WHILE loop ends
    more: Tensor  # [1] bool, whether more are occupied

    @classmethod
    def empty(cls, slots: int, capacity: int, device: torch.device) -> Schedule:
        """Free slots, and nobody waiting."""

        def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        line, pairs = zeros(2 + capacity), zeros(3, 2, slots)
        return cls(zeros(slots) - 1, line, pairs, zeros(6), zeros(1), zeros(1, dtype=torch.bool))

    def wait(self, samples: Sequence[int]) -> None:
        """Let `samples` be the line, in this order, in one copy."""
        line = torch.tensor([0, len(samples), *samples], dtype=torch.int32, device="cpu")
        self.line[: len(line)].copy_(line)


@dataclass(frozen=True)
class Moved:
    """A tensor with one row per slot [S, ...], where the rows of new samples come from, and where finished ones go.

    `fresh` [C, ...] holds a row per sample, or [1, ...] one for all. `result` [C, ...] or None: samples follow each
    other there as they finish, those of one step by their slots.
    """

    rows: Tensor
    fresh: Tensor
    result: Tensor | None = None


def plan(schedule: Schedule, alive: Tensor) -> None:
    """Decide, for the first B slots, what leaves, moves and enters; alive [B] bool says whose sample goes on."""
    size, owner, counts = len(alive), schedule.owner[: len(alive)], schedule.counts
    keeps = (owner >= 0) & alive
    leaves = torch.nonzero((owner >= 0) & ~alive)[:, 0]
    first, last = schedule.line[:2].tolist()
    enters = torch.nonzero(~keeps)[: max(0, last - first), 0]
    sample = owner.clone()
    sample[enters] = schedule.line[2 + first : 2 + first + len(enters)]
    occupied = keeps.clone()
    occupied[enters] = True
    place = occupied.cumsum(0) - 1
    stays = torch.nonzero(keeps & (place != torch.arange(size, device=owner.device)))[:, 0]
    finished, active = int(counts[FINISHED]), int(occupied.sum())
    results = finished + torch.arange(len(leaves), device=owner.device)
    lists = ((leaves, results), (stays, place[stays]), (sample[enters], place[enters]))
    for row, pair in enumerate(lists):
        if len(pair[0]):
            schedule.pairs[row, :, : len(pair[0])] = torch.stack(pair)
    lengths = [len(pair[0]) for pair in lists]
    after = [*lengths, active, finished + len(leaves), last - first - len(enters)]
    counts.copy_(torch.tensor(after, device="cpu"))
    schedule.more.copy_(active > schedule.floor)
    schedule.line[0] += len(enters)
    owner[:active] = sample[occupied]
    owner[active:] = -1


def carry_out(schedule: Schedule, moved: Sequence[Moved]) -> None:
    """Change every tensor as the lists of `schedule` say."""
    n_leave, n_move, n_fresh = schedule.counts[:ACTIVE].tolist()
    pairs = schedule.pairs.long()
    leave, move, fresh = pairs[LEAVE, :, :n_leave], pairs[MOVE, :, :n_move], pairs[FRESH, :, :n_fresh]
    for each in moved:
        if n_leave and each.result is not None:
            each.result[leave[1]] = each.rows[leave[0]]
        if n_move:
            each.rows[move[1]] = each.rows[move[0]]
        if n_fresh:
            each.rows[fresh[1]] = each.fresh[fresh[0]] if len(each.fresh) > 1 else each.fresh
