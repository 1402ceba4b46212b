"""Solver: puzzles in, checked answers out, with halting per sample and continuous batching."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice

import torch

from rtm_kernels.data.task import Puzzle, Task, find_tasks, get_task
from rtm_kernels.engine.executor import executor as build_executor
from rtm_kernels.engine.executor import with_precision
from rtm_kernels.engine.rollouts import Rollouts, RolloutSlots
from rtm_kernels.engine.samples import Finished, Observer, Sample, Solution
from rtm_kernels.engine.slots import Slots
from rtm_kernels.errors import BackendUnavailable, InputError, printable, require
from rtm_kernels.model import RecursiveReasoner
from rtm_kernels.ops.halting.policy import HEADED, HaltingPolicy
from rtm_kernels.ops.shared import versions

MAX_BATCH = 1 << 16
SHOWN = 200


class Solver:
    """Solves puzzles of one task with one model.

    Each puzzle takes ACT steps until the halting policy lets it go (`HaltingPolicy`); its place in the batch is
    then filled by the next puzzle at once, and at the end the batch shrinks. Who else is in the batch does not
    change an answer beyond the rounding of the executor; with `batch_invariant` not even that: unless the executor
    promises as much by itself, every step then has the same shapes.

    A model whose weights have no length (`ModelConfig.any_length`) solves every size of its task, each in batches of
    its own.

    Args:
        task: a `Task` or the name of a registered one; found by its sizes when None.
        policy: `HaltingPolicy` or its text, e.g. `verified`, `q=0.9+settle`, `fixed`. Default `verified`: a puzzle
            leaves when its answer is confirmed, and goes on to `max_steps` otherwise, whatever the head says.
        max_steps: cap on ACT steps per run (`Rollouts`); default the policy's, or `model.config.halt_max_steps`.
        min_steps: floor of ACT steps per puzzle; default the policy's, or 1.
        batch_size: slots of the latent buffer.
        device: cpu, cuda or cuda:N; the model is moved there first.
        executor: `auto` or a name of `EXECUTORS`; a named one that cannot run raises.
        precision: of the products on a CPU: `float32`, or `bfloat16` or `int8` where the processor has instructions
            for them. The faster ones may change answers, which stay checked.
        rollouts: `Rollouts`, or how many of them an unconfirmed puzzle gets; the best one answers.

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
        min_steps: int | None = None,
        batch_size: int = 64,
        device: torch.device | str | None = None,
        executor: str = "auto",
        precision: str = "float32",
        batch_invariant: bool = False,
        rollouts: Rollouts | int = 1,
    ) -> None:
        require(isinstance(batch_size, int) and 1 <= batch_size <= MAX_BATCH, "batch_size", batch_size,
                f"an integer from 1 to {MAX_BATCH}")  # fmt: skip
        self.task = find_task(model, task)
        self.policy = resolve_policy(model, policy, max_steps, min_steps)
        self.model = model if device is None else model.to(usable_device(device))
        name = with_precision(executor, precision)
        self._build = partial(build_executor, name, batch_size=batch_size if batch_invariant else None)
        self.executor, self._seen = self._build(self.model), versions(self.model.parameters())
        self.batch_size, self.batch_invariant = batch_size, batch_invariant
        self.rollouts = rollouts if isinstance(rollouts, Rollouts) else Rollouts(rollouts)
        self.rollouts.of(self.task)
        self._resting: dict[tuple[object, ...], Slots] = {}
        self._capped = max_steps is not None or isinstance(policy, HaltingPolicy)
        self._sizes: dict[str, Solver] = {}

    def sized(self, task: Task) -> Solver:
        """This solver for another size of its task, with the same weights; itself for its own or where it has one size.

        Without a cap of the caller's it takes that of the resized model.
        """
        if not self.model.config.any_length or task.seq_len == self.task.seq_len:
            return self
        if task.name not in self._sizes:
            other = copy.copy(self)
            other.task, other.model, other._resting = task, self.model.resized(task.seq_len), {}
            if not self._capped:
                other.policy = replace(self.policy, max_steps=other.model.config.halt_max_steps)
            other.executor, other._seen = self._build(other.model), versions(other.model.parameters())
            self._sizes[task.name] = other
        return self._sizes[task.name]

    def of(self, puzzle: str | Puzzle) -> Solver:
        """The solver of the size of `puzzle`."""
        return self.sized(self.task.sized(puzzle if isinstance(puzzle, str) else puzzle.text))

    @property
    def reader(self) -> Task:
        """What reads the puzzles that this solver takes."""
        return self.task.reader() if self.model.config.any_length else self.task

    def solve(self, puzzles: Iterable[str | Puzzle]) -> list[Solution]:
        """The solutions of `puzzles` in the order given."""
        return [solution for _, solution in sorted(self.stream(puzzles), key=lambda pair: pair[0])]

    def stream(self, puzzles: Iterable[str | Puzzle]) -> Iterator[tuple[int, Solution]]:
        """(index, solution) of each puzzle as it finishes; `puzzles` is read only as fast as slots become free, and on
        a GPU up to `batch_size` more of them, which wait in its memory."""
        require(not isinstance(puzzles, (str, Puzzle)), "puzzles", puzzles, "expected a list of puzzles, not one")
        return self._stream(puzzles) if self.reader is self.task else self._by_size(puzzles)

    def slots(self, observer: Observer | None = None, *, ahead: bool = False) -> Slots | RolloutSlots:
        """An empty latent buffer of this solver's size and policy; `observer` is called with every step.

        With `ahead`, on a GPU, it also takes samples that wait in its memory, and one launch may take many steps: for
        callers that neither prefer nor evict any.
        """
        if (seen := versions(self.model.parameters())) != self._seen:  # executors keep the weights in their own form
            self.executor, self._seen, self._resting = self._build(self.model), seen, {}
        fixed = self.batch_invariant and not self.executor.batch_invariant
        several = self.rollouts.count > 1
        kind, waiting = self.rollouts.of(self.task) if several else "", self.batch_size if ahead and not several else 0
        recipe = (
            self.executor,
            self.policy,
            self.task.verify_tokens,
            self.batch_size,
            fixed,
            waiting,
            kind,
            self.task.groups,
        )
        resting = self._resting.pop(recipe, None) if observer is None else None
        slots = resting or Slots(self.model, *recipe, observer=observer)
        return RolloutSlots(slots, self.rollouts, self.task, self.policy) if several else slots

    def run(self, samples: Iterable[Sample], observer: Observer | None = None) -> Iterator[Finished]:
        """Samples as they leave the batch; `samples` is read as fast as slots become free."""
        slots, source = self.slots(observer, ahead=True), iter(samples)
        while True:
            slots.admit(list(islice(source, slots.free)))
            if not slots.active:
                break
            yield from slots.step()
        inner = slots.slots if isinstance(slots, RolloutSlots) else slots
        if inner.captured:  # its graphs are recorded: the next run takes it
            self._resting[inner.recipe] = inner

    def _by_size(self, puzzles: Iterable[str | Puzzle]) -> Iterator[tuple[int, Solution]]:
        """`stream` in parts of four batches; the puzzles of one size of a part are solved together."""
        source = enumerate(puzzles)
        while part := list(islice(source, 4 * self.batch_size)):
            groups: dict[str, tuple[Solver, list[tuple[int, str | Puzzle]]]] = {}
            for index, puzzle in part:
                solver = self.of(puzzle) if isinstance(puzzle, (str, Puzzle)) else self
                groups.setdefault(solver.task.name, (solver, []))[1].append((index, puzzle))
            for solver, group in groups.values():
                for place, solution in solver._stream([puzzle for _, puzzle in group]):
                    yield group[place][0], solution

    def _stream(self, puzzles: Iterable[str | Puzzle]) -> Iterator[tuple[int, Solution]]:
        texts: dict[int, str] = {}
        invalid: deque[tuple[int, Solution]] = deque()

        def samples() -> Iterator[Sample]:
            for index, puzzle in enumerate(puzzles):
                sample = self.encode(index, puzzle)
                if isinstance(sample, Solution):
                    invalid.append((index, sample))
                else:
                    texts[index] = self.task.decode(sample.tokens)
                    yield sample

        for done in self.run(samples()):
            while invalid:
                yield invalid.popleft()
            yield done.key, self.solution(texts.pop(done.key), done)
        yield from invalid

    def encode(self, key: object, puzzle: str | Puzzle) -> Sample | Solution:
        """The puzzle as a sample for `Slots`, or the solution of status `invalid` that says what is wrong with it."""
        require(isinstance(puzzle, (str, Puzzle)), "puzzle", puzzle, "expected a string")
        read = puzzle
        try:
            if isinstance(read, str):
                read = self._read(read)
            if read.error is not None:
                raise InputError(read.error)
            return Sample(key, self.task.encode(read.text), seed=self.rollouts.seed)
        except InputError as error:
            text = puzzle if isinstance(puzzle, str) else puzzle.text
            shown = printable(text[:SHOWN]) + "…" * (len(text) > SHOWN)
            return Solution(task=self.task.name, input=shown, status="invalid", error=str(error))

    def _read(self, text: str) -> Puzzle:
        found = list(islice(self.task.parse(text, errors="report"), 2))
        require(len(found) == 1, "puzzle", f"{printable(text[:SHOWN])}", f"one {self.task.name} puzzle")
        return found[0]

    def solution(self, text: str, done: Finished) -> Solution:
        """What a finished sample means for the puzzle `text`."""
        status = "verified" if done.verified else "unverified"
        if done.reason == "non_finite":
            status = "non_finite"
        return Solution(
            task=self.task.name,
            input=text,
            answer=None if done.answer is None else self.task.decode(done.answer),
            status=status,
            steps=done.steps,
            halt_probability=done.halt_probability,
            seconds=done.seconds,
            reason=done.reason,
            answer_step=done.answer_step,
            residual=done.residual,
            rollout=done.rollout,
            total_steps=done.total_steps,
        )


