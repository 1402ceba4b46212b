"""Guesses: a run that does not get on takes an answer that it is fairly sure of as given, and goes on from there.

A model that was trained on puzzles of every difficulty solves one with a few more givens at once, so a right guess or
two is what a hard puzzle lacks. All of it is tensor code that works in place and never waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rtm_kernels.data.task import PAD
from rtm_kernels.engine.slots import Sample
from rtm_kernels.model import RecursiveReasoner

FIRST, EVERY = 3, 2
"""The ACT step after which a run guesses first, and how many steps later again."""
SHARPNESS = 4.0
"""An answer is guessed with a probability proportional to the model's own to this power."""
SEED_MASK, WORD = 0x7FFFFFFF, 0xFFFFFFFF


class Guesses:
    """What is given and guessed in `capacity` slots: `rows` [capacity, 3 + seq_len] int32, one row per sample.

    A row holds the token of positions that are open (PAD: the sample does not guess), the seed, the puzzle identifier
    and the tokens that are given by now.
    """

    def __init__(self, model: RecursiveReasoner, capacity: int) -> None:
        self.model = model
        self.rows = torch.zeros(capacity, 3 + model.config.seq_len, dtype=torch.int32, device=model.device)

    @staticmethod
    def fresh(samples: Sequence[Sample]) -> np.ndarray:
        """The rows of new samples."""
        own = [(s.open_token, s.seed & SEED_MASK, s.puzzle_identifier, *s.tokens) for s in samples]
        return np.array(own, dtype=np.int32)

    def take(self, steps: Tensor, logits: Tensor, x: Tensor) -> None:
        """After an ACT step of the first n slots: `steps` [n] taken by now, its `logits` [n, seq_len, V].

        Where a guess is due, one open position takes a token, and the input embedding `x` [n, L, D] is that of the
        tokens given by now. (position, token) is drawn with probability proportional to p^SHARPNESS, p by stablemax,
        from the seed and the step alone.
        """
        rows = self.rows[: len(steps)]
        opened, seed, identifier, given = rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 3:]
        token = torch.arange(logits.shape[-1], device=logits.device)
        allowed = (given == opened[:, None])[..., None] & (token != opened[:, None, None]) & (token != PAD)
        due = (opened != PAD) & (steps >= FIRST) & ((steps - FIRST) % EVERY == 0) & allowed.flatten(1).any(1)
        z = logits.double()
        s = torch.where(z < 0, 1 / (1 - z), z + 1)
        score = SHARPNESS * (s / s.sum(-1, keepdim=True)).log() + gumbel(seed, steps, z.shape[1:])
        best = score.masked_fill(~allowed, -torch.inf).flatten(1).argmax(1)
        position, guess = best // len(token), (best % len(token)).to(given.dtype)
        here = due[:, None] & (torch.arange(given.shape[1], device=given.device) == position[:, None])
        given.copy_(torch.where(here, guess[:, None], given))
        x.copy_(torch.where(due[:, None, None], self.model.embed(given, identifier), x))


def gumbel(seed: Tensor, step: Tensor, shape: Sequence[int]) -> Tensor:
    """Gumbel noise [n, *shape] in float64, each number a hash of its seed [n], step [n] and place."""
    place = torch.arange(int(np.prod(shape)), device=seed.device)
    h = _hash(seed.long() ^ (step.long() << 20))[:, None] ^ (place * 2 + 1)
    uniform = (_hash(h).double() + 0.5) / 2**32
    return -torch.log(-torch.log(uniform)).reshape(-1, *shape)


def _hash(h: Tensor) -> Tensor:
    """A 32-bit integer hash (Wellons' lowbias32), computed in int64."""
    h = (h ^ (h >> 16)) * 0x7FEB352D & WORD
    h = (h ^ (h >> 15)) * 0x846CA68B & WORD
    return h ^ (h >> 16)
