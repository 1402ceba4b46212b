"""The branches for a CUDA device, run over a simulated one: capture, replay, streams, both loops, training."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor

from rtm_kernels import program as programs
from rtm_kernels.errors import InputError
from rtm_kernels.ops.adam_atan2.api import AdamATan2
from rtm_kernels.program import INPUT
from rtm_kernels.recursion import fused, graph, reference
from rtm_kernels.recursion.graph import CudaGraphs, GraphRunner, Tensors
from rtm_kernels.recursion.persistent.executor import PersistentExecutor
from rtm_kernels.recursion.train_graph import TrainGraph
from tests.recursion import test_train_graph
from tests.recursion.simulated_cuda import Machine, Stream, simulate
from tests.recursion.support import ODD, bits, random_state, small_stacks

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
    stacks = fused.stacks_of(small_stacks(PROGRAM.stacks, 9, 24))

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
    assert [g.replays for g in machine.graphs.values()] == [1, 2] and runner.captured == (2, 1)
    assert any(type(waited).__name__ == "Event" for waited in side.waited), "calls on other streams are ordered"
    assert "3 MiB reserved on the device" in caplog.text


def test_a_graph_of_every_prefix_of_a_new_program_has_the_bits_of_its_launches(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph, "WARM_UPS", 1)
    stacks = fused.stacks_of(small_stacks(ODD.stacks, 9, 24))
    latents, x = random_state(ODD, 2, 9, 24)
    for n in range(len(ODD) + 1):

        @torch.no_grad()
        def step(inputs: Tensors, n: int = n) -> Tensors:
            carried = {name: t for name, t in inputs.items() if name != INPUT}
            return {name: t.clone() for name, t in reference.run(ODD[:n], carried, inputs[INPUT], stacks).items()}

        inputs = {**latents, INPUT: x}
        runner = GraphRunner(step, max_batch=2, buckets=(2,))
        assert bits(runner(inputs)) == bits(step(inputs)), f"after {n} steps"


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


def test_training_steps_are_captured_with_their_random_numbers(machine: Machine) -> None:
    ours, theirs = test_train_graph.model_of(), test_train_graph.model_of()
    graph = TrainGraph(test_train_graph.loss_of(ours), ours.parameters(), sizes=(test_train_graph.SIZE,))
    losses = test_train_graph.train(ours, test_train_graph.stepping(graph, test_train_graph.sgd(ours)))
    assert losses == test_train_graph.train(theirs, test_train_graph.eager(theirs, test_train_graph.sgd(theirs)))
    assert bits(dict(ours.named_parameters())) == bits(dict(theirs.named_parameters()))


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


def test_a_step_that_waits_is_stopped_by_the_capture(machine: Machine) -> None:
    model = test_train_graph.model_of()

    def loss(batch: Tensors) -> tuple[Tensor, Tensors]:
        value, results = test_train_graph.loss_of(model)(batch)
        return value * value.item(), results

    graph = TrainGraph(loss, model.parameters(), sizes=(test_train_graph.SIZE,))
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        graph(test_train_graph.fresh(model, 0))
