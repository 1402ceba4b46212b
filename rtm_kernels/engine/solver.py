"""Solver: puzzles in, checked answers out, with halting per sample and continuous batching."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch

from rtm_kernels.data.task import Puzzle, Task, get_task
from rtm_kernels.engine.executor import executor as build_executor
from rtm_kernels.engine.policy import HaltingPolicy
from rtm_kernels.engine.slots import Finished, Sample, Slots
from rtm_kernels.engine.solution import Solution
from rtm_kernels.errors import InputError, require
from rtm_kernels.model import RecursiveReasoner

MAX_BATCH = 1 << 16
SHOWN = 200


class Solver:
    """Solves puzzles of one task with one model.

    Each puzzle takes ACT steps until the halting policy lets it go (`HaltingPolicy`); its place in the batch is
    then filled by the next puzzle at once, and at the end the batch shrinks. Who else is in the batch does not
    change an answer beyond the rounding of the executor; with `batch_invariant` every step has the same shapes,
    so not even that.

    Args:
        task: a `Task` or the name of a registered one; found by its sizes when None.
        policy: `HaltingPolicy` or its text, e.g. `verified`, `q=0.9+settle`, `fixed`. Default `verified`: a puzzle
            leaves when its answer is confirmed, and goes on to `max_steps` otherwise, whatever the head says.
        max_steps: cap on ACT steps per puzzle; default the policy's, or `model.config.halt_max_steps`.
        batch_size: slots of the latent buffer.
        device: moves the model there first.
        executor: `auto` or a name of `EXECUTORS`; a named one that cannot run raises.

    Errors: `InputError` for arguments, `BackendUnavailable` for an executor that cannot run here. A puzzle that
    cannot be read is no error but a `Solution` with status `invalid`.
    """

    def __init__(
        self,
        model: RecursiveReasoner,
        *,
        task: Task | str | None = None,
        policy: HaltingPolicy | str | None = None,
        max_steps: int | None = None,
        batch_size: int = 64,
        device: torch.device | str | None = None,
        executor: str = "auto",
        batch_invariant: bool = False,
    ) -> None:
        require(isinstance(batch_size, int) and 1 <= batch_size <= MAX_BATCH, "batch_size", batch_size,
                f"an integer from 1 to {MAX_BATCH}")  # fmt: skip
        self.task = find_task(model, task)
        self.policy = resolve_policy(model, policy, max_steps)
        self.model = model if device is None else model.to(device)
        self.executor = build_executor(executor, self.model)
        self.batch_size, self.batch_invariant = batch_size, batch_invariant

    def solve(self, puzzles: Iterable[str | Puzzle]) -> list[Solution]:
        """The solutions of `puzzles` in the order given."""
        return [solution for _, solution in sorted(self.stream(puzzles), key=lambda pair: pair[0])]

    def stream(self, puzzles: Iterable[str | Puzzle]) -> Iterator[tuple[int, Solution]]:
        """(index, solution) of each puzzle as it finishes; `puzzles` is read only as fast as slots become free."""
        require(not isinstance(puzzles, (str, Puzzle)), "puzzles", puzzles, "expected a list of puzzles, not one")
        return self._stream(puzzles)

    def slots(self) -> Slots:
        """An empty latent buffer of this solver's size and policy."""
        return Slots(
            self.model, self.executor, self.policy, self.task.verify_tokens, self.batch_size, self.batch_invariant
        )

    def _stream(self, puzzles: Iterable[str | Puzzle]) -> Iterator[tuple[int, Solution]]:
        slots, queue = self.slots(), enumerate(puzzles)
        texts: dict[int, str] = {}
        exhausted = False
        while not exhausted or slots.active:
            batch: list[Sample] = []
            while not exhausted and len(batch) < slots.free:
                index, puzzle = next(queue, (-1, None))
                exhausted = puzzle is None
                if puzzle is None:
                    break
                sample = self.encode(index, puzzle)
                if isinstance(sample, Solution):
                    yield index, sample
                    continue
                texts[index] = self.task.decode(sample.tokens)
                batch.append(sample)
            slots.admit(batch)
            for done in slots.step():
                yield done.key, self.solution(texts.pop(done.key), done)

    def encode(self, key: object, puzzle: str | Puzzle) -> Sample | Solution:
        """The puzzle as a sample for `Slots`, or the solution of status `invalid` that says what is wrong with it."""
        text = puzzle.text if isinstance(puzzle, Puzzle) else puzzle
        require(isinstance(text, str), "puzzle", text, "expected a string")
        try:
            if isinstance(puzzle, Puzzle) and puzzle.error is not None:
                raise InputError(puzzle.error)
            return Sample(key, self.task.encode(text))
        except InputError as error:
            return Solution(task=self.task.name, input=printable(text), status="invalid", error=str(error))

    def solution(self, text: str, done: Finished) -> Solution:
        """What a finished sample means for the puzzle `text`."""
        status = "non_finite" if done.answer is None else "verified" if done.verified else "unverified"
        return Solution(
            task=self.task.name,
            input=text,
            answer=None if done.answer is None else self.task.decode(done.answer),
            status=status,
            steps=done.steps,
            halt_probability=done.halt_probability,
            seconds=done.seconds,
            reason=None if done.answer is None else done.reason,
            answer_step=done.answer_step,
        )


def printable(text: str, limit: int = SHOWN) -> str:
    """`text` without control characters and cut to `limit` characters, safe to show."""
    shown = "".join(c if c.isprintable() else "?" for c in text[:limit])
    return shown + "…" if len(text) > limit else shown


def find_task(model: RecursiveReasoner, task: Task | str | None) -> Task:
    """The task given, by name, or by the model's sizes; `InputError` when it does not fit the model."""
    config = model.config
    if task is None:
        task = "sudoku"
    found = get_task(task) if isinstance(task, str) else task
    sizes = f"model has seq_len={config.seq_len} and vocab_size={config.vocab_size}"
    fits = found.seq_len == config.seq_len and found.vocab_size <= config.vocab_size
    require(fits, "task", found.name, f"it needs seq_len={found.seq_len} and vocab_size={found.vocab_size}; {sizes}")
    return found


def resolve_policy(
    model: RecursiveReasoner, policy: HaltingPolicy | str | None, max_steps: int | None
) -> HaltingPolicy:
    """The halting policy with its cap; `InputError` when the model lacks what it reads."""
    config = model.config
    if isinstance(policy, HaltingPolicy):
        resolved = policy if max_steps is None else replace(policy, max_steps=max_steps)
    else:
        cap = config.halt_max_steps if max_steps is None else max_steps
        resolved = HaltingPolicy.parse("verified" if policy is None else policy, max_steps=cap)
    needs_head = sorted({"q", "cumulative"} & set(resolved.on))
    require(config.has_q_head or not needs_head, "policy", str(resolved),
            f"the model has no halting head, which {', '.join(needs_head)} reads")  # fmt: skip
    carried = config.program.output in config.program.carried
    require(carried or not resolved.settle_tolerance, "settle_tolerance", resolved.settle_tolerance,
            f"0 for the program {config.program.name!r}, whose output is not carried between ACT steps")  # fmt: skip
    return resolved
