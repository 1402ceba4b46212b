"""Which sample is in which slot, and what changes between two ACT steps: the specification in plain PyTorch.

After a step a slot whose sample has halted is free. Free slots take the next samples of the queue, lowest slot first;
when the queue is empty the others move up in stable order, so that the occupied slots are always the first ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LEAVE, MOVE, FRESH = range(3)
"""Rows of `Schedule.pairs`, in the order in which they are carried out."""

ACTIVE = 3
"""Column of `Schedule.counts` that the host polls; the others are the lengths of the lists."""


@dataclass(frozen=True)
class Schedule:
    """The occupancy of S slots and the changes just decided, all int32 on the device and updated in place."""

    owner: Tensor
    """[S], the sample in a slot, -1 in a free one."""
    following: Tensor
    """[1], the next sample of the queue."""
    total: Tensor
    """[1], samples in the queue, those that have left it included."""
    pairs: Tensor
    """[3, 2, S]: LEAVE (slot, sample), MOVE (from, to) with `to` ascending, FRESH (sample, slot)."""
    counts: Tensor
    """[4], lengths of the three lists, and how many slots are occupied now."""
    more: Tensor
    """[1] bool, whether more slots are occupied than the next smaller bucket holds."""

    @classmethod
    def empty(cls, slots: int, device: torch.device) -> Schedule:
        """Free slots and an empty queue."""

        def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        return cls(zeros(slots) - 1, zeros(1), zeros(1), zeros(3, 2, slots), zeros(4), zeros(1, dtype=torch.bool))

    def start(self, total: int) -> None:
        """Free every slot, and let the queue hold the samples 0 to total - 1."""
        self.owner.fill_(-1)
        self.following.zero_()
        self.total.fill_(total)


@dataclass(frozen=True)
class Moved:
    """A tensor with one row per slot [S, ...], where the rows of new samples come from, and where finished ones go.

    `fresh` [N, ...] holds a row per sample, or [1, ...] one for all. `result` [N, ...] or None.
    """

    rows: Tensor
    fresh: Tensor
    result: Tensor | None = None


def plan(schedule: Schedule, alive: Tensor, shrink_at: int) -> None:
    """Decide, for the first B slots, what leaves, moves and enters; alive [B] bool says whose sample goes on."""
    size, owner = len(alive), schedule.owner[: len(alive)]
    keeps = (owner >= 0) & alive
    leaves = torch.nonzero((owner >= 0) & ~alive)[:, 0]
    first, left = int(schedule.following), int(schedule.total) - int(schedule.following)
    enters = torch.nonzero(~keeps)[: max(0, left), 0]
    sample = owner.clone()
    sample[enters] = first + torch.arange(len(enters), dtype=torch.int32, device=owner.device)
    occupied = keeps.clone()
    occupied[enters] = True
    place = occupied.cumsum(0) - 1
    stays = torch.nonzero(keeps & (place != torch.arange(size, device=owner.device)))[:, 0]
    lists = ((leaves, owner[leaves]), (stays, place[stays]), (sample[enters], place[enters]))
    for row, pair in enumerate(lists):
        for column, values in enumerate(pair):
            schedule.pairs[row, column, : len(values)] = values.to(torch.int32)
        schedule.counts[row] = len(pair[0])
    active = int(occupied.sum())
    schedule.counts[ACTIVE] = active
    schedule.more.fill_(active > shrink_at)
    schedule.following.add_(len(enters))
    owner[:active] = sample[occupied]
    owner[active:] = -1


def carry_out(schedule: Schedule, moved: Sequence[Moved]) -> None:
    """Change every tensor as the lists of `schedule` say."""
    leave, move, fresh = (
        pair[:, : int(count)].long() for pair, count in zip(schedule.pairs, schedule.counts[:ACTIVE], strict=True)
    )
    for each in moved:
        if each.result is not None:
            each.result[leave[1]] = each.rows[leave[0]]
        each.rows[move[1]] = each.rows[move[0]]
        each.rows[fresh[1]] = each.fresh[fresh[0] if len(each.fresh) > 1 else torch.zeros_like(fresh[0])]
