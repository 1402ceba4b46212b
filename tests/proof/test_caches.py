"""Caches: of compiled kernels on disk, and of buffers and signatures in memory, over many batch sizes."""

from __future__ import annotations

import gc
import json
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rtm_kernels import program as programs
from rtm_kernels.engine import Solver
from rtm_kernels.ops.attention_norm.api import attention_norm
from rtm_kernels.ops.shared import shared_weights
from rtm_kernels.ops.swiglu_norm.api import mixer_norm, swiglu_norm
from rtm_kernels.recursion import native, reference
from rtm_kernels.recursion.graph import GraphRunner
from rtm_kernels.recursion.persistent.runner import PersistentExecutor
from tests.engine import fakes
from tests.proof.launching import bits, every_launch, process
from tests.proof.test_bits import OPS, samples
from tests.recursion.native_support import make_stacks
from tests.recursion.support import Recorder, small_stacks

pytest.importorskip("triton")


ROUNDS, PROCESSES = 6, 8


@pytest.mark.proof("caches")
def test_processes_that_start_cold_together_all_get_the_kernel_that_one_gets_alone(
    tmp_path: Path, cells: Callable[[int], None]
) -> None:
    """On one empty folder, for two architectures at once, in every other round with one of them killed."""
    arguments = str(tmp_path), str(ROUNDS), str(PROCESSES)
    printed = process("-m", "tests.proof.cold_start", *arguments, interpret=False)
    (hopper, ampere), *rounds = map(json.loads, printed.splitlines())
    assert hopper["cubin"] != ampere["cubin"] and len(rounds) == ROUNDS
    for number, found in enumerate(rounds):
        assert len(found) >= PROCESSES + 2 - number % 2
        assert all(each in (hopper, ampere) for each in found)
    cells(sum(map(len, rounds)))


Call = Callable[[Tensor], tuple[Tensor, ...]]
"""From x [B, L, D] to tensors."""
PROGRAM = programs.trm(1, 2)
LENGTH, WIDTH, INNER = 3, 16, (8, 24)


def op(name: str) -> Call:
    return lambda x: OPS[name](x, "triton")


def of_shared_weights() -> Call:
    """Outputs and every gradient of three half layers, which share their weights in each call."""
    g = torch.Generator().manual_seed(0)
    sizes = ((48, LENGTH), (LENGTH, 24), (3 * WIDTH, WIDTH), (WIDTH, WIDTH), (48, WIDTH), (WIDTH, 24))
    leaves = [(torch.randn(n, generator=g) / n[1] ** 0.5).requires_grad_() for n in sizes]

    def call(x: Tensor) -> tuple[Tensor, ...]:
        with shared_weights():
            x = x.clone().requires_grad_()
            y = mixer_norm(x, *leaves[:2], injection=(x,), impl="triton")
            y = attention_norm(y, *leaves[2:4], num_heads=2, impl="triton")
            y = swiglu_norm(y, *leaves[4:], injection=(x,), impl="triton")
            return y.detach(), *torch.autograd.grad(y, (x, *leaves), torch.cos(3 * x.detach()))

    return call


def latents_of(x: Tensor) -> dict[str, Tensor]:
    return {"z_H": x.flip(1), "z_L": x.flip(2)}


def of_persistent() -> Call:
    run = PersistentExecutor(PROGRAM, small_stacks(PROGRAM.stacks, LENGTH, WIDTH, INNER)).run
    return lambda x: tuple(run(latents_of(x), x).latents.values())


def of_graphs() -> Call:
    stacks = small_stacks(PROGRAM.stacks, LENGTH, WIDTH, INNER)
    runner = GraphRunner(
        lambda given: reference.run(PROGRAM, latents_of(given["x"]), given["x"], stacks), max_batch=MOST,
        capture=Recorder(),
    )  # fmt: skip
    return lambda x: tuple(runner({"x": x}).values())


def of_native(precision: str, mixer: str) -> Call:
    reason = native.why_not_precision(precision)
    if reason is not None:
        pytest.skip(reason)
    stacks = make_stacks(PROGRAM, LENGTH, WIDTH, mixer=mixer, num_heads=2)
    heads = native.HeadWeights(tokens=torch.randn(7, WIDTH), halting=(torch.randn(2, WIDTH), None))
    executor = native.NativeExecutor(PROGRAM, stacks, heads, precision=precision)

    def call(x: Tensor) -> tuple[Tensor, ...]:
        step = executor.step(latents_of(x), x)
        seen = (step.logits, step.token_q, step.answers, step.finite, step.change)
        return *executor.run(latents_of(x), x).values(), *step.latents.values(), *seen

    return call


