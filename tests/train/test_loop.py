"""The training loop: it learns, resumes bit for bit, and follows its recipe's stages."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from rtm_kernels.errors import InputError
from rtm_kernels.train.checkpoint import load_checkpoint, save_checkpoint
from rtm_kernels.train.loop import Trainer
from rtm_kernels.train.schema import OPTIMIZERS, Source
from rtm_kernels.train.stream import PoolStream
from tests.train.support import TINY, same, weights


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


def test_the_learning_rate_follows_the_stages() -> None:
    factors = [TINY.lr_factor(step) for step in range(TINY.total_steps)]
    assert factors == pytest.approx([0.5, 1.0, 1.0, 0.5, 0.4, 0.3, 0.2, 0.1])


def test_the_stream_mixes_by_weight_and_every_label_solves_its_input() -> None:
    sources = {"easy": Source(count=16, seed=1), "full": Source(count=16, seed=2, clues=(40, 60))}
    batch = PoolStream(sources, seed=3).batch(400, {"easy": 0.25, "full": 0.75})
    again = PoolStream(sources, seed=3).batch(400, {"easy": 0.25, "full": 0.75})
    assert all(torch.equal(batch[k], again[k]) for k in batch)
    inputs, labels = batch["inputs"], batch["labels"]
    given = inputs > 1
    assert torch.equal(inputs[given], labels[given])
    assert labels.min() == 2 and labels.max() == 10
    assert 0.65 < (given.sum(-1) >= 40).float().mean() < 0.85


def test_a_run_starts_from_the_weights_of_a_saved_model(tmp_path: Path) -> None:
    first = Trainer(TINY)
    first.model.save_pretrained(tmp_path / "model")
    recipe = dataclasses.replace(TINY, init=str(tmp_path / "model"), seed=5)
    second = Trainer(recipe)
    assert same(first.model.state_dict(), second.model.state_dict())
    assert same(first.model.state_dict(), second.averaged.state_dict())
    second.step()
    wider = dataclasses.replace(recipe, model=dataclasses.replace(TINY.model, hidden_size=32))
    with pytest.raises(InputError, match=r"init=.*different: H_init"):
        Trainer(wider)
    with pytest.raises(InputError, match="unknown model 'nowhere'"):
        Trainer(dataclasses.replace(TINY, init="nowhere"))
