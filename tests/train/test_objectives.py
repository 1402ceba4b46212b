"""The objectives: what each one's loss is, that it learns, and that training follows the official loop."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from rtm_kernels.block import Adapter
from rtm_kernels.errors import InputError
from rtm_kernels.interop.official import model_config
from rtm_kernels.losses import CumulativeHead
from rtm_kernels.model import RecursiveReasoner
from rtm_kernels.ops.adam_atan2.api import AdamATan2, sign_sgd_
from rtm_kernels.ops.token_loss.reference import softmax_cross_entropy
from rtm_kernels.train.loop import Trainer
from rtm_kernels.train.schema import (
    CumulativeHalting,
    DeepSupervision,
    FinalLoss,
    Recipe,
    Source,
    Stage,
    StochasticRounds,
)
from tests.interop.official_structure import RSM, LossHead, Reasoner, batch, config_of
from tests.train.support import MODEL, TINY, fit

ARCHS: dict[str, tuple[dict, object]] = {
    "trm": ({}, DeepSupervision()),
    "trm-starts": ({}, DeepSupervision(starts={"init": 1, "random": 1, "anchor": 1, "answer": 1}, noise=0.1)),
    "hrm": (
        {"arch": "hrm", "layers": {"H_level": 1, "L_level": 1}, "halting": "q_continue", "q_continue_target": True},
        DeepSupervision(),
    ),
    "transformer": ({"arch": "transformer", "layers": {"H_level": 1}, "halting": "q_continue"}, DeepSupervision()),
    "rsm": (
        {"arch": "rsm", "layers": {"core": 1}, "halting": "settle", "tied_lm_head": True, "norm_axis": "hidden"},
        FinalLoss(prob_detach_prev_H=0.5),
    ),
    "rtm": ({"arch": "rtm", "layers": {"core": 1}, "halting": "cumulative"}, CumulativeHalting()),
    "rtm-token": ({"arch": "rtm", "layers": {"core": 1}, "halting": "cumulative_token"}, CumulativeHalting()),
    "rtm-ema": (
        {"arch": "rtm", "layers": {"core": 1}, "halting": "cumulative", "state_ema": 0.3},
        CumulativeHalting(cost="graves"),
    ),
    "rins": (
        {"arch": "rins", "layers": {"A": 1, "B": 1}, "halting": "fixed", "H_cycles": 3},
        StochasticRounds(keep=0.5),
    ),
    "rins-adapters": (
        {"arch": "rins", "layers": {"A": 1, "B": 1}, "halting": "fixed", "H_cycles": 3, "adapter_rank": 2},
        StochasticRounds(keep=0.5),
    ),
}  # fmt: skip


def recipe_of(name: str, steps: int = 30, **changes) -> Recipe:
    model, objective = ARCHS[name]
    return dataclasses.replace(
        TINY, model=dataclasses.replace(MODEL, **model), objective=objective,
        stages=(Stage(steps=steps, batch_size=16, mix={"all": 1.0}, halt_max_steps=2),), **changes,
    )  # fmt: skip


@pytest.mark.parametrize("name", ARCHS)
def test_every_contract_learns(name: str) -> None:
    losses = [metrics["lm_loss"] for metrics in fit(Trainer(recipe_of(name)))]
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5])


def test_a_contract_refuses_a_model_it_cannot_train() -> None:
    for name, objective in (("rsm", DeepSupervision()), ("trm", CumulativeHalting()), ("trm", FinalLoss()),
                           ("trm", StochasticRounds())):  # fmt: skip
        with pytest.raises(InputError, match="is not allowed"):
            dataclasses.replace(recipe_of(name), objective=objective)


@pytest.mark.parametrize("policy", ["cumulative", "cumulative_token"])
@pytest.mark.parametrize(
    ("progress", "cost"), [(0.0, "continue"), (0.15, "continue"), (1.0, "continue"), (1.0, "graves")]
)
def test_the_cumulative_loss_is_the_formula(policy: str, progress: float, cost: str) -> None:
    recipe = recipe_of("rtm" if policy == "cumulative" else "rtm-token")
    trainer = Trainer(recipe)
    model = trainer.model
    with torch.no_grad():
        model.q_head.weight.normal_(std=0.5)
        model.q_head.bias.fill_(-1.0)
    model.set_depth(dataclasses.replace(model.config, halt_max_steps=4))
    batch = trainer.stream.batch(5, {"all": 1.0})
    head = CumulativeHead(model, "softmax_cross_entropy", ponder=0.2, entropy=0.1, min_steps=2, anneal=0.3,
                          cost=cost)  # fmt: skip
    head.set_progress(progress)
    _, loss, metrics, _, _ = head((), carry=model.initial_carry(batch), batch=batch)

    x, z = model.embed(batch["inputs"], batch["puzzle_identifiers"]), model.initial_latents(5)
    expected = torch.zeros(())
    rise = min(1.0, progress / 0.3)
    steps = []
    for _ in range(4):
        z, logits, _ = model.act_step(z, x)
        read = z["z_H"] if policy == "cumulative_token" else z["z_H"][:, :1]
        p = torch.sigmoid(read @ model.q_head.weight[0] + model.q_head.bias[0])
        steps.append((p, softmax_cross_entropy(logits, batch["labels"])))
    units = steps[0][0].shape[1]
    for b in range(5):
        for u in range(units):
            left, share = torch.ones(()), torch.zeros(())
            for t, (p, token_loss) in enumerate(steps):
                halts = (1 - left + p[b, u] >= 1 and t >= 1) or t == 3
                w = left if halts else torch.minimum(p[b, u], left)
                loss_here = token_loss[b].mean() if units == 1 else token_loss[b, u] / units
                ponder = 1 - p[b, u] if cost == "continue" else 1 + (left if halts else 0)
                share = share + rise * (0.2 * ponder + 0.1 * torch.xlogy(w, w.clamp_min(1e-12))) / units
                share = share + w * loss_here
                left = left - w
                if halts:
                    break
            expected = expected + share
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    assert 2 * 5 <= metrics["steps"] <= 4 * 5


def prepared(name: str) -> tuple[RecursiveReasoner, Tensor]:
    """A model whose adapters do something, and the embedding of three puzzles."""
    trainer = Trainer(recipe_of(name))
    for module in trainer.model.modules():
        if isinstance(module, Adapter):
            torch.nn.init.normal_(module.up_proj.weight)
    batch = trainer.stream.batch(3, {"all": 1.0})
    return trainer.model, trainer.model.embed(batch["inputs"], batch["puzzle_identifiers"])


def test_the_state_is_a_moving_average_across_steps() -> None:
    model, x = prepared("rtm-ema")
    z, core = model.initial_latents(3), model.get_submodule("core")
    expected = z["z_H"]
    for _ in range(model.config.H_cycles):
        expected = 0.3 * expected + 0.7 * core(expected, (x,))
    torch.testing.assert_close(model.act_step(z, x)[0]["z_H"], expected)


def test_rounds_of_rins_have_an_adapter_each() -> None:
    model, h = prepared("rins-adapters")
    found = model.act_step({}, h)[0]["h"]
    for i in (1, 2, 3):
        h = model.get_submodule("A")(h)
        down, up = (model.get_parameter(f"adapter_{i}.{name}_proj.weight") for name in ("down", "up"))
        h = h + h @ down.T @ up.T
    torch.testing.assert_close(found, model.get_submodule("B")(h))


def test_rounds_are_drawn_from_all_of_one_to_r() -> None:
    trainer = Trainer(recipe_of("rins", steps=40))
    assert {metrics["steps"] for metrics in fit(trainer)} == {1.0, 2.0, 3.0}


def test_a_stage_sets_the_depth_of_the_model() -> None:
    stages = (
        Stage(steps=1, batch_size=4, mix={"all": 1.0}, H_cycles=1),
        Stage(steps=1, batch_size=4, mix={"all": 1.0}, H_cycles=3, L_cycles=2, halt_max_steps=5),
    )
    trainer = Trainer(dataclasses.replace(TINY, stages=stages))
    trainer.step()
    assert len(trainer.model.program) == 1 * 2
    trainer.step()
    assert len(trainer.model.program) == 3 * 3 and trainer.model.config.halt_max_steps == 5
    assert trainer.average.model.config == TINY.model


def test_accumulated_gradients_are_those_of_the_whole_batch() -> None:
    calm = dataclasses.replace(MODEL, halt_exploration_prob=0.0)
    whole = Trainer(dataclasses.replace(TINY, model=calm))
    parts = Trainer(dataclasses.replace(TINY, model=calm, accumulate=2))
    for _ in range(TINY.total_steps):
        a, b = whole.step(), parts.step()
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)
    for one, other in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


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
