"""The branches for a CUDA device, run over a simulated one: capture, replay, streams, both loops, training."""

from __future__ import annotations

import logging
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rtm_kernels import program as programs
from rtm_kernels.engine.executor import by_triton
from rtm_kernels.errors import InputError
from rtm_kernels.ops.adam_atan2.api import AdamATan2
from rtm_kernels.program import INPUT
from rtm_kernels.recursion import reference
from rtm_kernels.recursion.graph import CudaGraphs, GraphRunner, Tensors
from rtm_kernels.recursion.persistent.runner import PersistentExecutor
from rtm_kernels.recursion.train_graph import TrainGraph
from tests.recursion.simulated_cuda import Machine, Stream, simulate
from tests.recursion.support import bits, random_state, small_stacks

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real device")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return simulate(monkeypatch)


PROGRAM = programs.trm(1, 1)


def inputs_of(batch: int) -> Tensors:
    latents, x = random_state(PROGRAM, batch, 9, 24)
    return {**latents, INPUT: x}


def test_the_simulation_replays_over_the_same_memory_and_forbids_waiting(machine: Machine) -> None:
    x, total = torch.ones(3), torch.zeros(3)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = x * 2 + 1
        total += y
    x.fill_(5)
    graph.replay()
    assert y.tolist() == [11.0] * 3 and total.tolist() == [14.0] * 3
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"), torch.cuda.graph(graph):
        x.sum().item()
    with pytest.raises(RuntimeError, match="not permitted"), torch.cuda.graph(graph):
        torch.cuda.synchronize()


@pytest.mark.parametrize("inference", [False, True])
def test_the_graph_runner_captures_warms_up_and_replays(
    machine: Machine, inference: bool, caplog: pytest.LogCaptureFixture
) -> None:
    stacks = by_triton(small_stacks(PROGRAM.stacks, 9, 24))

    @torch.no_grad()
    def step(inputs: Tensors) -> Tensors:
        return reference.run(PROGRAM, inputs, inputs[INPUT], stacks)

    runner, side = GraphRunner(step, max_batch=2), Stream()
    with caplog.at_level(logging.INFO), torch.inference_mode(inference), torch.no_grad():
        for batch, stream in ((1, None), (2, side), (1, side)):
            inputs = {name: t + batch for name, t in inputs_of(batch).items()}
            if stream is not None:
                machine.streams.append(stream)
            assert bits(runner(inputs)) == bits(step(inputs))
    assert [g.replays for g in machine.graphs.values()] == [1, 2] and list(runner._captured) == [2, 1]
    assert any(type(waited).__name__ == "Event" for waited in side.waited), "calls on other streams are ordered"
    assert "3 MiB reserved on the device" in caplog.text


def test_the_persistent_launch_is_captured_with_its_loads(machine: Machine) -> None:
    head = torch.randn(2, 24), torch.zeros(2)
    executor, inputs = PersistentExecutor(PROGRAM, small_stacks(PROGRAM.stacks, 9, 24), head=head), inputs_of(3)

    def step(given: Tensors) -> Tensors:
        launched = executor.run({name: given[name] for name in PROGRAM.carried}, given[INPUT])
        return {**launched.latents, "q": launched.q, "change": launched.change}

    static = {name: t.clone() for name, t in inputs.items()}
    graphs = CudaGraphs(torch.device("cpu"))
    with graphs.exclusive():
        replay, outputs = graphs.capture(lambda: step(static))
    for name, t in static.items():
        t.copy_(2 * inputs[name])
    replay()
    assert bits(outputs) == bits(step({name: 2 * t for name, t in inputs.items()}))


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_an_adam_step_is_captured_and_its_gradients_must_stay_in_place(machine: Machine, impl: str) -> None:
    ours, theirs = ([torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2, 2))] for _ in range(2))
    for p in (*ours, *theirs):
        p.grad = torch.full_like(p, 0.5)
    rate = torch.tensor(1e-2, dtype=torch.float64)
    optimizer, other = (AdamATan2(p, lr=rate, weight_decay=0.1, impl=impl) for p in (ours, theirs))
    for steps in (optimizer, other):
        steps.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    graph.replay()
    for _ in range(2):
        other.step()
    assert bits(dict(enumerate(ours))) == bits(dict(enumerate(theirs)))
    if impl == "triton":
        ours[0].grad = torch.ones(3)
        with (
            pytest.raises(InputError, match=r"p\.grad='a tensor that moved'"),
            torch.cuda.graph(torch.cuda.CUDAGraph()),
        ):
            optimizer.step()


def test_a_training_step_adds_gradients_as_backward_does_and_must_not_wait(machine: Machine) -> None:
    """That captured training has the bits of eager steps is in tests/train/test_captured."""
    ours, theirs = (nn.Linear(4, 3) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())

    def loss(layer: nn.Module, given: Tensors) -> tuple[Tensor, Tensors]:
        y = functional.dropout(layer(given["x"]), 0.5)
        return y.square().sum(), {"y": y}

    graph = TrainGraph(partial(loss, ours), ours.parameters(), sizes=(2, 4))
    for size in (4, 2, 4):
        inputs = {"x": torch.randn(size, 4)}
        state = torch.get_rng_state()
        results = graph(inputs)
        torch.set_rng_state(state)
        value, wanted = loss(theirs, inputs)
        value.backward()
        assert torch.equal(results["loss"], value) and torch.equal(results["y"], wanted["y"])
        for mine, right in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(mine.grad, right.grad)
    assert len(machine.graphs) == 2
    waiting = TrainGraph(
        lambda given: (ours(given["x"]).sum() * given["x"].sum().item(), {}), ours.parameters(), sizes=(2,)
    )
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        waiting({"x": torch.randn(2, 4)})
