"""Several rollouts of one puzzle, the best of them chosen: test-time compute in width."""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from rtm_kernels.data.task import PAD, Task
from rtm_kernels.engine.samples import Finished, Sample
from rtm_kernels.engine.slots import Slots
from rtm_kernels.errors import one_of, require
from rtm_kernels.ops.halting.policy import HaltingPolicy

MAX_ROLLOUTS = 4096

KINDS = ("auto", "guesses", "twins", "noise")

Back = Callable[[np.ndarray], np.ndarray]
"""Turns an answer to a rollout's puzzle into one to the puzzle itself."""


@dataclass(frozen=True)
class Rollouts:
    """How many rollouts a puzzle gets, and in what they differ.

    Rollout 0 runs the puzzle itself. Only when its answer is not confirmed do the others start. By `kind` each of them
    runs the puzzle with guesses (`engine.guesses`), a symmetric twin of it (`Task.twin`), whose answer is turned back,
    or the puzzle with noise of deviation `noise` on the latents (which have rms 1) before every ACT step; `auto` takes
    guesses where the task has blanks, else twins where it has symmetries. The first latents of a model that draws them
    (EqR) differ too. They run together, or one after the other where the task says so (`Task.twins_in_turn`).
    Where a puzzle has several solutions, a puzzle is done when `agree` rollouts found the same confirmed one.

    One run that guesses tries them one after the other. So under the policy `verified`, where only a confirmed answer
    ends it early, rollout 0 guesses itself, after the first steps, and takes the steps of all: there are no others.
    All depends on `seed`, the puzzle and the number of the rollout alone, so which one is chosen does not depend on
    what else is solved, or when. What EqR draws in rollout 0 depends on `seed` alone.

    Errors: `InputError` naming the field, its value and what is allowed.
    Source: arXiv 2605.19943, which adds noise at every deep recursion step and uses a deviation of 0.3 on Sudoku.
    """

    count: int = 1
    noise: float = 0.3
    seed: int = 0
    kind: str = "auto"
    agree: int = 1

    def __post_init__(self) -> None:
        require(isinstance(self.count, int) and 1 <= self.count <= MAX_ROLLOUTS, "rollouts", self.count,
                f"an integer from 1 to {MAX_ROLLOUTS}")  # fmt: skip
        require(0 <= self.noise < math.inf, "noise", self.noise, "a finite number of at least 0")
        require(isinstance(self.seed, int), "seed", self.seed, "an integer")
        one_of("kind", self.kind, KINDS)
        require(isinstance(self.agree, int) and 1 <= self.agree <= self.count, "agree", self.agree,
                f"an integer from 1 to rollouts={self.count}")  # fmt: skip

    def of(self, task: Task) -> str:
        """The kind for a task. Errors: `InputError` for guesses or twins that it does not have."""
        blanks, symmetries = task.open_token != PAD, type(task).twin is not Task.twin
        require(self.kind != "guesses" or blanks, "kind", "guesses", f"{task.name} has no blanks")
        require(self.kind != "twins" or symmetries, "kind", "twins", f"{task.name} has no symmetries")
        if self.kind != "auto":
            return self.kind
        return "guesses" if blanks else "twins" if symmetries else "noise"

    def in_one(self, task: Task, policy: HaltingPolicy) -> bool:
        """Whether one run takes the steps of all rollouts."""
        return self.count > 1 and policy.on == ("verified",) and self.of(task) == "guesses"

    def rollout(
        self,
        task: Task,
        sample: Sample,
        number: int,
        max_steps: int,
        in_one: bool = False,
        answers: Sequence[np.ndarray] = (),
    ) -> tuple[Sample, Back | None]:
        """Rollout `number` of a sample, keyed (its key, number), and what turns its answer back, if anything has to.

        `answers` are those of the rollouts before it, where they run one after the other.

        Errors: `InputError`, see `of`.
        """
        made = replace(sample, key=(sample.key, number), max_steps=max_steps)
        if number == 0 and not in_one:
            return made, None
        content = f"{self.seed} {number} {sample.puzzle_identifier} ".encode() + sample.tokens.astype("<i4").tobytes()
        seed = int.from_bytes(hashlib.blake2b(content, digest_size=5).digest(), "big")
        kind = self.of(task)
        if kind == "guesses":
            return replace(made, open_token=task.open_token, seed=seed), None
        if kind == "noise":
            return replace(made, noise=self.noise, seed=seed), None
        twin = task.twin(sample.tokens, np.random.default_rng(seed), number, answers)
        assert twin is not None
        return replace(made, tokens=twin[0], seed=seed), twin[1]


def preference(done: Finished, settled: bool = False) -> tuple[bool, bool, float, float, int, int]:
    """Sorts rollouts best first: confirmed, finite, halting probability, settled latent, fewer steps, lower number.

    Confirmed ones count as equally good but for their steps, because a confirmed answer needs no further evidence.
    With `settled` the latent goes before the probability.
    """
    confidence = 0.0 if done.verified or done.halt_probability is None else done.halt_probability
    residual = 0.0 if done.verified or done.residual is None else done.residual
    first, second = (residual, -confidence) if settled else (-confidence, residual)
    return not done.verified, done.answer is None, first, second, done.steps, done.rollout


