"""Training through static buffers: replays give the bits of eager steps, and a capture leaves no trace."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rtm_kernels.model import Carry, RecursiveReasoner
from rtm_kernels.recursion.graph import Tensors
from rtm_kernels.recursion.train_graph import Loss, TrainGraph
from tests.recursion.support import Recorder, bits
from tests.small_models import batch_of, make

SIZE = 4


def loss_of(model: RecursiveReasoner) -> Loss:
    """An ACT step of deep supervision from a carry that comes in as batch tensors and goes out as results."""

    def loss(batch: Tensors) -> tuple[Tensor, Tensors]:
        data = {name: batch[name] for name in ("inputs", "puzzle_identifiers")}
        carry = Carry({n: batch[n] for n in model.program.carried}, batch["steps"], batch["halted"], data)
        new, outputs = model(carry, data)
        labels = (data["inputs"] + 1) % 7
        total = F.cross_entropy(outputs["logits"].flatten(0, 1).float(), labels.flatten().long())
        total = total + outputs["q_halt_logits"].sigmoid().mean()
        return total, {**new.latents, "steps": new.steps, "halted": new.halted}

    return loss


def fresh(model: RecursiveReasoner, seed: int, size: int = SIZE) -> Tensors:
    batch = {name: t.to(model.device) for name, t in batch_of(size, seed).items()}
    carry = model.initial_carry(batch)
    return {**batch, **{n: t.clone() for n, t in carry.latents.items()}, "steps": carry.steps, "halted": carry.halted}


def train(model: RecursiveReasoner, step: Callable[[Tensors], Tensors], steps: int = 3) -> list[Tensor]:
    """Losses of `steps` optimiser steps over one carry, with exploration drawn anew in each."""
    torch.manual_seed(5)
    carry: Tensors = {}
    losses = []
    for seed in range(steps):
        results = step({**fresh(model, seed), **carry})
        losses.append(results.pop("loss").clone())
        carry = results
    return losses


def model_of(device: str = "cpu", impl: str = "reference") -> RecursiveReasoner:
    model = make("trm", halt_exploration_prob=0.5, puzzle_emb_ndim=0).train()
    for block in model.modules():
        if hasattr(block, "impl"):
            block.impl = impl
    return model.to(device)


def eager(model: RecursiveReasoner, optimizer: torch.optim.Optimizer) -> Callable[[Tensors], Tensors]:
    loss = loss_of(model)

    def step(batch: Tensors) -> Tensors:
        value, results = loss(batch)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        return {"loss": value.detach(), **results}

    return step


def sgd(model: RecursiveReasoner) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def stepping(graph: TrainGraph, optimizer: torch.optim.Optimizer) -> Callable[[Tensors], Tensors]:
    def step(batch: Tensors) -> Tensors:
        optimizer.zero_grad()
        results = graph(batch)
        optimizer.step()
        return results

    return step


def test_gradients_are_added_as_backward_does() -> None:
    ours, theirs = model_of(), model_of()
    recorder, optimizer = Recorder(), sgd(ours)
    graph = TrainGraph(loss_of(ours), ours.parameters(), sizes=(2, SIZE), capture=recorder)
    losses = train(ours, stepping(graph, optimizer))
    assert losses == train(theirs, eager(theirs, sgd(theirs))) and recorder.runs == 3
    assert bits(dict(ours.named_parameters())) == bits(dict(theirs.named_parameters()))
    optimizer.zero_grad()
    for _ in range(2):
        graph(fresh(ours, 9, 2))
        loss_of(ours)(fresh(ours, 9, 2))
    once = torch.autograd.grad(loss_of(ours)(fresh(ours, 9, 2))[0], list(ours.parameters()))
    for parameter, gradient in zip(ours.parameters(), once, strict=True):
        torch.testing.assert_close(parameter.grad, 2 * gradient)
    assert graph.captured == (SIZE, 2)


def test_gradients_of_rows_that_the_loss_has_made_are_results() -> None:
    model = make("trm", halt_exploration_prob=0.0).train()
    rows = model.puzzle_emb

    def loss(batch: Tensors) -> tuple[Tensor, Tensors]:
        value, results = loss_of(model)(batch)
        return value, {**results, "ids": rows.local_ids}

    sizes, leaves = (SIZE,), lambda: [rows.local_weights]
    graph = TrainGraph(loss, model.parameters(), sizes=sizes, leaves=leaves, capture=Recorder())
    batch = fresh(model, 3)
    results = graph(batch)
    value, _ = loss_of(model)(batch)
    value.backward()
    assert torch.equal(results["leaf gradient 0"], rows.local_weights.grad)
    assert torch.equal(results["ids"], batch["puzzle_identifiers"])


@pytest.mark.gpu
@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_replays_on_a_gpu_have_the_bits_of_eager_steps(impl: str) -> None:
    ours, theirs = model_of("cuda", impl), model_of("cuda", impl)
    graph = TrainGraph(loss_of(ours), ours.parameters(), sizes=(SIZE,))
    losses = train(ours, stepping(graph, sgd(ours)), 20)
    assert losses == train(theirs, eager(theirs, sgd(theirs)), 20)
    assert bits(dict(ours.named_parameters())) == bits(dict(theirs.named_parameters()))
