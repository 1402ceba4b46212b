"""The persistent kernel, interpreted with a grid of one: head and change, sizes, bits, what it refuses.

That it computes every prefix of every program is in test_every_executor, grids of many programs in
test_persistent_grid.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from rtm_kernels import program as programs
from rtm_kernels.block import FusedTRMBlock, Stack
from rtm_kernels.engine import Solver
from rtm_kernels.errors import BackendUnavailable, InputError
from rtm_kernels.impl import launches
from rtm_kernels.model import RecursiveReasoner
from rtm_kernels.ops.halting.reference import relative_change
from rtm_kernels.ops.launch import LaunchRow
from rtm_kernels.program import INPUT, Program, Step
from rtm_kernels.recursion import reference
from rtm_kernels.recursion.persistent.executor import PersistentExecutor, why_not
from rtm_kernels.recursion.persistent.launch import KERNEL
from rtm_kernels.recursion.persistent.pack import PackedLayers
from tests.engine.fakes import TASK, config
from tests.recursion.support import assert_within_budget, bits, random_state, run_persistent, small_stacks

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="interpreted; test_persistent_gpu runs on the GPU")

SMALL_TILES = LaunchRow(
    KERNEL, "interpreter", 0, 16,
    {"BLOCK_L": 16, "MIX_D": 16, "MIX_I": 16, "UP_M": 16, "UP_I": 16, "UP_K": 16,
     "DOWN_M": 16, "DOWN_D": 16, "DOWN_K": 16, "NORM_R": 2}, 4, 1,
)  # fmt: skip
HEAD = torch.randn(2, 24, generator=torch.Generator().manual_seed(3)), torch.tensor([-0.3, 0.1])
TRM, RTM, CPU = programs.trm(1, 1), programs.rtm(1), torch.device("cpu")


@pytest.mark.parametrize("norm_axis", ["sequence", "hidden"])
@pytest.mark.parametrize(
    ("program", "batch", "length", "width", "inner", "row"),
    [
        (TRM, 3, 7, 17, (5, 33), None),
        (RTM, 1, 1, 16, (8, 8), None),
        (RTM, 2, 12, 32, (16, 64), None),
        (RTM, 1, 13, 40, (70, 100), None),
        (RTM, 2, 97, 48, (96, 80), None),
        (TRM, 2, 9, 40, (35, 50), SMALL_TILES),
    ],
)
def test_sizes(
    program: Program, batch: int, length: int, width: int, inner: tuple[int, int], row: LaunchRow | None, norm_axis: str
) -> None:
    stacks = small_stacks(program.stacks, length, width, inner, norm_axis)
    latents, x = random_state(program, batch, length, width)
    got = run_persistent(program, latents, x, PackedLayers(stacks), row=row)
    change = got.pop("change")
    assert_within_budget(got, program, latents, x, stacks)
    torch.testing.assert_close(change, relative_change(got[program.output], latents[program.output]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_head_reads_every_position_and_the_change_is_that_of_the_output(dtype: torch.dtype) -> None:
    weights = PackedLayers(small_stacks(TRM.stacks, 9, 24, norm_axis="hidden"), dtype)
    latents, x = random_state(TRM, 3, 9, 24)
    latents = {name: t.to(dtype) for name, t in latents.items()}
    got = run_persistent(TRM, latents, x.to(dtype), weights, head=HEAD)
    y = got["z_H"].float()
    torch.testing.assert_close(got["q"], torch.nn.functional.linear(y, *HEAD), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got["change"], relative_change(y, latents["z_H"].float()), rtol=1e-5, atol=0)
    transformer = programs.rins(1)  # does not carry its output
    latents, x = random_state(transformer, 1, 9, 24)
    stacks = small_stacks(transformer.stacks, 9, 24)
    launched = PersistentExecutor(transformer, stacks).run(latents, x)
    assert launched.q is None and launched.change is None


@pytest.mark.parametrize("policy", ["q", "cumulative_token", "settle=1/0.4"])
def test_the_solver_takes_the_path_through_the_kernel(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The head, the change and all latents come from the launch: the model's own head is never applied."""
    torch.manual_seed(1)
    model = RecursiveReasoner(config(layers={"L_level": 1}, L_cycles=1, halt_max_steps=4, puzzle_emb_ndim=16))
    with torch.no_grad():
        torch.nn.init.normal_(model.q_head.weight, std=0.5)
        model.q_head.bias.fill_(-0.5)
    puzzles = ["1234", "7654", "0011"]
    found = {}
    for name in ("reference", "persistent"):
        before = launches[KERNEL]
        solver = Solver(model, task=TASK, executor=name, batch_size=2, policy=policy)
        found[name] = solver.solve(puzzles)
        launched = launches[KERNEL] - before
        monkeypatch.setattr(model, "heads", None)
    assert launched >= max(s.steps for s in found["persistent"])
    for ours, theirs in zip(found["persistent"], found["reference"], strict=True):
        assert (ours.answer, ours.steps, ours.reason) == (theirs.answer, theirs.steps, theirs.reason)
        assert ours.halt_probability == pytest.approx(theirs.halt_probability, rel=1e-4)
        assert ours.residual == pytest.approx(theirs.residual, rel=1e-4)


