"""Guesses: a run takes answers of its own as given, goes on from there, and comes back to try others.

A model that was trained on puzzles of every difficulty solves one with a few more givens at once, so a right guess or
two is what a hard puzzle lacks. It does so within a few steps or hardly at all, and nothing in its outputs tells a
wrong guess from a right one that does not help, so a run tries many, each for a few steps. Where the task has groups
(`Task.groups`) the rules refuse guesses that contradict what is given, and say from which of several the most follows;
what follows is never taken as given. All of it is tensor code that works in place, and never waits for the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from rtm_kernels.carry import where_rows
from rtm_kernels.data.task import PAD, Groups
from rtm_kernels.engine.contradictions import Contradictions, counts
from rtm_kernels.engine.samples import Sample
from rtm_kernels.model import RecursiveReasoner
from rtm_kernels.recursion.noise import hashed, normal

FIRST, EVERY, RETURN = 3, 1, 2
"""The ACT step after which a run guesses first, how many steps later again, and how many steps after the first guess it
comes back to where it was then."""
SHARPNESS, DRAWN = 2.0, 16
"""An answer is drawn with a probability proportional to the model's own to the first of these; where the rules choose
one, as many are drawn as the second says."""
SEED_MASK = 0x7FFFFFFF


class Guesses:
    """What is given and guessed in `capacity` slots, and where each comes back to.

    `rows` [capacity, 3 + 3 * seq_len] int32, one per sample, hold the token of positions that are open (PAD: the sample
    does not guess), the seed, the puzzle identifier, the tokens of the puzzle, those that have been guessed first (bits
    of each position), and those that are given by now.
    `latents` [capacity, L, D] each and `logits` [capacity, seq_len, V] float32 are those after the step `FIRST`.
    With `on_host` only the samples that guess are computed with, to the same bits: the host has to know which they are.
    """

    def __init__(self, model: RecursiveReasoner, capacity: int, groups: Groups = (), on_host: bool = False) -> None:
        config, device = model.config, model.device
        self.model, self.on_host = model, on_host
        self.rules = Contradictions(groups, config.seq_len, config.vocab_size, device) if groups else None
        self.rows = torch.zeros(capacity, 3 + 3 * config.seq_len, dtype=torch.int32, device=device)
        self.latents = {
            name: torch.zeros(capacity, *latent.shape[1:], dtype=latent.dtype, device=device)
            for name, latent in model.initial_latents(1).items()
        }
        self.logits = torch.zeros(capacity, config.seq_len, config.vocab_size, device=device, dtype=torch.float32)

    @property
    def buffers(self) -> tuple[Tensor, ...]:
        """All that belongs to a sample, the rows first."""
        return self.rows, self.logits, *self.latents.values()

    @staticmethod
    def fresh(samples: Sequence[Sample]) -> np.ndarray:
        """The rows of new samples."""
        own = [
            (s.open_token, s.seed & SEED_MASK, s.puzzle_identifier, *s.tokens, *[0] * len(s.tokens), *s.tokens)
            for s in samples
        ]
        return np.array(own, dtype=np.int32)

    def take(self, steps: Tensor, logits: Tensor, latents: Mapping[str, Tensor], x: Tensor) -> None:
        """After an ACT step of the first n slots: `steps` [n] taken by now, its `logits` [n, seq_len, V].

        With k = steps - FIRST >= 0, a sample that guesses takes a token for one open position whenever EVERY divides
        k mod RETURN. Where that is 0, its `latents` [n, L, D] each, logits and given tokens become first what they were
        when k was. (position, token) is drawn with probability proportional to p^SHARPNESS, p by stablemax, from the
        seed and the step alone. Where the task has groups, DRAWN are drawn of those that have not been a first guess
        yet, and the one is taken that excludes most other answers by singles, none that leads to a contradiction. The
        input embedding `x` [n, L, D] is that of the tokens given by now.
        """
        n, size = len(steps), self.model.config.seq_len
        rows, logits_then = self.rows[:n], self.logits[:n]
        guesses, since = (rows[:, 0] != PAD) & (steps >= FIRST), (steps - FIRST) % RETURN
        first, returns = guesses & (steps == FIRST), guesses & (since == 0)
        for name, latent in latents.items():
            self._put(self.latents[name][:n], first, latent)
            self._put(latent, returns, self.latents[name][:n])
        self._put(logits_then, first, logits)
        who = guesses if self.on_host else slice(None)
        own, returns, since = rows[who], returns[who], since[who]
        opened, seed, identifier = own[:, 0], own[:, 1], own[:, 2]
        puzzle, tried, given = own[:, 3:].split(size, 1)
        _put(given, returns, puzzle)
        z = torch.where(returns[:, None, None], logits_then[who], logits[who]).double()
        token = torch.arange(z.shape[-1], device=z.device)
        allowed = (given == opened[:, None])[..., None] & (token != opened[:, None, None]) & (token != PAD)
        s = torch.where(z < 0, 1 / (1 - z), z + 1)
        score = SHARPNESS * (s / s.sum(-1, keepdim=True)).log() + gumbel(seed, steps[who], z.shape[1:])
        if self.rules is None:
            score = score.masked_fill(~allowed, -torch.inf)
            best, possible = score.flatten(1).argmax(1), allowed.flatten(1).any(1)
        else:
            new = allowed & ~(returns[:, None, None] & ((tried[..., None] >> token) & 1 != 0))
            best, possible = self._chosen(score, new, allowed, given, opened)
        due = guesses[who] & (since % EVERY == 0) & possible
        position, guess = best // len(token), (best % len(token)).to(given.dtype)
        here = torch.arange(size, device=given.device) == position[:, None]
        _put(tried, (due & returns)[:, None] & here, tried | (1 << guess)[:, None])
        _put(given, due[:, None] & here, guess[:, None])
        if self.on_host:
            rows[who] = own  # a view of them elsewhere
        x[who] = torch.where(due[:, None, None], self.model.embed(given, identifier), x[who])

    def _put(self, rows: Tensor, where: Tensor, values: Tensor) -> None:
        """`_put` of whole rows."""
        if self.on_host:
            rows[where] = values[where]
        else:
            _put(rows, where, values)

    def _chosen(
        self, score: Tensor, new: Tensor, allowed: Tensor, given: Tensor, opened: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Of the DRAWN best by `score` [n, S, V] the one [n] from which the most follows, and whether there is one.

        bool `new` and `allowed` [n, S, V]: what may be guessed; the second counts where the rules leave none of the
        first.
        """
        assert self.rules is not None
        answers = score.shape[-1]
        bits = (1 << torch.arange(answers, device=score.device)).to(given.dtype)
        masks, _ = self.rules(torch.where(given == opened[:, None], self.rules.every, bits[given.long()]))
        left = (masks[..., None] & bits) != 0
        new, allowed = new & left, allowed & left
        may = torch.where(new.flatten(1).any(1)[:, None, None], new, allowed)
        top = score.masked_fill(~may, -torch.inf).flatten(1).topk(DRAWN, 1)
        here = torch.arange(given.shape[1], device=score.device) == (top.indices // answers)[..., None]
        tries = torch.where(here, bits[top.indices % answers][..., None], masks[:, None])
        after, sound = self.rules(tries.flatten(0, 1))
        sound = sound.view(-1, DRAWN) & (top.values > -torch.inf)
        follows = counts(masks).sum(1, keepdim=True) - counts(after).sum(1).view(-1, DRAWN)
        rank = torch.arange(DRAWN, device=score.device)
        value = torch.where(sound, follows * DRAWN - rank, -DRAWN)  # of equals the first, on every device
        return top.indices.gather(1, value.argmax(1, keepdim=True))[:, 0], sound.any(1)


class Noise:
    """Noise on the latents of samples in `capacity` slots: `rows` [capacity, 2] int32, the deviation and a seed."""

    def __init__(self, capacity: int, device: torch.device) -> None:
        self.rows = torch.zeros(capacity, 2, dtype=torch.int32, device=device)

    @property
    def buffers(self) -> tuple[Tensor, ...]:
        """All that belongs to a sample."""
        return (self.rows,)

    @staticmethod
    def fresh(samples: Sequence[Sample]) -> np.ndarray:
        """The rows of new samples."""
        deviations = np.array([s.noise for s in samples], dtype=np.float32).view(np.int32)
        return np.stack([deviations, np.array([s.seed & SEED_MASK for s in samples], dtype=np.int32)], 1)

    def added(self, steps: Tensor, latents: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The latents [n, L, D] of the first n slots with `recursion.noise.normal` of seed and `steps` [n] added."""
        deviation, seed = self.rows[: len(steps), 0].view(torch.float32)[:, None, None], self.rows[: len(steps), 1]
        return {
            name: latent + (deviation * normal(seed, steps, latent.shape[1:], number)).to(latent.dtype)
            for number, (name, latent) in enumerate(latents.items())
        }


def _put(rows: Tensor, where: Tensor, values: Tensor) -> None:
    """In place: `values` in the rows, or the elements, where bool `where` [n] or [n, S] holds."""
    rows.copy_(where_rows(where, values, rows))


def gumbel(seed: Tensor, step: Tensor, shape: Sequence[int]) -> Tensor:
    """Gumbel noise [n, *shape] in float64, each number a hash of its seed [n], step [n] and place."""
    uniform = (hashed(seed, step, shape).double() + 0.5) / 2**32
    return -torch.log(-torch.log(uniform))
