"""Training on mazes of several sides: batches of one side each, a carry for each, and the same bits after a resume."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from rtm_kernels.config import ModelConfig
from rtm_kernels.data.maze import Maze, generate
from rtm_kernels.errors import InputError
from rtm_kernels.model import RecursiveReasoner
from rtm_kernels.train.checkpoint import load_checkpoint, save_checkpoint
from rtm_kernels.train.loop import Trainer
from rtm_kernels.train.schema import MaskedSupervision, Recipe, Source, Stage
from rtm_kernels.train.telemetry import curves

RECIPE = Recipe(
    model=ModelConfig(
        vocab_size=6, seq_len=36, arch="rtm", hidden_size=8, num_heads=1, layers={"core": 1}, H_cycles=2, L_cycles=1,
        mixer="none", channel_mixer="conv2d", conv_width=3, inner_size=8, halting="settle",
    ),
    sources={f"side{side}": Source(task="maze", size=side, count=20, seed=side) for side in (5, 6, 7)},
    test=Source(task="maze", size=6, count=5, seed=9),
    objective=MaskedSupervision(leave=1.0),
    stages=(
        Stage(steps=3, batch_size=4, mix={"side5": 1.0}, halt_max_steps=2),
        Stage(steps=9, batch_size=4, mix={"side5": 1.0, "side6": 1.0, "side7": 1.0}, halt_max_steps=3),
    ),
    optimizer="adamw", lr=1e-2, warmup_steps=1, loss="softmax_cross_entropy",
)  # fmt: skip


def test_a_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole = Trainer(RECIPE)
    losses = [whole.step()["loss"] for _ in range(12)]
    assert {length for _, length in whole.carries} == {25, 36, 49}
    first = Trainer(RECIPE)
    assert [first.step()["loss"] for _ in range(7)] == losses[:7]
    save_checkpoint(first, tmp_path)
    second = Trainer(RECIPE)
    load_checkpoint(second, tmp_path)
    assert [second.step()["loss"] for _ in range(5)] == losses[7:]
    found = curves(whole.average.model, whole.stream.test_arrays(5), 2, task=whole.stream.task)  # type: ignore[arg-type]
    assert len(found.exact) == len(found.valid) == 2 and found.halt == []


def test_the_weights_of_tokens_and_who_leaves() -> None:
    model = RecursiveReasoner(RECIPE.model).train()
    head = MaskedSupervision(other=0.25, leave=1.0).head(model, "softmax_cross_entropy")
    mazes, answers = (torch.from_numpy(part.astype("int32")) for part in generate(3, seed=1, side=6))
    batch = {"inputs": mazes, "labels": answers, "puzzle_identifiers": torch.zeros(3, dtype=torch.int32)}
    carry, loss, metrics, _, _ = head([], carry=head.initial_carry(batch), batch=batch)
    _, outputs = model(model.initial_carry(batch), batch)
    each = torch.nn.functional.cross_entropy(outputs["logits"].mT, answers.long(), reduction="none")
    weight = torch.where(mazes == 2, 1.0, 0.25)
    torch.testing.assert_close(loss, ((each * weight).sum(1) / weight.sum(1)).sum())
    assert not carry.halted.any() and metrics["count"] == 0
    batch["labels"] = outputs["logits"].argmax(-1).int()
    assert head([], carry=head.initial_carry(batch), batch=batch)[0].halted.all()


def test_several_sizes_need_a_model_without_one() -> None:
    fixed = dataclasses.replace(RECIPE.model, mixer="mlp", channel_mixer="swiglu", conv_width=0)
    with pytest.raises(InputError, match=r"sources=\[5, 6, 7\] is not allowed: one task and size"):
        dataclasses.replace(RECIPE, model=fixed)
    with pytest.raises(InputError, match="seq_len=49 is not allowed: 36"):
        RecursiveReasoner(fixed).resized(49)
    resized = RecursiveReasoner(RECIPE.model).resized(144)
    assert resized.config.halt_max_steps == 32 and Maze(12).seq_len == resized.config.seq_len
