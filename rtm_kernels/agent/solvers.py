"""The models that the tools may use: one per task, behind one service."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rtm_kernels.data.task import Task, get_task, has_task
from rtm_kernels.engine import Overloaded, Service, Solution, Solver
from rtm_kernels.errors import BackendUnavailable, InputError, printable, require
from rtm_kernels.model import RecursiveReasoner
from rtm_kernels.pretrained import known_models

DEADLINE = 30.0
"""Seconds until a call answers with what it has."""
MAX_QUEUED = 256


class Solvers:
    """Solvers by task. `models`: names of `from_pretrained`, each alone or as `TASK=NAME`; none: the bundled ones.

    Answers do not depend on who else asks at the time (`batch_invariant`). Use as a context manager.

    Errors: `InputError` for an unknown model, a model that does not fit its task, and two models of one task.
    """

    def __init__(self, models: Sequence[str] = (), **options: Any) -> None:
        self.loaded: dict[str, Solver] = {}
        self.names: dict[str, str] = {}
        for text in models or known_models():
            task, name = split(text)
            solver = Solver(RecursiveReasoner.from_pretrained(name), task=task, batch_invariant=True, **options)
            loaded = solver.task.name
            require(loaded not in self.loaded, "model", text, f"the task {loaded} has a model already")
            self.loaded[loaded], self.names[loaded] = solver, name
        self.service = Service(self.loaded, max_queued=MAX_QUEUED)

    def of(self, task: str) -> Solver:
        """The model of `task`. Raises `InputError` that says which there are, and how to give one."""
        if task not in self.loaded:
            others = ", ".join(self.loaded)
            raise InputError(f"no model for {task} is loaded (there are: {others}); start with --model {task}=FOLDER")
        return self.loaded[task]

    async def solve(self, task: str, puzzles: Sequence[str], max_steps: int | None) -> list[Solution]:
        """The solutions in order, within the deadline.

        Errors: `InputError` for a puzzle that cannot be read, `BackendUnavailable` when busy.
        """
        self.of(task)
        try:
            solutions = await self.service.solve_all(puzzles, solver=task, max_steps=max_steps, deadline=DEADLINE)
        except Overloaded as error:
            raise BackendUnavailable(f"busy: {error}; try again in a few seconds") from None
        for solution in solutions:
            if solution.error is not None:
                raise InputError(printable(solution.error))
        return solutions

    def __enter__(self) -> Solvers:
        return self

    def __exit__(self, *_: object) -> None:
        self.service.close(drain=False)


def split(text: str) -> tuple[Task | None, str]:
    """`TASK=NAME` or `NAME`, as (task, name)."""
    head, separator, tail = text.partition("=")
    if separator and has_task(head):
        return get_task(head), tail
    return None, text
