"""Contradictions that the rules show in answers taken as given, for tasks whose rules are groups of positions.

In a group (Sudoku: a row, a column or a box) every answer stands once. What follows is used to refuse, never to answer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rtm_kernels.data.task import Groups

ROUNDS = 8
"""How often singles are propagated; what needs more is not refused."""


class Contradictions:
    """Singles over masks of possible answers, int32 [n, S]: bit t of position s is set while token t may stand there.

    `groups` [U, A] are the positions of each group, of S = seq_len; the answers are the last A of vocab_size <= 32
    tokens (`Task.groups`). All of it is integer code of fixed shapes, so its results are the same on every device, and
    it may be captured.
    """

    def __init__(self, groups: Groups, seq_len: int, vocab_size: int, device: torch.device) -> None:
        self.groups, answers = torch.tensor(groups, device=device), len(groups[0])
        self.every = ((1 << answers) - 1) << (vocab_size - answers)
        own = [[u for u, group in enumerate(groups) if s in group] for s in range(seq_len)]
        self.own = torch.tensor(own, device=device)

    def __call__(self, masks: Tensor) -> tuple[Tensor, Tensor]:
        """What singles leave of masks [n, S], and bool [n], whether no contradiction was met."""
        sound = torch.ones(len(masks), dtype=torch.bool, device=masks.device)
        for _ in range(ROUNDS):
            single = torch.where((masks & (masks - 1)) == 0, masks, 0)
            fixed, repeated = self._once_and_more(single)
            places, several = self._once_and_more(masks)
            sound = sound & (masks != 0).all(1) & (repeated == 0).all(1) & (places == self.every).all(1)
            taken, needed = self._of_groups(fixed), self._of_groups(places & ~several) & masks
            left = torch.where(single != 0, masks, masks & ~taken)
            masks = torch.where(needed != 0, left & needed, left)
        return masks, sound

    def _once_and_more(self, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Answers that at least one, and at least two, positions of each group [n, U] have."""
        parts = masks[:, self.groups].unbind(2)
        once, more = parts[0], torch.zeros_like(parts[0])
        for part in parts[1:]:
            more = more | (once & part)
            once = once | part
        return once, more

    def _of_groups(self, values: Tensor) -> Tensor:
        """[n, S], what any group of a position has in values [n, U]."""
        parts = values[:, self.own].unbind(2)
        found = parts[0]
        for part in parts[1:]:
            found = found | part
        return found


def counts(masks: Tensor) -> Tensor:
    """How many bits of each int32 are set, none of them the sign."""
    pairs = masks - ((masks >> 1) & 0x55555555)
    fours = (pairs & 0x33333333) + ((pairs >> 2) & 0x33333333)
    eights = (fours + (fours >> 4)) & 0x0F0F0F0F
    return (eights * 0x01010101) >> 24
