"""Triton's interpreter with programs that take turns, so that kernels whose programs wait for each other can run.

The interpreter runs one program after another, in which a wait never ends. Here each program is a thread, exactly
one runs at a time, and at every atomic operation the turn goes to a program drawn at random. A kernel that lacks a
barrier reads what another program has not written yet; memory ordering between multiprocessors is not modelled.
"""

from __future__ import annotations

import inspect
import random
import threading
from typing import Any

import pytest
from triton.runtime import interpreter


class Turns:
    """Passes the turn between `n` programs."""

    def __init__(self, n: int, seed: int) -> None:
        self.waiting = [threading.Semaphore(0) for _ in range(n)]
        self.alive = list(range(n))
        self.draw = random.Random(seed)
        self.running = -1
        self.handovers = 0
        self.errors: list[BaseException] = []

    def hand_over(self) -> None:
        """Called by the running program at an atomic operation: continue when the turn comes back."""
        me = self.running
        self.handovers += 1
        self._pass_on()
        self._take(me)

    def run(self, me: int, program: Any) -> None:
        """Body of the thread of program `me`."""
        self._take(me)
        try:
            if not self.errors:
                program()
        except BaseException as error:  # reported by the launching thread
            self.errors.append(error)
        self.alive.remove(me)
        if self.alive:
            self._pass_on()

    def _pass_on(self) -> None:
        self.waiting[self.draw.choice(self.alive)].release()

    def _take(self, me: int) -> None:
        self.waiting[me].acquire()
        self.running = me
        interpreter.interpreter_builder.set_grid_idx(me, 0, 0)
        if self.errors:
            raise SystemExit


def interleave(monkeypatch: pytest.MonkeyPatch, seed: int) -> list[Turns]:
    """Let every launch until the end of the test take turns; returns the launches' turns, in order."""
    launches: list[Turns] = []
    builder = interpreter.interpreter_builder
    atomic = builder.create_atomic_rmw

    def atomic_then_hand_over(*args: Any) -> Any:
        result = atomic(*args)
        launches[-1].hand_over()
        return result

    class Interleaved(interpreter.GridExecutor):
        def __call__(self, *args: Any, **kwargs: Any) -> None:
            kwargs = {k: v for k, v in kwargs.items() if k in inspect.getfullargspec(self.fn).args}
            bound = inspect.getcallargs(self.fn, *args, **kwargs)
            bound = {k: v if k in self.constexprs else interpreter._implicit_cvt(v) for k, v in bound.items()}
            turns = Turns(self.grid[0], seed + len(launches))
            launches.append(turns)
            builder.set_grid_dim(self.grid[0], 1, 1)
            scope = interpreter._patch_lang(self.fn)
            programs = [
                threading.Thread(target=turns.run, args=(i, lambda: self.fn(**bound))) for i in range(self.grid[0])
            ]
            try:
                for thread in programs:
                    thread.start()
                turns._pass_on()
                for thread in programs:
                    thread.join()
            finally:
                scope.restore()
            if turns.errors:
                raise turns.errors[0]

    monkeypatch.setattr(builder, "create_atomic_rmw", atomic_then_hand_over)
    monkeypatch.setattr(interpreter, "GridExecutor", Interleaved)
    return launches
