"""The branches for a CUDA device, run over a simulated one: capture, replay, streams, both loops, training."""

from __future__ import annotations

import importlib
import logging

import pytest
import torch
from rtm_kernels.recursion.act_graph import ActGraph

from rtm_kernels import program as programs
from rtm_kernels.errors import InputError
from rtm_kernels.program import INPUT
from rtm_kernels.recursion import conditional, fused, reference
from rtm_kernels.recursion.graph import CudaGraphs, GraphRunner, Tensors
from rtm_kernels.recursion.persistent.executor import PersistentExecutor
from rtm_kernels.recursion.train_graph import TrainGraph
from tests.recursion import test_queue, test_train_graph
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


def test_a_graph_of_every_prefix_of_a_new_program_has_the_bits_of_its_launches(machine: Machine) -> None:
    stacks = fused.stacks_of(small_stacks(ODD.stacks, 9, 24))
    latents, x = random_state(ODD, 2, 9, 24)
    for n in range(len(ODD) + 1):

        @torch.no_grad()
        def step(inputs: Tensors, n: int = n) -> Tensors:
            carried = {name: t for name, t in inputs.items() if name != INPUT}
            return {name: t.clone() for name, t in reference.run(ODD[:n], carried, inputs[INPUT], stacks).items()}

        runner = GraphRunner(step, max_batch=2, buckets=(2,))
        for scale in (1.0, 2.0):
            inputs = {name: scale * t for name, t in {**latents, INPUT: x}.items()}
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


@pytest.mark.parametrize("policy", ["q", "settle"])
def test_both_loops_of_a_fixed_batch_agree(machine: Machine, policy: str) -> None:
    assert conditional.why_not() is None
    program = programs.rtm(1)
    stacks, head = small_stacks(program.stacks, 9, 24), test_queue.make_head(policy)
    latents, x = random_state(program, 4, 9, 24)
    found = []
    for loop in ("poll", "while"):
        graph = ActGraph(program, stacks, head, latents, x, loop=loop)
        for _ in range(2):
            graph.load(latents, x)
            taken = graph.run()
        found.append((taken, bits(graph.latents), bits({"steps": graph.state.steps, "logits": graph.logits})))
    assert found[0] == found[1] and found[0][0] > 1


def test_both_loops_of_the_queue_agree_while_it_shrinks(machine: Machine) -> None:
    head, stacks = test_queue.make_head("q"), small_stacks(test_queue.PROGRAM.stacks, 9, 24)
    initial, x = test_queue.samples(5)
    found = []
    for loop in ("poll", "while"):
        halting = test_queue.Halting(
            stacks, head, initial, slots=4, capacity=5, buckets=(1, 2, 4), loop=loop, impl="triton"
        )
        taken = halting.queue.taken
        runs = []
        for _ in range(2):
            taken.clear()
            runs.append(test_queue.halted_bits(halting.run(x)))
        assert runs[0] == runs[1] and taken[0] == 4 and taken[-1] == 1
        assert loop == "poll" or len(taken) == len(set(taken)), "one launch per bucket"
        found.append(runs[0])
    assert found[0] == found[1]


def test_the_exchange_by_pytorch_counts_on_the_host_and_is_stopped_by_the_capture(machine: Machine) -> None:
    initial, x = test_queue.samples(2)
    stacks = small_stacks(test_queue.PROGRAM.stacks, 9, 24)
    halting = test_queue.Halting(
        stacks, test_queue.make_head("q"), initial, slots=1, capacity=2, buckets=(1,), impl="reference"
    )
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        halting.run(x)


def test_training_steps_are_captured_with_their_optimiser_and_random_numbers(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    adam = importlib.import_module("torch.optim.adam")
    monkeypatch.setattr(adam, "_get_capturable_supported_devices", lambda *_: ["cpu"])
    ours, theirs = test_train_graph.model_of(), test_train_graph.model_of()
    optimizers = [test_train_graph.adamw(model, capturable=True) for model in (ours, theirs)]
    sizes = (test_train_graph.SIZE,)
    graph = TrainGraph(test_train_graph.loss_of(ours), ours.parameters(), optimizers[:1], sizes=sizes)
    losses = test_train_graph.train(ours, graph)
    assert losses == test_train_graph.train(theirs, test_train_graph.eager(theirs, optimizers[1]))
    assert bits(dict(ours.named_parameters())) == bits(dict(theirs.named_parameters()))


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_adam_atan2_is_captured_and_its_gradients_must_stay_in_place(machine: Machine, impl: str) -> None:
    ours, theirs = test_train_graph.model_of(), test_train_graph.model_of()
    optimizers = [test_train_graph.atan2(model, impl=impl) for model in (ours, theirs)]
    sizes = (test_train_graph.SIZE,)
    graph = TrainGraph(test_train_graph.loss_of(ours), ours.parameters(), optimizers[:1], sizes=sizes)
    losses = test_train_graph.train(ours, graph, 2)
    assert losses == test_train_graph.train(theirs, test_train_graph.eager(theirs, optimizers[1]), 2)
    assert bits(dict(ours.named_parameters())) == bits(dict(theirs.named_parameters()))
    if impl == "triton":
        for parameter in ours.parameters():
            parameter.grad = torch.ones_like(parameter)
        with (
            pytest.raises(InputError, match=r"p\.grad='a tensor that moved'"),
            torch.cuda.graph(torch.cuda.CUDAGraph()),
        ):
            optimizers[0].step()


def test_an_optimiser_that_waits_is_stopped_by_the_capture(machine: Machine) -> None:
    model = test_train_graph.model_of()
    optimizer = test_train_graph.adamw(model)
    graph = TrainGraph(test_train_graph.loss_of(model), model.parameters(), [optimizer], sizes=(test_train_graph.SIZE,))
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        test_train_graph.train(model, graph)
