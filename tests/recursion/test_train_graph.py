"""Training through static buffers: replays give the bits of eager steps, and a capture leaves no trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rtm_kernels.errors import BackendUnavailable, InputError
from rtm_kernels.model import Carry, RecursiveReasoner
from rtm_kernels.ops.adam_atan2.api import AdamATan2
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


def adamw(model: RecursiveReasoner, **options: Any) -> torch.optim.Optimizer:
    rate = torch.tensor(1e-2, device=model.device)
    return torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.1, foreach=False, **options)


def atan2(model: RecursiveReasoner, **options: Any) -> torch.optim.Optimizer:
    rate = torch.tensor(1e-2, dtype=torch.float64, device=model.device)
    return AdamATan2(model.parameters(), lr=rate, weight_decay=0.1, **options)


@pytest.mark.parametrize("make_optimizer", [adamw, atan2])
def test_the_optimiser_inside_gives_the_bits_of_eager_steps(make_optimizer: Callable[..., Any]) -> None:
    ours, theirs = model_of(), model_of()
    optimizer = make_optimizer(ours)
    recorder = Recorder()
    graph = TrainGraph(loss_of(ours), ours.parameters(), [optimizer], sizes=(SIZE,), capture=recorder)
    losses = train(ours, graph)
    assert losses == train(theirs, eager(theirs, make_optimizer(theirs)))
    assert bits(dict(ours.named_parameters())) == bits(dict(theirs.named_parameters()))
    assert recorder.runs == 3 and graph.captured == (SIZE,)
    assert all(p.grad is None for p in ours.parameters())
    assert {int(state["step"]) for state in optimizer.state.values()} == {3}


def test_the_schedule_fills_the_rate() -> None:
    ours, theirs = model_of(), model_of()
    ours_rate, theirs_optimizer = adamw(ours), adamw(theirs)
    graph = TrainGraph(loss_of(ours), ours.parameters(), [ours_rate], sizes=(SIZE,), capture=Recorder())

    def scheduled(step: Callable[[Tensors], Tensors], optimizer: torch.optim.Optimizer) -> Callable[[Tensors], Tensors]:
        def run(batch: Tensors) -> Tensors:
            results = step(batch)
            optimizer.param_groups[0]["lr"].mul_(0.5)
            return results

        return run

    train(ours, scheduled(graph, ours_rate))
    train(theirs, scheduled(eager(theirs, theirs_optimizer), theirs_optimizer))
    assert bits(dict(ours.named_parameters())) == bits(dict(theirs.named_parameters()))


def test_without_an_optimiser_gradients_are_added_as_backward_does() -> None:
    ours, theirs = model_of(), model_of()
    optimizer = AdamATan2(ours.parameters(), lr=1e-2, impl="reference")
    graph = TrainGraph(loss_of(ours), ours.parameters(), sizes=(2, SIZE), capture=Recorder())

    def step(batch: Tensors) -> Tensors:
        optimizer.zero_grad()
        results = graph(batch)
        optimizer.step()
        return results

    losses = train(ours, step)
    assert losses == train(theirs, eager(theirs, AdamATan2(theirs.parameters(), lr=1e-2, impl="reference")))
    assert bits(dict(ours.named_parameters())) == bits(dict(theirs.named_parameters()))
    optimizer.zero_grad()
    for _ in range(2):
        graph(fresh(ours, 9, 2))
        loss_of(ours)(fresh(ours, 9, 2))
    once = torch.autograd.grad(loss_of(ours)(fresh(ours, 9, 2))[0], list(ours.parameters()))
    for parameter, gradient in zip(ours.parameters(), once, strict=True):
        torch.testing.assert_close(parameter.grad, 2 * gradient)
    assert graph.captured == (SIZE, 2)


def test_an_optimiser_with_state_keeps_it() -> None:
    ours, theirs = model_of(), model_of()
    optimizer, other = adamw(ours), adamw(theirs)
    train(ours, eager(ours, optimizer), 1)
    train(theirs, eager(theirs, other), 1)
    graph = TrainGraph(loss_of(ours), ours.parameters(), [optimizer], sizes=(SIZE,), capture=Recorder())
    train(ours, graph)
    train(theirs, eager(theirs, other))
    assert bits(dict(ours.named_parameters())) == bits(dict(theirs.named_parameters()))


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


def test_another_size_is_refused() -> None:
    model = model_of()
    graph = TrainGraph(loss_of(model), model.parameters(), sizes=(SIZE,), capture=Recorder())
    with pytest.raises(InputError, match=r"batch=3 is not allowed: one of \(4,\)"):
        graph(fresh(model, 0, 3))


class OnGpu(torch.nn.Parameter):
    """A parameter that says it is on a GPU."""

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True


def test_an_optimiser_that_cannot_be_captured_is_refused() -> None:
    parameter = OnGpu(torch.zeros(2))
    with pytest.raises(InputError, match="capturable of SGD=None is not allowed: True, or step it after"):
        TrainGraph(lambda t: (t["x"].sum(), {}), [parameter], [torch.optim.SGD([parameter])], sizes=(1,))
    with pytest.raises(InputError, match=r"lr of AdamATan2=0\.0001 is not allowed: a tensor on the device"):
        TrainGraph(lambda t: (t["x"].sum(), {}), [parameter], [AdamATan2([parameter])], sizes=(1,))
    frozen = torch.optim.AdamW([parameter], lr=1e-3, capturable=True)
    with pytest.raises(InputError, match=r"lr of AdamW=0\.001 is not allowed: a tensor on the device"):
        TrainGraph(lambda t: (t["x"].sum(), {}), [parameter], [frozen], sizes=(1,))


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing without a GPU")
def test_without_a_gpu_the_reason_is_given() -> None:
    model = model_of()
    with pytest.raises(BackendUnavailable, match="no CUDA device is available"):
        TrainGraph(loss_of(model), model.parameters(), sizes=(SIZE,))(fresh(model, 0))


def capturable_adamw(model: RecursiveReasoner, **options: Any) -> torch.optim.Optimizer:
    return adamw(model, capturable=True)


@pytest.mark.gpu
@pytest.mark.parametrize("make_optimizer", [capturable_adamw, atan2])
@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_replays_on_a_gpu_have_the_bits_of_eager_steps(impl: str, make_optimizer: Callable[..., Any]) -> None:
    ours, theirs = model_of("cuda", impl), model_of("cuda", impl)
    graph = TrainGraph(loss_of(ours), ours.parameters(), [make_optimizer(ours, impl=impl)], sizes=(SIZE,))
    losses = train(ours, graph, 20)
    assert losses == train(theirs, eager(theirs, make_optimizer(theirs, impl=impl)), 20)
    assert bits(dict(ours.named_parameters())) == bits(dict(theirs.named_parameters()))
