"""What a process holds while it sees one batch size after another: memory, and entries of containers and caches.

    python -m tests.proof.growth [compiled]

500 batch sizes come in random order, the largest first; after each hundred, a line of JSON. Each subject has a process
of its own, forked from this one. No launch does anything; with `compiled`, each goes through Triton's compiler.
"""

from __future__ import annotations

import os
import sys

if "compiled" not in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"

import ctypes
import gc
import json
import random
import traceback
from collections import deque
from collections.abc import Callable, Iterator

import torch

from rtm_kernels import program as programs
from rtm_kernels.ops.attention_norm.api import attention_norm
from rtm_kernels.ops.shared import shared_weights
from rtm_kernels.ops.swiglu_norm.api import mixer_norm, swiglu_norm
from rtm_kernels.recursion import native, reference
from rtm_kernels.recursion.graph import GraphRunner
from rtm_kernels.recursion.native_weights import HeadWeights
from rtm_kernels.recursion.persistent.executor import PersistentExecutor
from tests.proof import uses
from tests.recursion.native_support import weights
from tests.recursion.support import Recorder, small_stacks

SIZES, BLOCK = 500, 100
LENGTH, WIDTH, INNER = 5, 16, (8, 24)
PROGRAM = programs.trm(1, 1)
Subject = Callable[[int], object]


def entries() -> int:
    """Items of every list, dict, set and queue that is alive, and results that `functools` remembers."""
    total, seen, tracked = 0, set(), gc.get_objects()
    for holder in tracked:
        if type(holder).__name__ == "_lru_cache_wrapper":
            total += holder.cache_info().currsize
        for value in (holder, *gc.get_referents(holder)):  # a dict of numbers is not tracked itself
            if issubclass(type(value), (list, dict, set, deque)) and value is not tracked and id(value) not in seen:
                seen.add(id(value))
                total += len(value)
    return total


def resident() -> int:
    """KiB of memory, without what the allocator could give back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * (os.sysconf("SC_PAGESIZE") // 1024)


def state(batch: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Latents and input of a TRM [B, L, D]."""
    x = torch.randn(batch, LENGTH, WIDTH)
    return {"z_H": x.flip(1), "z_L": x.flip(2)}, x


def launchers() -> Subject:
    """The launchers of every op, forward and backward, on meta tensors."""
    names = ("swiglu_norm", "attention_norm", "halting settle first", "stablemax", "sign_sgd")
    made = [uses.by_batch()[name] for name in names]
    return lambda batch: [use(batch) for use in made]


def compiled_launches() -> Subject:
    """Small kernels through the compiler, which keeps what it compiled by signature."""
    made = [uses.by_batch()[name] for name in ("sign_sgd", "halting q first")]
    return lambda batch: [use(batch) for use in made]


def shared() -> Subject:
    """Forward and backward of the ops whose weights are shared, all in one scope."""
    shared_weights().__enter__()
    mixer, channel = (
        (torch.randn(48, n).requires_grad_(), torch.randn(n, 24).requires_grad_()) for n in (LENGTH, WIDTH)
    )
    heads = torch.randn(3 * WIDTH, WIDTH).requires_grad_(), torch.randn(WIDTH, WIDTH).requires_grad_()

    def run(batch: int) -> None:
        x = torch.randn(batch, LENGTH, WIDTH).requires_grad_()
        with torch.enable_grad():
            y = mixer_norm(x, *mixer, injection=(x,), impl="triton")
            y = attention_norm(y, *heads, num_heads=2, impl="triton")
            swiglu_norm(y, *channel, injection=(x,), impl="triton").backward(x.detach())

    return run


def plain() -> Subject:
    """The reference."""
    stacks = small_stacks(PROGRAM.stacks, LENGTH, WIDTH, INNER)
    return lambda batch: reference.run(PROGRAM, *state(batch), stacks)


