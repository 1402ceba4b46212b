"""The training loop: it resumes bit for bit and follows its stages; its metrics, FLOPs and joules are plain counts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from rtm_kernels.config import ModelConfig
from rtm_kernels.energy import EnergyCounter
from rtm_kernels.errors import InputError
from rtm_kernels.flops import act_step_flops, layer_flops
from rtm_kernels.model import RecursiveReasoner
from rtm_kernels.train.checkpoint import load_checkpoint, save_checkpoint
from rtm_kernels.train.loop import Trainer
from rtm_kernels.train.observe import curves
from rtm_kernels.train.schema import OPTIMIZERS
from rtm_kernels.train.telemetry import Speed
from tests.train.support import MODEL, TINY, same, weights


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("cut", [2, 3, 5])
def test_resuming_at_any_cut_gives_the_same_bits(optimizer: str, cut: int, symmetric: bool, tmp_path: Path) -> None:
    recipe = dataclasses.replace(TINY, optimizer=optimizer, accumulate=1 + (cut % 2), symmetric=symmetric)
    whole = Trainer(recipe)
    losses = []
    for step in range(recipe.total_steps):
        if step == cut:
            save_checkpoint(whole, tmp_path / "last")
        losses.append(whole.step()["loss"])
    resumed = Trainer(recipe)
    torch.manual_seed(1234)  # the checkpoint, not the process, decides the random numbers
    load_checkpoint(resumed, tmp_path / "last")
    assert resumed.step_count == cut
    assert [resumed.step()["loss"] for _ in range(cut, recipe.total_steps)] == losses[cut:]
    assert same(weights(whole), weights(resumed))


def test_a_run_starts_from_the_weights_of_a_saved_model(tmp_path: Path) -> None:
    first = Trainer(TINY)
    first.model.save_pretrained(tmp_path / "model")
    recipe = dataclasses.replace(TINY, init=str(tmp_path / "model"), seed=5)
    second = Trainer(recipe)
    assert same(first.model.state_dict(), second.model.state_dict())
    assert same(first.model.state_dict(), second.averaged.state_dict())
    second.step()
    wider = dataclasses.replace(recipe, model=dataclasses.replace(TINY.model, hidden_size=32))
    with pytest.raises(InputError, match=r"init=.*_init has shape \(16,\); the config asks for \(32,\)"):
        Trainer(wider)
    with pytest.raises(InputError, match="unknown model 'nowhere'"):
        Trainer(dataclasses.replace(TINY, init="nowhere"))


def test_depth_confidence_and_movement_are_plain_counts() -> None:
    trainer = Trainer(dataclasses.replace(TINY, stages=TINY.stages[1:]))
    for _ in range(3):
        trainer.step()
    (before,), model = trainer.carries.values(), trainer.model
    head = [p.detach().clone() for p in (model.q_head.weight, model.q_head.bias)]
    metrics = trainer.step()
    (after,) = trainer.carries.values()
    for depth in (1, 2, 3):
        assert metrics[f"depth_{depth}"] == int((after.halted & (after.steps == depth)).sum())
    y, fresh = after.latents["z_H"], model.initial_latents(6)["z_H"]
    moved = []
    for i in range(6):
        previous = fresh[i] if before.halted[i] else before.latents["z_H"][i]
        moved.append(((y[i] - previous).norm() / y[i].norm()).item())
    assert metrics["latent_delta"] == pytest.approx(sum(moved) / 6, rel=1e-5)
    q = y[:, 0] @ head[0][0] + head[1][0]
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
