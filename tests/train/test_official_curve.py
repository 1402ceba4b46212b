"""The trainer follows the official training loop: loss curves over 24 steps, float32, on stand-ins of the models."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from rtm_kernels.interop.official import model_config
from rtm_kernels.ops.adam_atan2.api import AdamATan2, sign_sgd_
from rtm_kernels.train.loop import Trainer
from rtm_kernels.train.schema import DeepSupervision, FinalLoss, Recipe, Source, Stage
from tests.interop.official_structure import RSM, LossHead, Reasoner, batch, config_of

STEPS, SIZE, WARMUP, LR, PUZZLE_LR, DECAY = 24, 4, 10, 1e-3, 1e-2, 0.1


def official_curve(config, head) -> list[float]:
    """The loop of the official pretrain.py: warm-up, sign-SGD on puzzle embeddings and AdamATan2, no clipping."""
    inner = head.model.inner if hasattr(head.model, "inner") else head.model
    table = inner.puzzle_emb
    optimizer = AdamATan2(head.parameters(), lr=0, betas=(0.9, 0.95), weight_decay=DECAY)
    carry, losses = None, []
    for step in range(1, STEPS + 1):
        data = batch(config, step)
        carry = head.initial_carry(data) if carry is None else carry
        carry, loss, _, _, _ = head((), carry=carry, batch=data)
        (loss / SIZE).backward()
        warm = min(1.0, step / WARMUP)
        sign_sgd_(table.weights, table.local_ids, table.local_weights.grad, lr=PUZZLE_LR * warm, weight_decay=DECAY)
        table.local_weights.grad = None
        optimizer.param_groups[0]["lr"] = LR * warm
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item() / SIZE)
    return losses


@pytest.mark.parametrize("name", ["trm_mlp", "trm_att", "hrm", "rsm_mlp", "rsm_att"])
def test_steps_give_the_official_loss_curve(name: str) -> None:
    arch, _, mixer = name.partition("_")
    attends = mixer != "mlp"
    config = config_of(mlp_t=not attends, pos_encodings="rope" if attends else "none")
    torch.manual_seed(0)
    official = RSM(config) if arch == "rsm" else Reasoner(config, hierarchical=arch == "hrm")
    fields = vars(config) | {"no_ACT_continue": True}
    ours = model_config("trm" if arch == "hrm" else arch, fields)
    if arch == "hrm":  # the stand-in halts as TRM does, with HRM's two stacks
        layers = {"H_level": config.H_layers, "L_level": config.L_layers}
        ours = dataclasses.replace(ours, arch="hrm", layers=layers)
    recipe = Recipe(
        model=ours, sources={"all": Source(count=1)}, objective=FinalLoss(prob_detach_prev_H=1.0) if arch == "rsm"
        else DeepSupervision(),
        stages=(Stage(steps=STEPS, batch_size=SIZE, mix={"all": 1.0}, halt_max_steps=config.halt_max_steps),),
        optimizer="adam_atan2", lr=LR, puzzle_lr=PUZZLE_LR, weight_decay=DECAY, puzzle_weight_decay=DECAY,
        warmup_steps=WARMUP, grad_clip=None, loss="softmax_cross_entropy",
    )  # fmt: skip
    trainer = Trainer(recipe)
    state = {k.removeprefix("inner."): v.clone() for k, v in official.state_dict().items()}
    trainer.model.load_state_dict(state)
    batches = (batch(config, step) for step in range(1, STEPS + 1))
    trainer.stream.batch = lambda size, mix: next(batches)  # type: ignore[method-assign]
    head = LossHead(official).train()
    expected = official_curve(config, head)
    found = [trainer.step()["loss"] for _ in range(STEPS)]
    assert found == pytest.approx(expected, rel=1e-5)
    assert expected[-1] < expected[0]