def in_cpp() -> Subject:
    """The C++ executor: the program, an ACT step, and the run until everyone has halted."""
    stacks = weights(small_stacks(PROGRAM.stacks, LENGTH, WIDTH, INNER))
    heads = HeadWeights(tokens=torch.randn(7, WIDTH), halting=(torch.randn(2, WIDTH), None))
    executor = native.NativeExecutor(PROGRAM, stacks, heads)

    def run(batch: int) -> None:
        given = state(batch)
        executor.run(*given)
        executor.step(*given)
        executor.solve(*given, policy="q", max_steps=3)

    return run


def persistent() -> Subject:
    """The buffers of the persistent kernel, whose launches do nothing here."""
    executor = PersistentExecutor(PROGRAM, small_stacks(PROGRAM.stacks, LENGTH, WIDTH, INNER))
    return lambda batch: executor.run(*state(batch))


def graphs() -> Subject:
    """Graphs by bucket, recorded."""
    stacks = small_stacks(PROGRAM.stacks, LENGTH, WIDTH, INNER)

    def step(given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return reference.run(PROGRAM, {name: given[name] for name in PROGRAM.carried}, given["x"], stacks)

    runner = GraphRunner(step, max_batch=SIZES, capture=Recorder())

    def run(batch: int) -> None:
        latents, x = state(batch)
        runner({**latents, "x": x})

    return run


def slots() -> Subject:
    """A solver whose batch shrinks as its puzzles halt."""
    from rtm_kernels.engine import Solver
    from tests.engine.fakes import TASK, ScriptedExecutor, model

    solver = Solver(model(), task=TASK, policy="q", batch_size=SIZES, max_steps=4)
    solver.executor = ScriptedExecutor(solver.model)

    def run(batch: int) -> None:
        solver.executor.batch_sizes.clear()
        solver.solve(f"{i % 3 + 2}{i % 4 + 1}{i % 8}0" for i in range(batch))

    return run


def planted() -> Subject:
    """A cache that grows with every batch size, and holds numbers alone."""
    kept: dict[int, int] = {}
    return lambda batch: kept.setdefault(batch, 2 * batch)


SUBJECTS: dict[str, Callable[[], Subject]] = {
    "launchers": launchers, "shared weights": shared, "reference": plain, "C++": in_cpp, "persistent": persistent,
    "graphs": graphs, "slots": slots, "planted": planted,
}  # fmt: skip


def measured(run: Subject) -> Iterator[tuple[int, int, int]]:
    """After each block of batch sizes: KiB of memory, entries, and variants of the kernel that has most."""
    sizes = random.Random(0).sample(range(1, SIZES), SIZES - 1)
    resident(), entries()
    for number, batch in enumerate([SIZES, *sizes], 1):
        run(batch)
        if number % BLOCK == 0:
            yield resident(), entries(), most_variants()


def most_variants() -> int:
    """Variants of the kernel that has most, as Triton holds them."""
    from triton.runtime.jit import JITFunction

    kernels = [value for value in gc.get_objects() if type(value) is JITFunction]
    return max((len(cache[0]) for kernel in kernels for cache in kernel.device_caches.values()), default=0)


def in_a_process(name: str, make: Callable[[], Subject]) -> None:
    """Print the lines of one subject."""
    if pid := os.fork():
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
            raise SystemExit(f"{name} failed")
        return
    status = 1
    try:
        torch.manual_seed(0)
        with torch.no_grad():
            for line in measured(make()):
                print(json.dumps((name, *line)), flush=True)
        status = 0
    except BaseException:
        traceback.print_exc()
    os._exit(status)


def main(compiled: bool) -> int:
    if compiled:
        from triton.runtime.jit import JITFunction

        from tests.gates.compile_gate import _install_target

        _install_target(90)
        run = JITFunction.run
        JITFunction.run = lambda self, *args, **options: run(  # type: ignore[method-assign]
            self, *args, **{**options, "grid": (1,), "warmup": True}
        )
        in_a_process("compiled", compiled_launches)
    else:
        from triton.runtime.interpreter import GridExecutor

        GridExecutor.__call__ = lambda self, *args, **options: None  # type: ignore[method-assign]
        for name, make in SUBJECTS.items():
            in_a_process(name, make)
    return 0


if __name__ == "__main__":
    sys.exit(main("compiled" in sys.argv))
