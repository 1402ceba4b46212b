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
from rtm_kernels.program import INPUT, Program, Step
from rtm_kernels.recursion import reference
from rtm_kernels.recursion.persistent.pack import PackedLayers
from rtm_kernels.recursion.persistent.runner import KERNEL, PersistentExecutor, why_not
from tests.engine.fakes import TASK, config
from tests.recursion.support import bits, random_state, small_stacks

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="interpreted; test_persistent_gpu runs on the GPU")

HEAD = torch.randn(2, 24, generator=torch.Generator().manual_seed(3)), torch.tensor([-0.3, 0.1])
TRM, RTM, CPU = programs.trm(1, 1), programs.rtm(1), torch.device("cpu")


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


def test_every_call_has_buffers_of_its_own_and_nothing_given_is_modified() -> None:
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
    assert bits(whole.latents) == kept, "a later call has buffers of its own"


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
