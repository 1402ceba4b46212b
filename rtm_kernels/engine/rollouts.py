"""Several noisy rollouts of one puzzle, the best of them chosen: test-time compute in width."""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

from rtm_kernels.engine.slots import Finished, Sample, Slots
from rtm_kernels.errors import require

MAX_ROLLOUTS = 4096


@dataclass(frozen=True)
class Rollouts:
    """How many rollouts a puzzle gets, and the deviation of the noise on their latents (latents have rms 1).

    Rollout 0 has no noise: it is what a puzzle without rollouts runs. Only when its answer is not confirmed do the
    others start. Their noise is added before every ACT step, and depends on `seed`, the puzzle and the number of
    the rollout alone, so which one is chosen does not depend on what else is solved, or when.

    Errors: `InputError` naming the field, its value and what is allowed.
    Source: arXiv 2605.19943, which adds noise at every deep recursion step and uses a deviation of 0.3 on Sudoku.
    """

    count: int = 1
    noise: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        require(isinstance(self.count, int) and 1 <= self.count <= MAX_ROLLOUTS, "rollouts", self.count,
                f"an integer from 1 to {MAX_ROLLOUTS}")  # fmt: skip
        require(0 <= self.noise < math.inf, "noise", self.noise, "a finite number of at least 0")
        require(isinstance(self.seed, int), "seed", self.seed, "an integer")

    def rollout(self, sample: Sample, number: int, max_steps: int | None) -> Sample:
        """Rollout `number` of a sample, keyed (its key, number)."""
        if number == 0:
            return replace(sample, key=(sample.key, 0))
        content = f"{self.seed} {number} {sample.puzzle_identifier} ".encode() + sample.tokens.astype("<i4").tobytes()
        seed = int.from_bytes(hashlib.blake2b(content, digest_size=5).digest(), "big")
        return replace(sample, key=(sample.key, number), noise=self.noise, seed=seed, max_steps=max_steps)


def preference(done: Finished) -> tuple[bool, bool, float, float, int, int]:
    """Sorts rollouts best first: confirmed, finite, halting probability, settled latent, fewer steps, lower number.

    Confirmed ones count as equally good but for their steps, because a confirmed answer needs no further evidence.
    """
    confidence = 0.0 if done.verified or done.halt_probability is None else done.halt_probability
    residual = 0.0 if done.verified or done.residual is None else done.residual
    return not done.verified, done.answer is None, -confidence, residual, done.steps, done.rollout


class _Puzzle:
    """One puzzle and those of its rollouts that have ended."""

    def __init__(self, sample: Sample, rollouts: Rollouts) -> None:
        self.sample, self.rollouts = sample, rollouts
        self.max_steps, self.started, self.done = sample.max_steps, 0, list[Finished]()

    def start(self) -> Sample:
        """The next rollout."""
        self.started += 1
        return self.rollouts.rollout(self.sample, self.started - 1, self.max_steps)

    def ended(self, done: Finished, slots: Slots) -> None:
        """Take in a rollout that ended; once one is confirmed, none needs to take more steps than it did."""
        key, number = done.key
        self.done.append(replace(done, key=key, rollout=number))
        if done.verified:
            self.max_steps = min(done.steps, self.max_steps or done.steps)
            for other in range(self.started):
                slots.tighten((key, other), self.max_steps)

    @property
    def decided(self) -> bool:
        first = self.done[0]
        return len(self.done) == self.rollouts.count or (first.rollout == 0 and first.verified)

    def choice(self) -> Finished:
        """The best rollout, with the steps of all."""
        return replace(min(self.done, key=preference), total_steps=sum(d.steps for d in self.done))


def run(slots: Slots, samples: Iterable[Sample], rollouts: Rollouts) -> Iterator[Finished]:
    """The best rollout of each sample, as soon as it is decided."""
    fresh = iter(samples)
    puzzles: dict[object, _Puzzle] = {}
    unfinished: deque[_Puzzle] = deque()

    def following() -> Iterator[Sample]:
        """Further rollouts before new puzzles, so that few puzzles are open at a time."""
        while unfinished:
            rollout = unfinished[0].start()
            if unfinished[0].started == rollouts.count:
                unfinished.popleft()
            yield rollout
        for sample in fresh:
            puzzles[sample.key] = _Puzzle(sample, rollouts)
            yield puzzles[sample.key].start()

    while True:
        slots.admit(list(islice(following(), slots.free)))
        if not slots.active:
            return
        for done in slots.step():
            puzzle = puzzles[done.key[0]]
            puzzle.ended(done, slots)
            if puzzle.decided:
                yield puzzles.pop(done.key[0]).choice()
            elif puzzle.started == 1:
                unfinished.append(puzzle)
