"""Slots on a simulated CUDA device: captured steps, both loops, every executor, and what the host copies."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from rtm_kernels.engine import Rollouts, Solver, device_slots, solver
from rtm_kernels.engine import executor as executors
from rtm_kernels.engine.device_slots import DeviceSlots
from rtm_kernels.engine.slots import Sample, Slots
from rtm_kernels.model import RecursiveReasoner
from rtm_kernels.recursion.graph import CudaGraphs
from tests.engine.fakes import TASK, ScriptedExecutor, config, model
from tests.engine.test_device_slots import PUZZLES, on_device, scripted, told
from tests.recursion.simulated_cuda import Machine, simulate

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real device")

CPU = torch.device("cpu")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return simulate(monkeypatch)


@pytest.mark.parametrize("text", ["q+settle=3", "cumulative", "verified+q"])
def test_both_loops_replay_what_the_host_does(machine: Machine, text: str) -> None:
    host = scripted(text, batch_size=5).solve(PUZZLES)
    for loop in ("poll", "while") if "verified" not in text else ("poll",):
        made: list[DeviceSlots] = []
        placed = on_device(scripted(text, batch_size=5), made, capture=CudaGraphs(CPU), impl="triton", loop=loop)
        assert [told(s) for s in placed.solve(PUZZLES)] == [told(s) for s in host]
        taken = made[0].buckets_taken
        assert taken == sorted(taken, reverse=True) and taken[-1] == 1
        assert loop == "poll" or len(taken) < max(s.steps for s in host), "one launch takes many steps"


def small_model() -> RecursiveReasoner:
    torch.manual_seed(3)
    reasoner = RecursiveReasoner(config(puzzle_emb_ndim=16))
    torch.nn.init.normal_(reasoner.q_head.weight)
    return reasoner.requires_grad_(False)


@pytest.mark.parametrize("name", ["triton", "graph", "persistent", "auto"])
def test_every_executor_that_can_be_recorded_gives_the_bits_of_the_host_and_of_solving_alone(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(executors, "family", lambda: "hopper")
    reasoner, paths = small_model(), ("persistent", "graph")
    built = {path: executors.EXECUTORS[path].build(reasoner) for path in (paths if name == "auto" else (name,))}

    def made(batch_size: int) -> Solver:
        policy = "q=0.55+settle=2"
        solver = Solver(reasoner, task=TASK, policy=policy, max_steps=4, batch_size=batch_size, batch_invariant=True)
        solver.executor = executors.ByBatch(built) if name == "auto" else built[name]
        return solver

    puzzles = ["1234", "7012", "5432"]
    host = [told(s) for s in made(2).solve(puzzles)]
    for order in ([0, 1, 2], [2, 0, 1]):
        placed = on_device(made(2), capture=CudaGraphs(CPU), impl="triton", loop="while" if order[0] else "poll")
        assert [told(s) for s in placed.solve([puzzles[i] for i in order])] == [host[i] for i in order]
    alone = on_device(made(2), capture=CudaGraphs(CPU), impl="triton")
    assert [told(s) for p in puzzles[:1] for s in alone.solve([p])] == host[:1]


class HostReads(TorchFunctionMode):
    """Counts what makes the host wait for the device, by name; what was copied to the host may be read there."""

    READS = (
        "cpu",
        "numpy",
        "tolist",
        "item",
        "__int__",
        "__bool__",
        "__float__",
        "__index__",
        "nonzero",
        "__contains__",
    )

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


def reads_of(slots: Slots, samples: list[Sample], monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(copies to the host, samples that left) of every step, samples entering as slots become free."""
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    call, waiting, found = interpreter.GridExecutor.__call__, list(samples), []

    def unseen(self: Any, *args: Any, **kwargs: Any) -> None:
        with torch._C.DisableTorchFunction():
            call(self, *args, **kwargs)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", unseen)
    with HostReads() as reads:
        while waiting or slots.active:
            reads.seen.clear()
            new, waiting = waiting[: slots.free], waiting[slots.free :]
            slots.admit(new)
            assert not reads.seen, f"what enters needs no answer of the device: {reads.seen}"
            left = slots.step()
            found.append((reads.seen.total(), len(left)))
    monkeypatch.setattr(interpreter.GridExecutor, "__call__", call)
    return found