def usable_device(device: torch.device | str) -> torch.device:
    """The device, checked: `InputError` when it is not cpu or cuda, `BackendUnavailable` when it is not here."""
    try:
        found = torch.device(device)
    except RuntimeError:
        raise InputError(f"device={str(device)!r} is not allowed: cpu, cuda, or cuda:N") from None
    require(found.type in ("cpu", "cuda"), "device", str(device), "cpu, cuda, or cuda:N")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise BackendUnavailable(f"device={str(device)!r} is not here: {torch.cuda.device_count()} CUDA devices")
    return found


def find_task(model: RecursiveReasoner, task: Task | str | None) -> Task:
    """The task given, by name, or by the model's sizes; `InputError` when it does not fit the model."""
    config = model.config
    if task is None:
        fitting = find_tasks(config.seq_len, config.vocab_size)
        sizes = f"seq_len={config.seq_len} and vocab_size={config.vocab_size}"
        names = ", ".join(t.name for t in fitting) or "none"
        require(len(fitting) == 1, "task", task, f"name one; those of {sizes}: {names}")
        return fitting[0]
    found = get_task(task) if isinstance(task, str) else task
    for field in ("seq_len", "vocab_size"):
        needs, has = getattr(found, field), getattr(config, field)
        require(needs == has, "task", found.name, f"it needs {field}={needs}, and the model has {field}={has}")
    return found


