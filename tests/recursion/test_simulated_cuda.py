"""The branches for a CUDA device, run over a simulated one: capture, replay, streams, both loops, training."""

from __future__ import annotations

import logging

import pytest
import torch

from rtm_kernels import program as programs
from rtm_kernels.engine.executor import by_triton
from rtm_kernels.errors import InputError
from rtm_kernels.ops.adam_atan2.api import AdamATan2
from rtm_kernels.program import INPUT
from rtm_kernels.recursion import reference
from rtm_kernels.recursion.graph import GraphRunner, Tensors
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
