"""Slots on a simulated CUDA device: captured steps, both loops, every executor, and what the host copies."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from rtm_kernels.engine import Solver, solver
from rtm_kernels.engine import executor as executors
from rtm_kernels.engine.samples import Sample
from rtm_kernels.engine.slots import Slots
from rtm_kernels.model import RecursiveReasoner
from rtm_kernels.recursion import graph
from rtm_kernels.recursion.graph import CudaGraphs
from tests.engine.fakes import TASK, captured, config, scripted, told
from tests.engine.test_slots import PUZZLES
from tests.recursion.simulated_cuda import Machine, OnCpu, Stream, simulate

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real device")

CPU = torch.device("cpu")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return simulate(monkeypatch)


def on_graphs(solver: Solver, made: list[Slots] | None = None) -> Solver:
    return captured(solver, made, capture=CudaGraphs(CPU), impl="triton")


@pytest.mark.parametrize("loop", ["poll", "while"])
@pytest.mark.parametrize("text", ["q+settle=3", "cumulative", "verified+q"])
def test_captured_steps_do_what_eager_ones_do(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, text: str, loop: str
) -> None:
    if loop == "poll":
        monkeypatch.setattr(graph, "why_not_loop", lambda: "this test polls")
    eager, made, launched = scripted(text, batch_size=5).solve(PUZZLES), list[Slots](), list[int]()
    ours = on_graphs(scripted(text, batch_size=5), made)
    slots = ours.slots

    def counted(*args: Any, **options: Any) -> Any:
        found = slots(*args, **options)
        launch = made[-1]._queue.launch
        monkeypatch.setattr(
            made[-1]._queue, "launch", lambda active, floor: (launched.append(active), launch(active, floor))[1]
        )
        return found

    monkeypatch.setattr(ours, "slots", counted)
    assert [told(s) for s in ours.solve(PUZZLES)] == [told(s) for s in eager]
    assert launched[0] == 5 and launched[-1] == 1 and launched == sorted(launched, reverse=True)
    if loop == "while" and "verified" not in text:
        assert len(launched) < max(s.steps for s in eager), "one launch takes many steps"
        assert made[-1]._queue.limit == ours.policy.max_steps, "of 32 bits, whatever the batch size"
    assert machine.graphs


def small_model() -> RecursiveReasoner:
    torch.manual_seed(3)
    reasoner = RecursiveReasoner(config(puzzle_emb_ndim=16))
    torch.nn.init.normal_(reasoner.q_head.weight)
    return reasoner.requires_grad_(False)


@pytest.mark.parametrize("name", ["triton", "graph", "persistent", "auto"])
def test_every_executor_that_can_be_recorded_gives_the_bits_of_eager_steps(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    reasoner, paths = small_model(), ("persistent", "graph")
    built = {path: executors.EXECUTORS[path].build(reasoner) for path in (paths if name == "auto" else (name,))}
    chosen = executors.by_batch(*built.values(), most=1) if name == "auto" else built[name]

    def made(batch_size: int) -> Solver:
        policy = "q=0.55+settle=2"
        solver = Solver(reasoner, task=TASK, policy=policy, max_steps=4, batch_size=batch_size, batch_invariant=True)
        solver.executor = chosen
        return solver

    puzzles, wanted = ["1234", "7012", "5432"], made(2)
    monkeypatch.setattr(
        wanted, "slots", lambda observer, ahead: Slots(reasoner, *made(2).slots().recipe, impl="triton")
    )
    eager = [told(s) for s in wanted.solve(puzzles)]
    for order in ([0, 1, 2], [2, 0, 1]):
        assert [told(s) for s in on_graphs(made(2)).solve([puzzles[i] for i in order])] == [eager[i] for i in order]


class HostReads(TorchFunctionMode):
    """Counts what makes the host wait for the device, by name; what was copied to the host may be read there."""

    READS = ("cpu", "numpy", "tolist", "item", "__int__", "__bool__", "__float__", "__index__", "nonzero",
             "__contains__")  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.seen = Counter[str]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        here = any(getattr(t, "is_here", False) for t in given)
        masks = name in ("__getitem__", "__setitem__") and any(t.dtype == torch.bool for t in given[1:])
        if given and not here and (name in self.READS or masks):
            self.seen[name] += 1
        if name == "cpu" and not here:
            found, here = found.clone(), True  # on a real device it is another tensor
        for result in tree_leaves(found):
            if isinstance(result, Tensor) and here:
                result.is_here = True
        return found


@pytest.mark.parametrize("size", [2, 7])
def test_the_host_copies_as_often_for_many_samples_as_for_one(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    call = interpreter.GridExecutor.__call__

    def unseen(self: Any, *args: Any, **kwargs: Any) -> None:
        with torch._C.DisableTorchFunction():
            call(self, *args, **kwargs)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", unseen)
    for text in ("q", "verified"):
        solver = scripted(text, batch_size=size)
        slots = Slots(solver.model, *solver.slots().recipe, capture=CudaGraphs(CPU), impl="triton")
        waiting, found = [Sample(i, TASK.encode(p)) for i, p in enumerate(PUZZLES)], list[tuple[int, int]]()
        with HostReads() as reads:
            while waiting or slots.active:
                reads.seen.clear()
                new, waiting = waiting[: slots.free], waiting[slots.free :]
                slots.admit(new)
                assert not reads.seen, f"what enters needs no answer of the device: {reads.seen}"
                left = slots.step()
                found.append((reads.seen.total(), len(left)))
        assert sum(left for _, left in found) == len(PUZZLES) and max(left for _, left in found) > 1
        verifies = 2 if text == "verified" else 0  # a counter, and the answers that have changed
        assert {reads - bool(left) for reads, left in found} <= {1, 1 + verifies, max(1, verifies)}


def test_on_a_gpu_steps_are_captured_where_they_can_and_the_next_run_takes_the_same_graphs(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Slots] = []

    def slots(*args: Any, **options: Any) -> Slots:
        made.append(Slots(*args, **options, impl="triton"))
        return made[-1]

    monkeypatch.setattr(solver, "Slots", slots)
    ours, eager = scripted("q", batch_size=2), captured(scripted("q", batch_size=2))
    wanted = [told(s) for puzzles in (PUZZLES[:5], PUZZLES[3:9]) for s in eager.solve(puzzles)]
    made.clear()
    cuda = torch.device("cuda", 0)
    monkeypatch.setattr(RecursiveReasoner, "device", property(lambda self: cuda))
    with OnCpu():
        assert [told(s) for puzzles in (PUZZLES[:5], PUZZLES[3:9]) for s in ours.solve(puzzles)] == wanted
        first = ours.stream(PUZZLES[:5])
        next(first)  # these slots are in use
        assert len(ours.solve(PUZZLES[:2])) == 2
        assert len(made) == 2 and [index for index, _ in first] and len(machine.graphs) == 4
        ours.policy = solver.resolve_policy(ours.model, "settle=2", None)
        ours.solve(PUZZLES[:1])
        observed = ours.slots(lambda step: None)
    assert len(made) == 4 and all(slots.captured for slots in made[:3]) and observed is made[3]
    assert not made[3].captured, "an observer sees every step of every sample"


def test_the_first_use_on_another_stream_waits_until_the_buffers_are_filled(machine: Machine) -> None:
    solver, side = scripted("q", batch_size=2), Stream()
    slots = Slots(solver.model, *solver.slots().recipe, capture=CudaGraphs(CPU), impl="triton")
    machine.streams.append(side)
    slots.admit([Sample(0, TASK.encode("1000"))])
    assert any(type(waited).__name__ == "Event" for waited in side.waited)