MADE: dict[str, Callable[[], Call]] = {
    **{name: lambda name=name: op(name) for name in OPS},
    "shared weights": of_shared_weights,
    "persistent": of_persistent,
    "graphs": of_graphs,
    **{f"C++ {p} {m}": lambda p=p, m=m: of_native(p, m) for p in native.PRECISIONS for m in ("mlp", "attention")},
}  # fmt: skip
OTHERS = (4, 8, 1, 2, 7)


@pytest.mark.proof("caches")
@pytest.mark.parametrize("name", MADE)
def test_a_batch_between_two_others_leaves_nothing(name: str, cells: Callable[[int], None]) -> None:
    """N1, N2, N1 has the bits of N1 alone, where the samples of N2 are not even numbers."""
    x, call = samples(3, seed=1), MADE[name]()
    alone = list(map(bits, MADE[name]()(x)))
    assert len(set(alone)) > 1
    for other in OTHERS:
        call(torch.full((other, LENGTH, WIDTH), torch.nan))
        assert list(map(bits, call(x))) == alone, f"after a batch of {other}"
    cells(len(OTHERS))


MOST = 256
"""Batch sizes of a subject."""
MOST_ENTRIES = 32
"""Buffers of powers of two may be added, nothing for each batch size."""


def entries() -> int:
    """Items of every list, dict, set and queue that is alive, and results that `functools` remembers."""
    gc.collect()
    total, seen, tracked = 0, set(), gc.get_objects()
    for holder in tracked:
        if type(holder).__name__ == "_lru_cache_wrapper":
            total += holder.cache_info().currsize
        for value in (holder, *gc.get_referents(holder)):  # a dict of numbers is not tracked itself
            if issubclass(type(value), (list, dict, set, deque)) and value is not tracked and id(value) not in seen:
                seen.add(id(value))
                total += len(value)
    return total


def planted() -> Call:
    """A cache that grows with every batch size, and holds numbers alone."""
    kept: dict[int, int] = {}
    return lambda x: (torch.tensor(kept.setdefault(len(x), 2 * len(x))),)


@pytest.mark.proof("caches")
@pytest.mark.parametrize("name", [*MADE, "planted"])
def test_nothing_is_kept_for_each_batch_size(name: str, cells: Callable[[int], None]) -> None:
    """After the largest batch, smaller ones of many sizes leave no entry in any container of the process."""
    call = {**MADE, "planted": planted}[name]()
    most, sizes = MOST, list(range(1, MOST))
    grown = []
    for part in ([most, *sizes[:4]], sizes[4:]):
        before = entries()
        with every_launch(lambda launch: None):  # what the host keeps does not depend on what is computed
            for batch in part:
                call(samples(batch, seed=0))
        grown.append(entries() - before)
    assert (grown[1] > MOST_ENTRIES) == (name == "planted"), grown
    cells(most)


@pytest.mark.proof("caches")
@pytest.mark.skipif(native.why_not() is not None, reason=f"{native.why_not()}")
def test_another_sequence_length_between_leaves_nothing() -> None:
    """Attention without tables of positions runs at any length, in buffers of the length that ran last."""
    call = of_native("float32", "attention")
    x = samples(3, seed=1)
    alone = list(map(bits, call(x)))
    for length in (1, 7, 131):
        call(torch.full((2, length, WIDTH), torch.nan))
        assert list(map(bits, call(x))) == alone


@pytest.mark.proof("caches")
@pytest.mark.parametrize("executor", ["reference", pytest.param("native", marks=pytest.mark.skipif(
    native.why_not() is not None, reason=f"{native.why_not()}"))])  # fmt: skip
def test_puzzles_solved_between_leave_nothing(executor: str) -> None:
    torch.manual_seed(0)
    model = fakes.RecursiveReasoner(fakes.config())
    torch.nn.init.normal_(model.q_head.weight)

    def made() -> Solver:
        return Solver(model, task=fakes.TASK, policy="q", batch_size=5, max_steps=4, executor=executor)

    def solve(solver: Solver, puzzles: list[str]) -> list[dict[str, Any]]:
        return [{**asdict(solution), "seconds": None} for solution in solver.solve(puzzles)]

    mine, solver = ["1234", "7016", "5555"], made()
    alone = solve(made(), mine)
    for count in (5, 1, 13):
        solve(solver, [f"{i % 8}{7 - i % 8}{i % 3}1" for i in range(count)])
        assert solve(solver, mine) == alone