@pytest.mark.parametrize("size", [2, 7])
def test_the_host_copies_as_often_for_many_samples_as_for_one(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    samples = [Sample(i, TASK.encode(p)) for i, p in enumerate(PUZZLES)]
    for text in ("q", "verified"):
        solver = scripted(text, batch_size=size)
        common = solver.model, solver.executor, solver.policy, TASK.verify_tokens, size
        slots = DeviceSlots(*common, capture=CudaGraphs(CPU), impl="triton")
        counted = reads_of(slots, samples, monkeypatch)
        assert sum(left for _, left in counted) == len(samples) and max(left for _, left in counted) > 1
        verifies = 2 if text == "verified" else 0  # a counter, and the answers that have changed
        assert {reads - bool(left) for reads, left in counted} <= {1, 1 + verifies, max(1, verifies)}


def test_the_counter_sees_reads(machine: Machine) -> None:
    with HostReads() as reads:
        x = torch.arange(3)
        copied = x.cpu() + 0
        assert copied.tolist() == [0, 1, 2] and int(x[1]) == 1 and x[x > 1].shape == (1,)
    assert reads.seen == {"cpu": 1, "__int__": 1, "__getitem__": 1}


def test_the_solver_takes_the_device_and_the_loop_that_it_can(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[object, ...]] = []

    def slots(*args: Any, **options: Any) -> None:
        asked.append((options["ahead"], options["loop"]))

    monkeypatch.setattr(RecursiveReasoner, "device", property(lambda self: torch.device("cuda", 0)))
    monkeypatch.setattr(solver, "DeviceSlots", slots)
    made = Solver(model(), task=TASK, policy="q", batch_size=4, executor="reference")
    assert made.why_host() == "the executor reference cannot be recorded as a graph"
    made.executor = ScriptedExecutor(made.model)
    assert made.why_host() is None and device_slots.why_not(made.model, made.executor) is None
    for policy, ahead in itertools.product(("q", "verified"), (True, False)):
        made.policy = solver.resolve_policy(made.model, policy, None)
        made.slots(ahead=ahead)
    made.rollouts = Rollouts(4, noise=0.0)
    made.slots(ahead=True)
    assert asked == [(4, "while"), (0, "poll"), (4, "poll"), (0, "poll"), (0, "poll")]


def test_the_next_run_takes_the_slots_whose_graphs_are_recorded(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[DeviceSlots] = []

    class Slots(DeviceSlots):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, capture=CudaGraphs(CPU), impl="triton", **options)
            made.append(self)

    monkeypatch.setattr(solver, "DeviceSlots", Slots)
    monkeypatch.setattr(device_slots, "why_not", lambda *_: None)
    ours, host = scripted("q", batch_size=2), scripted("q", batch_size=2, halting="host")
    for puzzles in (PUZZLES[:5], PUZZLES[3:9]):
        for each in (ours, host):
            each.model.get_buffer("H_init").fill_(float(len(puzzles) - 5))  # weights are read where they lie
        assert [told(s) for s in ours.solve(puzzles)] == [told(s) for s in host.solve(puzzles)]
    first = ours.stream(PUZZLES[:5])
    next(first)  # these slots are in use
    assert len(ours.solve(PUZZLES[:2])) == 2
    assert len(made) == 2 and [index for index, _ in first] and len(machine.graphs) == 4
    ours.policy = solver.resolve_policy(ours.model, "settle=2", None)
    ours.solve(PUZZLES[:1])
    assert len(made) == 3