@pytest.mark.parametrize("norm_axis", ["sequence", "hidden"])
def test_a_sample_has_the_same_bits_in_every_run_in_any_batch_and_beside_poison(norm_axis: str) -> None:
    weights = PackedLayers(small_stacks(TRM.stacks, 9, 24, norm_axis=norm_axis))
    latents, x = random_state(TRM, 5, 9, 24)

    def run(samples: list[int]) -> list[dict[str, bytes]]:
        given = {name: t[samples] for name, t in latents.items()}
        found = run_persistent(TRM, given, x[samples], weights, head=HEAD)
        return [bits({name: t[[i]] for name, t in found.items()}) for i in range(len(samples))]

    together = run([0, 1, 2, 3, 4])
    assert together == run([0, 1, 2, 3, 4])
    assert run([4, 1]) == [together[4], together[1]] and run([4]) == [together[4]]
    x[1, 4, 5] = torch.nan
    latents["z_H"][1, 0, 0] = torch.inf
    poisoned = run([0, 1, 2])
    assert poisoned[::2] == together[:3:2] and poisoned[1] != together[1]


def test_buffers_serve_batches_of_several_sizes_and_nothing_given_is_modified() -> None:
    stacks = small_stacks(RTM.stacks, 9, 24)
    latents, x = random_state(RTM, 4, 9, 24)
    executor = PersistentExecutor(RTM, stacks, head=HEAD)
    given = {**latents, "stranger": torch.full((4,), 3.0)}
    before = bits({**given, INPUT: x})
    whole = executor.run(given, x)
    kept = bits(whole.latents)
    assert bits({**given, INPUT: x}) == before and set(whole.latents) == set(reference.run(RTM, given, x, stacks))
    for n in (3, 2, 0):
        part = executor.run({name: t[:n] for name, t in latents.items()}, x[:n])
        assert bits(part.latents) == bits({name: whole.latents[name][:n] for name in part.latents})
        assert torch.equal(part.q, whole.q[:n]) and torch.equal(part.change, whole.change[:n])
    assert bits(whole.latents) == kept and set(executor._by_size) == {0, 2, 4}


SMALL = small_stacks(TRM.stacks, 9, 24)
ATTENTION = {"L_level": Stack([FusedTRMBlock(24, mixer="attention", num_heads=2)])}
LONG = Program("p", (Step("z", ("z",) * 9),), output="z")
A, B, C = (small_stacks((n,), 9, 24, i, a) for n, i, a in (
    ("A", (20, 40), "sequence"), ("B", (20, 48), "sequence"), ("C", (20, 40), "hidden")
))  # fmt: skip
NARROW = torch.zeros(2, 20), torch.zeros(2)


def run(dtype: torch.dtype | None = None, head: Any = None, **changes: Tensor | None) -> Callable[[], object]:
    """A run of `TRM` with some of its latents or its input changed, or left out."""
    latents, x = random_state(TRM, 2, 9, 24)
    found = {name: t for name, t in {**latents, "x": x, **changes}.items() if t is not None}
    return lambda: PersistentExecutor(TRM, SMALL, dtype, head).run(found, found["x"])


REFUSED: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: PersistentExecutor(TRM, ATTENTION), BackendUnavailable, "layer 0 of stack 'L_level' has no MLP mixer"),
    (lambda: PersistentExecutor(TRM, {}), InputError, "the program applies L_level"),
    (lambda: PersistentExecutor(LONG, small_stacks(LONG.stacks, 9, 24)), BackendUnavailable, "sums 9 latents"),
    (lambda: PackedLayers({**A, **B}), InputError, r"stacks\['B'\]\[0\] has a weight \(96, 24\).*\(80, 24\)"),
    (lambda: PackedLayers({**A, **C}), InputError, "the same for all layers"),
    (run(head=NARROW), InputError, r"head=\(\(2, 20\), \(2,\)\) is not allowed: \[2, D=24\] and \[2\]"),
    (run(z_H=None), InputError, "z_H is read and not given"),
    (run(z_H=torch.ones(1, 9, 24)), InputError, r"z_H=\(1, 9, 24\) is not allowed: \[B, L, D\] = \(2, 9, 24\)"),
    (run(x=torch.ones(2, 9, 24).requires_grad_()), InputError, "has no backward"),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSED)
def test_refusals(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_why_not() -> None:
    assert why_not(TRM, SMALL, CPU, torch.float32, 9) is None
    assert "no MLP mixer" in str(why_not(TRM, ATTENTION, CPU, torch.float32, 9))
    assert why_not(TRM, SMALL, CPU, torch.float64, 9) == "the persistent kernel does not compute torch.float64"
    assert "size 129" in str(why_not(TRM, SMALL, CPU, torch.float32, 129))