class _Puzzle:
    """One puzzle and those of its rollouts that have ended."""

    def __init__(self, sample: Sample, rollouts: Rollouts, task: Task, policy: HaltingPolicy) -> None:
        self.sample, self.rollouts, self.task = sample, rollouts, task
        self.in_one, cap = rollouts.in_one(task, policy), sample.limit(policy.max_steps)
        self.runs, self.max_steps = (1, rollouts.count * cap) if self.in_one else (rollouts.count, cap)
        in_turn = task.twins_in_turn and rollouts.of(task) == "twins"
        self.alone = self.runs if in_turn else 1
        """How many rollouts run one after the other, before those that are left start together."""
        self.needed = 1 if task.one_solution else rollouts.agree
        self.started, self.done = 0, list[Finished]()
        self.backs: dict[int, Back] = {}

    def start(self) -> Sample:
        """The next rollout."""
        answers = [done.answer for done in self.done[: self.alone] if done.answer is not None]
        sample, back = self.rollouts.rollout(self.task, self.sample, self.started, self.max_steps, self.in_one, answers)
        if back is not None:
            self.backs[self.started] = back
        self.started += 1
        return sample

    def take(self, done: Finished) -> None:
        """Keep a rollout that ended, its answer turned back and, if confirmed, confirmed for the puzzle itself."""
        key, number = done.key
        back, answer, verified = self.backs.get(number), done.answer, done.verified
        if back is not None and answer is not None:
            answer = back(answer)
            verified = verified and bool(self.task.verify_tokens(self.sample.tokens[None], answer[None])[0])
        self.done.append(replace(done, key=key, rollout=number, answer=answer, verified=verified))

    def ended(self, done: Finished, slots: Slots) -> None:
        """Take in a rollout that ended; once one is confirmed, none needs to take more steps than it did."""
        key, _ = done.key
        self.take(done)
        if self.votes(self.done[-1]) == self.needed:
            self.max_steps = min(done.steps, self.max_steps)
            for other in range(self.started):
                slots.tighten((key, other), self.max_steps)

    def votes(self, done: Finished) -> int:
        """How many rollouts found the same confirmed answer, up to as many as are needed."""
        same = [other.verified and np.array_equal(other.answer, done.answer) for other in self.done]  # type: ignore[arg-type]
        return min(sum(same), self.needed) if done.verified else 0

    @property
    def decided(self) -> bool:
        enough = self.started <= self.alone and self.votes(self.done[-1]) == self.needed
        return len(self.done) == self.runs or enough

    @property
    def starts(self) -> bool:
        """Whether a further rollout starts now, one of the first or all that are left."""
        return self.started < self.runs and (self.started > self.alone or len(self.done) == self.started)

    def choice(self, slots: Slots) -> Finished:
        """The best rollout, with the steps of all: of a model that draws its first latents the most settled one.

        Of those that ran in turn the earliest with the most votes.
        """

        def rank(done: Finished) -> tuple[Any, ...]:
            early = done.rollout if done.verified and self.alone > 1 else 0
            return -self.votes(done), early, preference(done, settled=slots.model.config.random_latents)

        return replace(min(self.done, key=rank), total_steps=sum(d.steps for d in self.done))


class RolloutSlots:
    """A latent buffer (see `Slots`) whose samples are puzzles with several rollouts each."""

    def __init__(self, slots: Slots, rollouts: Rollouts, task: Task, policy: HaltingPolicy) -> None:
        self.slots, self.rollouts, self.task, self.policy = slots, rollouts, task, policy
        self._puzzles: dict[Any, _Puzzle] = {}
        self._unfinished: deque[_Puzzle] = deque()

    @property
    def free(self) -> int:
        """How many puzzles `admit` takes now: none while further rollouts wait, so that few puzzles are open."""
        return 0 if self._unfinished else self.slots.free

    @property
    def active(self) -> int:
        """How many puzzles are open."""
        return len(self._puzzles)

    def admit(self, samples: Sequence[Sample]) -> None:
        """Open puzzles, at most `free`: the first rollout of each enters the batch."""
        puzzles = {sample.key: _Puzzle(sample, self.rollouts, self.task, self.policy) for sample in samples}
        self._puzzles |= puzzles
        self.slots.admit([puzzle.start() for puzzle in puzzles.values()])

    def step(self) -> list[Finished]:
        """One ACT step of every rollout in the batch; returns the best rollout of each puzzle that is decided."""
        self.slots.admit(list(islice(self._further(), self.slots.free)))
        chosen = []
        for done in self.slots.step():
            puzzle = self._puzzles[done.key[0]]
            puzzle.ended(done, self.slots)
            if puzzle.decided:
                chosen.append(self._puzzles.pop(done.key[0]).choice(self.slots))
            elif puzzle.starts and puzzle not in self._unfinished:
                self._unfinished.append(puzzle)
        return chosen

    def _further(self) -> Iterator[Sample]:
        while self._unfinished:
            rollout = self._unfinished[0].start()
            if not self._unfinished[0].starts:
                self._unfinished.popleft()
            yield rollout

    def evict(self, key: Any, reason: str) -> Finished | None:
        """Take the puzzle of `key` out with its best answer so far; None when it is not open."""
        puzzle = self._puzzles.pop(key, None)
        if puzzle is None:
            return None
        if puzzle in self._unfinished:
            self._unfinished.remove(puzzle)
        for number in range(puzzle.started):
            done = self.slots.evict((key, number), reason)
            if done is not None:
                puzzle.take(done)
        return replace(puzzle.choice(self.slots), reason=reason)
