"""Loss heads: sums, metrics and gradients against formulas written out here, and with the kernel of the loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rtm_kernels import program
from rtm_kernels.errors import InputError
from rtm_kernels.impl import launches
from rtm_kernels.losses import CumulativeHead, RoundsHead, official_loss_head
from rtm_kernels.model import RecursiveReasoner
from rtm_kernels.ops.token_loss.api import LOSSES, token_loss
from rtm_kernels.ops.token_loss.reference import stablemax_cross_entropy
from tests import small_models
from tests.small_models import make

IGNORE = -100
EPS = torch.finfo(torch.float32).eps


def batch_of(size: int = 5) -> dict[str, Tensor]:
    """A batch in which some positions, and one whole sample, have no label."""
    labels = torch.randint(1, 7, (size, 6), generator=torch.Generator().manual_seed(0))
    labels[:, :2] = IGNORE
    labels[1:2] = IGNORE if size > 1 else labels[1:2]
    return small_models.batch_of(size) | {"labels": labels}


@pytest.mark.parametrize("loss_type", LOSSES)
def test_loss_and_metrics_of_a_hand_worked_step(loss_type: str) -> None:
    model = make()
    batch = batch_of()
    with torch.no_grad():  # two samples answer correctly
        _, outputs = model.eval()(model.initial_carry(batch), batch)
        model.q_head.bias[0] += 0.1 - outputs["q_halt_logits"][3]  # one of them halts
        answers = outputs["logits"].argmax(-1)
        batch["labels"][3:] = torch.where(batch["labels"][3:] == IGNORE, IGNORE, answers[3:])
    head = official_loss_head(model, loss_type).train()
    keys = ["logits", "preds", "q_halt_logits", "absent"]
    carry, loss, metrics, kept, all_halted = head(keys, carry=head.initial_carry(batch), batch=batch)

    logits, labels, q = kept["logits"].double(), batch["labels"], kept["q_halt_logits"]
    expected, q_loss, accuracy, exact, q_right, steps, count = 0.0, 0.0, 0.0, 0, 0, 0, 0
    for b in range(5):
        places = [i for i in range(6) if labels[b, i] != IGNORE]
        if loss_type.startswith("stablemax"):
            losses = [stablemax_cross_entropy(logits[b, i], labels[b, i]).item() for i in places]
        else:
            losses = [F.cross_entropy(logits[b, i], labels[b, i]).item() for i in places]
        right = [bool(logits[b, i].argmax() == labels[b, i]) for i in places]
        expected += sum(losses) / max(len(places), 1)
        q_loss += F.binary_cross_entropy_with_logits(q[b], torch.tensor(float(all(right)))).item()
        if carry.halted[b] and places:
            count, steps, exact = count + 1, steps + 1, exact + all(right)
            accuracy += sum(right) / len(places)
            q_right += bool(q[b] >= 0) == all(right)
    assert metrics.keys() == {
        "count", "accuracy", "exact_accuracy", "q_halt_accuracy", "steps", "lm_loss", "q_halt_loss",
    }  # fmt: skip
    assert all(key.startswith("model.") for key in head.state_dict())  # as officially
    assert (metrics["count"], metrics["exact_accuracy"], metrics["q_halt_accuracy"]) == (count, exact, q_right)
    assert metrics["steps"] == steps and exact > 0
    torch.testing.assert_close(metrics["accuracy"].item(), accuracy)
    torch.testing.assert_close(metrics["lm_loss"].item(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(metrics["q_halt_loss"].item(), q_loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(loss.item(), expected + 0.5 * q_loss, rtol=1e-6, atol=0)
    assert kept.keys() == {"logits", "preds", "q_halt_logits"}
    assert not any(value.requires_grad for value in kept.values())
    assert torch.equal(kept["preds"], kept["logits"].argmax(-1)) and all_halted == carry.halted.all()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_q_continue_target_is_trained_on() -> None:
    head, batch = official_loss_head(make("hrm")).train(), batch_of()
    keys = ["q_continue_logits", "target_q_continue"]
    _, loss, metrics, kept, _ = head(keys, carry=head.initial_carry(batch), batch=batch)
    expected = F.binary_cross_entropy_with_logits(*(kept[key] for key in keys), reduction="sum")
    assert torch.equal(metrics["q_continue_loss"], expected)
    total = metrics["lm_loss"] + 0.5 * (metrics["q_halt_loss"] + metrics["q_continue_loss"])
    assert torch.equal(loss.detach(), total)
    assert ((kept["target_q_continue"] > 0) & (kept["target_q_continue"] < 1)).all()
    _, _, metrics, kept, _ = head.eval()(keys, carry=head.initial_carry(batch), batch=batch)
    assert "q_continue_loss" not in metrics and "target_q_continue" not in kept


@pytest.mark.parametrize("size", [0, 1, 5])
@pytest.mark.parametrize("arch", ["trm", "rsm"])
def test_small_and_unlabelled_batches(arch: str, size: int) -> None:
    head, batch = official_loss_head(make(arch)).train(), batch_of(size)
    if size == 5:
        batch["labels"].fill_(IGNORE)
    _, loss, metrics, _, finished = head([], carry=head.initial_carry(batch), batch=batch)
    loss.backward()
    assert loss.isfinite() and metrics["accuracy"].isfinite() and finished.dtype == torch.bool
    assert (metrics["lm_loss"] == 0) == (size != 1)
    assert bool(finished) or arch == "trm", "RSM is always finished"


def test_rsm_depth_and_gradient_contract() -> None:
    model, batch = make("rsm"), batch_of()

    def logits(depth: int) -> torch.Tensor:
        with torch.no_grad():
            return model(model.initial_carry(batch), batch, program.rsm(depth, 2))[1]["logits"]

    def run(head, **options) -> tuple[torch.Tensor, torch.Tensor]:
        model.zero_grad()
        _, loss, _, kept, _ = head(["logits"], carry=None, batch=batch, **options)
        loss.backward()
        return kept["logits"], model.core.layers[0].mlp.down_proj.weight.grad.clone()

    chained = official_loss_head(model, prob_detach_prev_H=0.0).train()
    one_step = official_loss_head(model, prob_detach_prev_H=1.0).train()
    assert torch.equal(run(chained)[0], logits(2)) and torch.equal(run(one_step)[0], logits(2))
    assert not torch.equal(run(chained)[1], run(one_step)[1])
    assert torch.equal(run(chained, override_H_cycles=5)[0], logits(5))
    assert torch.equal(run(chained, override_H_cycles=1)[0], logits(2))  # at least two cycles in training
    assert torch.equal(run(chained.eval(), override_H_cycles=1)[0], logits(1))
    with pytest.raises(InputError, match="override_H_cycles=0"):
        run(chained, override_H_cycles=0)

    sometimes = official_loss_head(model, prob_detach_prev_H=0.5).train()
    torch.manual_seed(3)
    drawn = [run(sometimes)[1] for _ in range(8)]
    torch.manual_seed(3)
    expected = [torch.rand(1).item() < 0.5 for _ in range(8)]
    assert True in expected and False in expected
    both = {True: run(one_step.train())[1], False: run(chained.train())[1]}
    assert all(torch.equal(gradient, both[detached]) for gradient, detached in zip(drawn, expected, strict=True))


HEADS: dict[str, Callable[[RecursiveReasoner, str], nn.Module]] = {
    "trm": official_loss_head,
    "rsm": official_loss_head,
    "rtm": lambda model, loss: CumulativeHead(model, loss, ponder=0.2, entropy=0.1, min_steps=1, anneal=0.0),
    "rins": lambda model, loss: RoundsHead(model, loss, keep=1.0),
}


def trained(name: str, loss: str, impl: str, dtype: str = "float32") -> tuple[Tensor, dict[str, Tensor], list[Tensor]]:
    """Loss, metrics and gradients of one training step whose loss alone runs in `impl`."""
    options = {"halting": "cumulative_token"} if name == "rtm" else {}
    model = make(name, forward_dtype=dtype, halt_max_steps=3, **options)
    model = model.double() if dtype == "float64" else model
    model.impl = impl
    head, batch = HEADS[name](model, loss).train(), batch_of()
    torch.manual_seed(1)
    _, total, metrics, _, _ = head((), carry=head.initial_carry(batch), batch=batch)
    total.backward()
    return total.detach(), metrics, [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", HEADS)
def test_heads_run_the_kernel_within_the_error_budget(name: str, loss: str) -> None:
    pytest.importorskip("triton")
    launches.clear()
    base, truth = trained(name, loss, "reference"), trained(name, loss, "reference", "float64")
    assert not launches
    found = trained(name, loss, "triton")
    steps = 3 if name == "rtm" else 1
    assert launches == {"token_loss.forward": steps, "token_loss.backward": steps}
    assert found[0].dtype == base[0].dtype
    for key, value in found[1].items():
        assert value.dtype == base[1][key].dtype, key
        torch.testing.assert_close(value, base[1][key], rtol=1e-6, atol=1e-7, msg=key)
    pairs = zip((found[0], *found[2]), (base[0], *base[2]), (truth[0], *truth[2]), strict=True)
    for got, reference, true in pairs:
        error, allowed = (got - true).norm(), 2 * (reference - true).norm() + 16 * EPS * true.norm()
        assert error <= allowed, f"error {error:.3g}, allowed {allowed:.3g}"


@pytest.mark.parametrize(("impl", "dtype"), [("reference", torch.bfloat16), ("triton", torch.bfloat16)])
def test_under_autocast_the_loss_is_that_of_the_rounded_logits(impl: str, dtype: torch.dtype) -> None:
    pytest.importorskip("triton")
    model = make()
    model.impl = impl
    head, batch = official_loss_head(model).train(), batch_of()
    with torch.autocast("cpu", dtype=dtype):
        _, loss, metrics, kept, _ = head(["logits"], carry=head.initial_carry(batch), batch=batch)
    loss.backward()
    assert kept["logits"].dtype == dtype and loss.dtype == torch.float64
    expected = token_loss(kept["logits"].double(), batch["labels"], impl="reference").total()
    torch.testing.assert_close(metrics["lm_loss"], expected, rtol=1e-6, atol=0)
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_refusals() -> None:
    model = make()
    unlabelled = {key: value for key, value in batch_of().items() if key != "labels"}
    for head in (official_loss_head(model), official_loss_head(make("rsm"))):
        with pytest.raises(InputError, match="batch has no 'labels'; it has"):
            head([], carry=head.initial_carry(unlabelled), batch=unlabelled)
    with pytest.raises(InputError, match="loss_type='mse' is not allowed: expected one of stablemax_cross_entropy"):
        official_loss_head(model, "mse")
    with pytest.raises(InputError, match=r"prob_detach_prev_H=-1\.0"):
        official_loss_head(model, prob_detach_prev_H=-1.0)
    with pytest.raises(InputError, match="halting='fixed' has no halting head"):
        official_loss_head(RecursiveReasoner(dataclasses.replace(model.config, halting="fixed")))
