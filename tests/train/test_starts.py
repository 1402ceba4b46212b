"""Where samples of deep supervision start, and that runs with every kind of start are resumed to the same bits."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rtm_kernels.carry import Carry
from rtm_kernels.errors import InputError
from rtm_kernels.recursion.symmetric import TrainingRun
from rtm_kernels.train.checkpoint import load_checkpoint, save_checkpoint
from rtm_kernels.train.configure import override
from rtm_kernels.train.loop import Trainer
from rtm_kernels.train.schema import DeepSupervision
from rtm_kernels.train.starts import SPREAD, StartingHead
from tests.train.support import MODEL, TINY, same, weights

EVERY = DeepSupervision(starts={"init": 0.25, "random": 0.25, "anchor": 0.25, "answer": 0.25}, noise=0.1)
SIZE = 8


def entered(*, steps: int = 2, noise: float = 0.0, **starts: float) -> tuple[Trainer, Carry, Carry, dict[str, Tensor]]:
    """A trainer, a carry of which all but the last two samples have left, those of even number solved, the same after
    new samples have entered, and the batch that these are from."""
    trainer = Trainer(dataclasses.replace(TINY, objective=DeepSupervision(starts=starts, noise=noise)))
    model, held, batch = trainer.model, *(trainer.stream.batch(SIZE, {"all": 1.0}) for _ in range(2))
    latents = {name: torch.randn(SIZE, 16, 16) for name in model.program.carried}
    answers = model.token_logits(latents["z_H"]).argmax(-1)
    held["labels"] = torch.where(torch.arange(SIZE)[:, None] % 2 == 0, answers, 5 - answers).int()
    halted, taken = torch.arange(SIZE) < SIZE - 2, torch.full((SIZE,), steps, dtype=torch.int32)
    before = Carry(latents, taken, halted, held)
    head = trainer.head if noise or set(starts) != {"init"} else StartingHead(model, TINY.loss, starts, 0.0)
    return trainer, before, head.enter(before, batch), batch


def test_new_puzzles_start_from_the_initial_latents_or_from_normal_numbers() -> None:
    for kind in ("init", "random"):
        trainer, before, after, batch = entered(**{kind: 1.0})
        assert after.steps.tolist() == [0] * 6 + [2] * 2 and not after.halted.any()
        assert all(torch.equal(after.current_data[name][:6], batch[name][:6]) for name in batch)
        assert all(torch.equal(after.current_data[name][6:], before.current_data[name][6:]) for name in batch)
        for name, fresh in trainer.model.initial_latents(6).items():
            own = after.latents[name][:6]
            assert torch.equal(own, fresh) if kind == "init" else 0.9 < own.std() < 1.1 and not own.equal(fresh)
            assert torch.equal(after.latents[name][6:], before.latents[name][6:])


def test_a_solved_puzzle_starts_again_near_where_it_ended_and_an_unsolved_one_does_not() -> None:
    _, before, after, batch = entered(anchor=1.0)
    for row in range(6):
        kept = before if row % 2 == 0 else None
        data = batch if kept is None else before.current_data
        assert all(torch.equal(after.current_data[name][row], data[name][row]) for name in batch)
        assert after.steps[row] == 0
    for name, latent in before.latents.items():
        moved = (after.latents[name] - latent)[[0, 2, 4]].square().mean((1, 2)).sqrt()
        assert (moved > 0).all() and (moved < 1.3 * SPREAD).all() and len(set(moved.tolist())) == 3


def test_an_answer_is_fed_back_with_wrong_tokens() -> None:
    trainer, before, after, batch = entered(answer=1.0)
    model, fresh = trainer.model, trainer.model.initial_latents(6)
    assert all(torch.equal(after.current_data[name], before.current_data[name]) for name in batch)
    assert torch.equal(after.latents["z_L"][:6], fresh["z_L"])
    table = model.embed(torch.arange(6).repeat(1, 3)[:, :16].int())[0, :6]
    tokens = torch.cdist(after.latents["z_H"][:6], table).argmin(-1)
    assert torch.equal(after.latents["z_H"][:6], table[tokens])
    wrong = (tokens != model.token_logits(before.latents["z_H"][:6]).argmax(-1)).sum(1)
    assert wrong.sum() > 0 and (wrong <= 12).all()


def test_nothing_is_started_again_before_a_first_step() -> None:
    for kind in ("anchor", "answer"):
        trainer, _, after, batch = entered(steps=0, **{kind: 1.0})
        assert all(torch.equal(after.current_data[name][:6], batch[name][:6]) for name in batch)
        assert torch.equal(after.latents["z_H"][:6], trainer.model.initial_latents(6)["z_H"])


def test_noise_reaches_samples_at_every_step() -> None:
    _, before, after, _ = entered(noise=0.25, init=1.0)
    added = (after.latents["z_H"] - before.latents["z_H"])[6:]
    assert 0.2 < added.std() < 0.3


@pytest.mark.parametrize("symmetric", [False, True])
def test_runs_of_every_start_are_resumed_to_the_same_bits(symmetric: bool, tmp_path: Path) -> None:
    recipe = dataclasses.replace(TINY, objective=EVERY, optimizer="muon", symmetric=symmetric)
    whole = Trainer(recipe)
    assert isinstance(whole.model.run, TrainingRun) == symmetric
    for step in range(recipe.total_steps):
        if step == 4:
            save_checkpoint(whole, tmp_path)
        whole.step()
    resumed = Trainer(recipe)
    torch.manual_seed(1234)
    load_checkpoint(resumed, tmp_path)
    for _ in range(4, recipe.total_steps):
        resumed.step()
    assert same(weights(whole), weights(resumed))


def test_ranks_draw_the_starts_of_one_process() -> None:
    trainer = Trainer(dataclasses.replace(TINY, objective=EVERY))
    batch = trainer.stream.batch(6, {"all": 1.0})
    whole, found = None, []
    for rank, ranks in ((0, 1), (0, 2), (1, 2)):
        torch.manual_seed(3)
        trainer.model.share_batch(rank, ranks)
        part = {name: value.chunk(ranks)[rank] for name, value in batch.items()}
        entry = trainer.head.enter(trainer.model.initial_carry(part), part)
        whole, found = (entry, found) if ranks == 1 else (whole, [*found, entry])
    assert whole is not None
    assert torch.equal(whole.latents["z_L"], torch.cat([entry.latents["z_L"] for entry in found]))


def test_starts_are_set_by_key_and_checked() -> None:
    changed = override(TINY, ["objective.starts.anchor=0.5", "objective.noise=0.1"])
    assert changed.objective == DeepSupervision(starts={"init": 1, "random": 0, "anchor": 0.5, "answer": 0}, noise=0.1)
    for assignment, message in (
        ('objective.starts={"middle":1}', "starts='middle' is not allowed"),
        ('objective.starts={"init":0}', "a weight above 0"),
        ("objective.starts.random=-1", "starts.random=-1.* is not allowed"),
        ("objective.noise=-0.1", "noise=-0.1 is not allowed"),
    ):
        with pytest.raises(InputError, match=message):
            override(TINY, [assignment])
    rounds = dataclasses.replace(MODEL, arch="rins", layers={"A": 1, "B": 1})
    with pytest.raises(InputError, match="init alone for arch='rins'"):
        dataclasses.replace(TINY, model=rounds, objective=EVERY)
