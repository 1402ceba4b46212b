"""Symmetric weights: a twin gets the twin's answer, also after training, and Muon's step is that of whole matrices."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rtm_kernels.config import ModelConfig
from rtm_kernels.data.maze import Maze
from rtm_kernels.data.sudoku import Sudoku, random_grids
from rtm_kernels.data.sudoku.symmetry import Symmetry as Element
from rtm_kernels.errors import InputError
from rtm_kernels.model import RecursiveReasoner
from rtm_kernels.recursion import symmetric as symmetric_cpp
from rtm_kernels.recursion.symmetric_weights import expanded, mean_blocks
from rtm_kernels.train.loop import Trainer
from rtm_kernels.train.symmetry import SymmetricMuon, Symmetry
from tests.train.support import MODEL, TINY, weights

NARROW = dataclasses.replace(MODEL, forward_dtype="float32")
WIDE = dataclasses.replace(NARROW, hidden_size=18, expansion=2, layers={"L_level": 2})
"""Two channels are left over beside the copies of the four digits, and hidden units beside those of the groups."""
PREFIXED = dataclasses.replace(WIDE, puzzle_emb_len=3)
NINE = dataclasses.replace(WIDE, vocab_size=11, seq_len=81, hidden_size=20)
RECIPE = dataclasses.replace(TINY, model=WIDE, symmetric=True, grad_clip=0.5)


def symmetric(config: ModelConfig) -> tuple[RecursiveReasoner, Symmetry]:
    torch.manual_seed(3)
    model = RecursiveReasoner(config)
    torch.nn.init.normal_(model.q_head.weight)
    symmetry = Symmetry(model, Sudoku(round(config.seq_len**0.5)))
    symmetry.fresh_(model)
    return model, symmetry


def boards(size: int, count: int, rng: np.random.Generator) -> np.ndarray:
    grids = random_grids(count, size, rng)
    return np.where(rng.random(grids.shape) < 0.4, grids, 0).astype(np.uint8)


@torch.inference_mode()
def answers(model: RecursiveReasoner, puzzles: np.ndarray) -> tuple[Tensor, Tensor]:
    """Logits [N, cells, V] and halting logits [N, 2] after two ACT steps."""
    x = model.embed(torch.from_numpy(puzzles.astype(np.int32) + 1), torch.zeros(len(puzzles), dtype=torch.int32))
    latents = model.initial_latents(len(puzzles))
    for _ in range(2):
        values, logits, q = model.act_step(latents, x)
        latents = {name: values[name] for name in model.program.carried}
    assert q is not None
    return logits, q


def assert_commutes(model: RecursiveReasoner, size: int) -> None:
    """In float64, so that what is left is that of the weights; a trained model amplifies rounding."""
    model = copy.deepcopy(model).double()
    model.run = None
    model.set_depth(dataclasses.replace(model.config, forward_dtype="float64"))
    rng = np.random.default_rng(5)
    puzzles = boards(size, 6, rng)
    element = Element.random(len(puzzles), size, rng)
    (logits, q), (twin_logits, twin_q) = answers(model, puzzles), answers(model, element.apply(puzzles))
    board = np.arange(size * size).reshape(size, size)
    for n in range(len(puzzles)):
        turned = board.T if element.transpose[n] else board
        cells = turned[np.ix_(element.rows[n], element.columns[n])].reshape(-1)  # where each cell comes from
        moved = torch.empty_like(logits[n])
        moved[:, :2] = logits[n][cells][:, :2]
        moved[:, 1 + element.digits[n, 1:].astype(int)] = logits[n][cells][:, 2:]
        torch.testing.assert_close(twin_logits[n], moved, rtol=1e-5, atol=1e-5 * logits.abs().max().item())
    if model.config.prefix_len:  # then the halting head reads a position that stays
        torch.testing.assert_close(twin_q, q, rtol=1e-5, atol=1e-5 * q.abs().max().item())
    assert logits.std(dim=1).min() > 1e-4


@pytest.mark.parametrize("config", [NARROW, WIDE, PREFIXED, NINE], ids=["4x4", "left over", "prefix", "9x9"])
def test_a_twin_is_answered_by_the_twin_of_the_answer(config: ModelConfig) -> None:
    model, _ = symmetric(config)
    assert_commutes(model, round(config.seq_len**0.5))


@pytest.mark.parametrize("optimizer", ["adamw", "adam_atan2", "muon"])
def test_training_keeps_it(optimizer: str) -> None:
    trainer = Trainer(dataclasses.replace(RECIPE, optimizer=optimizer))
    assert isinstance(trainer.model.run, symmetric_cpp.TrainingRun)
    before = weights(trainer)
    while trainer.step_count < trainer.recipe.total_steps:
        trainer.step()
    assert not any(torch.equal(a, b) for name, a in before.items() if (b := weights(trainer)[name]).dim() == 2)
    for model in (trainer.model, trainer.average.model):
        assert_commutes(model.eval(), 4)


def test_weights_that_a_run_starts_from_are_made_symmetric(tmp_path: Path) -> None:
    model = RecursiveReasoner(WIDE)
    model.save_pretrained(tmp_path / "model")
    trainer = Trainer(dataclasses.replace(RECIPE, init=str(tmp_path / "model")))
    assert_commutes(trainer.model.eval(), 4)
    own, given = trainer.model.lm_head.weight, model.lm_head.weight
    assert 0 < torch.nn.functional.cosine_similarity(own.flatten(), given.flatten(), dim=0) < 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mixer": "attention"}, "mixer='attention' is not allowed"),
        ({"pos_encodings": "learned"}, "pos_encodings='learned' is not allowed"),
        ({"puzzle_emb_ndim": 16}, "puzzle_emb_ndim=16 is not allowed"),
        ({"hidden_size": 2}, "hidden_size=2 is not allowed"),
        ({}, "symmetric=True is not allowed: a task with symmetries; maze"),
    ],
)
def test_what_cannot_carry_symmetries_is_refused(change: dict[str, object], message: str) -> None:
    model = RecursiveReasoner(dataclasses.replace(MODEL, **change))
    with pytest.raises(InputError, match=message):
        Symmetry(model, Sudoku(4) if change else Maze(4))


def polar(grad: Tensor, *_: object) -> Tensor:
    """What Newton-Schulz approximates: all singular values that are not zero become 1."""
    u, values, v = torch.linalg.svd(grad.double(), full_matrices=False)
    return ((u * (values > 1e-5 * values[0])) @ v).to(grad.dtype)


def test_the_step_is_that_of_the_whole_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.optim._muon._zeropower_via_newtonschulz", polar)
    model, symmetry = symmetric(NINE)
    weights = symmetry.channel_mixes(model)
    whole = {name: torch.nn.Parameter(w.detach().clone()) for name, w in weights.items()}
    ours = SymmetricMuon(weights, symmetry.values, lr=0.02, weight_decay=0.1)
    theirs = torch.optim.Muon(whole.values(), lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    before = {name: w.detach().clone() for name, w in weights.items()}
    for _ in range(3):
        for weight in weights.values():
            weight.grad = torch.randn_like(weight)
        symmetry.gradients_(model)
        for name, weight in whole.items():
            weight.grad = weights[name].grad
        ours.step()
        theirs.step()
    assert len(whole) == 4
    for name, weight in whole.items():
        moved = torch.linalg.vector_norm(weight - before[name])
        assert torch.linalg.vector_norm(weight - weights[name]) < 1e-3 * moved and moved > 0.1, name


def test_blocks_stay_on_the_device_of_their_weight() -> None:
    """On the meta device, where mixing devices fails as it does on a GPU."""
    weights = {"L_level.layers.0.mlp.gate_up_proj.weight": torch.nn.Parameter(torch.empty(40, 20, device="meta"))}
    (weight,) = weights.values()
    weight.grad = torch.empty_like(weight)
    optimizer = SymmetricMuon(weights, 9, lr=0.02, weight_decay=0.1)
    optimizer.step()
    assert {p.device.type for group in optimizer.param_groups for p in group["params"]} == {"meta"}
    assert weight.device.type == "meta" and expanded(*mean_blocks(weight, 9), 9).device.type == "meta"
