"""What a run tells about itself: depths, confidence, movement, FLOPs and joules, each against a plain count."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from rtm_kernels.config import ModelConfig
from rtm_kernels.energy import EnergyCounter
from rtm_kernels.flops import act_step_flops, layer_flops
from rtm_kernels.model import RecursiveReasoner
from rtm_kernels.train.loop import Trainer
from rtm_kernels.train.observe import curves
from rtm_kernels.train.telemetry import Speed
from tests.train.support import MODEL, TINY


def test_depth_confidence_and_movement_are_plain_counts() -> None:
    trainer = Trainer(TINY)
    for _ in range(3):
        trainer.step()
    (before,) = trainer.carries
    seen: list[torch.Tensor] = []
    trainer.model.q_head.register_forward_hook(lambda *args: seen.append(args[2]))
    before = dataclasses.replace(before, latents={k: v.clone() for k, v in before.latents.items()})
    twin = Trainer(TINY)
    twin.model.load_state_dict(trainer.model.state_dict())
    metrics = trainer.step()
    (after,) = trainer.carries
    size = len(after.halted)
    for depth in (1, 2, 3):
        assert metrics[f"depth_{depth}"] == int((after.halted & (after.steps == depth)).sum())
    if size != len(before.halted):  # the stage has changed the batch size, and all start afresh
        before = trainer.model.initial_carry(after.current_data)
    fresh = twin.model.initial_latents(size)["z_H"]
    moved = []
    for i in range(size):
        previous = fresh[i] if before.halted[i] else before.latents["z_H"][i]
        moved.append(((after.latents["z_H"][i] - previous).norm() / after.latents["z_H"][i].norm()).item())
    assert metrics["latent_delta"] == pytest.approx(sum(moved) / size, rel=1e-5)
    y = after.latents["z_H"][:, 0]
    q = y @ twin.model.q_head.weight[0] + twin.model.q_head.bias[0]
    assert metrics["halt_confidence"] == pytest.approx(torch.sigmoid(q).mean().item(), rel=1e-5)


def test_curves_are_means_over_all_examples() -> None:
    trainer = Trainer(TINY)
    arrays = {k: v.numpy() for k, v in trainer.stream.batch(7, {"all": 1.0}).items()}
    whole, parts = (curves(trainer.model, arrays, 3, batch_size=size) for size in (7, 2))
    assert whole.exact == parts.exact and len(whole.exact) == 3
    assert whole.halt == pytest.approx(parts.halt) and whole.change == pytest.approx(parts.change)
    settle = RecursiveReasoner(dataclasses.replace(MODEL, halting="settle"))
    assert curves(settle, arrays, 2).halt == []


@pytest.mark.parametrize("mixer", ["mlp", "attention"])
def test_flops_are_those_that_torch_counts(mixer: str) -> None:
    config = ModelConfig(vocab_size=5, seq_len=12, hidden_size=32, num_heads=2, mixer=mixer, layers={"L_level": 2})
    model = RecursiveReasoner(config, impl="reference")
    x = torch.randn(1, config.latent_len, 32)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.get_submodule("L_level")(x)
    assert counter.get_total_flops() == 2 * layer_flops(config)
    assert act_step_flops(config) == 2 * len(config.program) * layer_flops(config)
    with_grad = sum(step.grad for step in config.program.steps)
    assert act_step_flops(config, train=True) - act_step_flops(config) == 2 * 2 * with_grad * layer_flops(config)


def test_joules_are_logged_where_a_counter_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    used = iter(range(10))
    counter = EnergyCounter("a fake", [(lambda: next(used) / 2, 0)])
    monkeypatch.setattr("rtm_kernels.train.telemetry.energy_counter", lambda kind, index: counter)
    trainer = Trainer(TINY)
    trainer.device = torch.device("cuda:0")
    speed = Speed()
    speed.start(trainer)
    for step in range(3):
        trainer.step_seconds, trainer.step_count = 0.5, step + 1
        speed.log(trainer, metrics := {})
        assert metrics["joules"] == 0.5 and metrics["samples_per_second"] == TINY.stages[0].batch_size / 0.5
    speed.finish(trainer)
    assert speed.totals["joules"] == 1.5 and speed.totals["samples_per_second"] == TINY.stages[0].batch_size / 0.5
