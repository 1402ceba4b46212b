"""From which states samples of deep supervision start, so that right answers become fixed points of the recursion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor

from rtm_kernels.carry import Batch, Carry, where_rows
from rtm_kernels.losses import ACTLossHead
from rtm_kernels.model import RecursiveReasoner
from rtm_kernels.ops.token_loss.reference import exact

INIT, RANDOM, ANCHOR, ANSWER = STARTS = ("init", "random", "anchor", "answer")
SPREAD, WRONG = 1.0, 0.5
"""Most noise on an anchor, as a deviation (latents have rms 1), and the largest share of wrong tokens in an answer; a
sample's own is drawn uniformly from 0 to it."""


class StartingHead(ACTLossHead):
    """`ACTLossHead` for samples that start from other states than the initial latents, and steps with noise.

    `starts` are the weights of four kinds, of which one is drawn for each sample that has left:

    - `init`: a new puzzle from the initial latents;
    - `random`: a new puzzle from normal numbers;
    - `anchor`: the same puzzle once more from where it ended, plus noise, if it was solved there, else as `init`;
    - `answer`: the same puzzle once more, the output latent being the embedding of its answer with wrong tokens.

    `noise` times normal numbers are added to the latents of every other sample before each step.
    """

    ends: Tensor

    def __init__(self, model: RecursiveReasoner, loss_type: str, starts: Mapping[str, float], noise: float) -> None:
        super().__init__(model, loss_type)
        *ends, total = accumulate(starts.get(name, 0.0) for name in STARTS)
        self.noise = noise
        self.register_buffer("ends", torch.tensor(ends) / total, persistent=False)

    @torch.no_grad()
    def enter(self, carry: Carry, batch: Batch) -> Carry:
        """The carry with every halted sample at its start, so that none is halted; ranks draw as one process does."""
        model, halted, output, size = self.model, carry.halted, self.model.program.output, len(carry.halted)
        kind = torch.bucketize(model.own_rows(torch.rand, size), self.ends, right=True)
        strength = model.own_rows(torch.rand, size)
        answer = model.token_logits(carry.latents[output]).argmax(-1)
        solved = exact(answer, carry.current_data["labels"]) & (carry.steps > 0)
        anchor = halted & solved & (kind == STARTS.index(ANCHOR))
        repair = halted & (carry.steps > 0) & (kind == STARTS.index(ANSWER))
        new, random = halted & ~anchor & ~repair, halted & (kind == STARTS.index(RANDOM))
        data = {name: where_rows(new, batch[name], value) for name, value in carry.current_data.items()}
        wrong = model.own_rows(torch.rand, size, answer.shape[1]) < WRONG * strength[:, None]
        places = model.own_rows(partial(torch.randint, answer.shape[1]), size, answer.shape[1])
        damaged = torch.where(wrong, answer.gather(1, places), answer)
        fed_back = model.embed(damaged, data.get("puzzle_identifiers"))
        amount = torch.where(random, 1.0, torch.where(anchor, SPREAD * strength, self.noise))
        latents = {}
        for name, fresh in model.initial_latents(size).items():
            base = where_rows(new | repair, fresh, carry.latents[name])
            base = where_rows(repair, fed_back, base) if name == output else base
            normal = model.own_rows(torch.randn, size, *base.shape[1:])
            added = amount.view(-1, 1, 1) * normal
            latents[name] = where_rows(random, torch.zeros_like(base), base) + added.to(base.dtype)
        steps = carry.steps.masked_fill(halted, 0)
        return replace(carry, latents=latents, steps=steps, halted=torch.zeros_like(halted), current_data=data)