def resolve_policy(
    model: RecursiveReasoner,
    policy: HaltingPolicy | str | None,
    max_steps: int | None,
    min_steps: int | None = None,
) -> HaltingPolicy:
    """The halting policy with its cap and floor; `InputError` when the model lacks what it reads."""
    config = model.config
    if not isinstance(policy, HaltingPolicy):
        cap = config.halt_max_steps if max_steps is None else max_steps
        policy = HaltingPolicy.parse("verified" if policy is None else policy, max_steps=cap, min_steps=min_steps or 1)
    resolved = replace(
        policy,
        max_steps=policy.max_steps if max_steps is None else max_steps,
        min_steps=policy.min_steps if min_steps is None else min_steps,
    )
    needs_head = sorted(HEADED & set(resolved.on))
    require(config.has_q_head or not needs_head, "policy", str(resolved),
            f"the model has no halting head, which {', '.join(needs_head)} reads")  # fmt: skip
    compares = config.halting == "q_continue" or "q_continue" not in resolved.on
    require(compares, "policy", str(resolved), f"q, as the model has halting={config.halting!r}")
    carried = config.program.output in config.program.carried
    require(carried or not resolved.settle_tolerance, "settle_tolerance", resolved.settle_tolerance,
            f"0 for the program {config.program.name!r}, whose output is not carried between ACT steps")  # fmt: skip
    return resolved
