"""Symmetric weights: the model answers a twin with the twin's answer, and stays so through training."""

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
from rtm_kernels.train.loop import Trainer
from rtm_kernels.train.symmetry import Symmetry, copies
from tests.recursion.support import Recorder
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
    model.run_with(None)
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
    before = weights(trainer)
    while trainer.step_count < trainer.recipe.total_steps:
        trainer.step()
    assert not any(torch.equal(a, b) for name, a in before.items() if (b := weights(trainer)[name]).dim() == 2)
    for model in (trainer.model, trainer.averaged):
        assert_commutes(model.eval(), 4)


def test_the_mean_over_orbits_is_the_projection_on_what_commutes() -> None:
    model, symmetry = symmetric(NINE)
    found = Sudoku(9).generators()
    positions = found.positions
    down = model.get_parameter("L_level.layers.0.mlp_t.down_proj.weight")
    groups = copies(found.groups, down.shape[1])
    torch.nn.init.normal_(down)
    random = down.detach().clone()
    symmetry.weights_(model)
    mean = down.detach().clone()
    for p, g in zip(positions, groups, strict=True):
        assert torch.equal(mean[p][:, g], mean)
    symmetry.weights_(model)
    torch.testing.assert_close(down.detach(), mean)
    assert abs(((random - mean) * mean).sum().item()) < 1e-2  # orthogonal: nothing is nearer


def test_fresh_weights_keep_their_norm_and_have_equal_singular_values() -> None:
    torch.manual_seed(0)
    model = RecursiveReasoner(NINE)
    norms = {name: p.norm().item() for name, p in model.named_parameters()}
    Symmetry(model, Sudoku(9)).fresh_(model)
    for name, p in model.named_parameters():
        assert p.norm().item() == pytest.approx(norms[name], rel=1e-3)
        if p.dim() == 2 and norms[name] > 0:
            values = torch.linalg.svdvals(p.detach())
            kept = values[values > 1e-3 * values[0]]
            assert len(kept) > 1 and (kept.max() / kept.min()).item() < 1.01, name


def test_a_recorded_update_has_the_bits_of_an_eager_one() -> None:
    recipe = dataclasses.replace(RECIPE, optimizer="adam_atan2", graph=True)
    recorder = Recorder()
    captured, eager = Trainer(recipe, capture=recorder), Trainer(dataclasses.replace(recipe, graph=False))
    for _ in range(recipe.total_steps):
        captured.step()
        eager.step()
    assert recorder.runs > 2
    for name, value in weights(eager).items():
        torch.testing.assert_close(weights(captured)[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_weights_that_a_run_starts_from_are_made_symmetric(tmp_path: Path) -> None:
    model = RecursiveReasoner(WIDE)
    model.save_pretrained(tmp_path / "model")
    trainer = Trainer(dataclasses.replace(RECIPE, init=str(tmp_path / "model")))
    assert_commutes(trainer.model.eval(), 4)
    own, given = trainer.model.lm_head.weight, model.lm_head.weight
    assert 0 < torch.nn.functional.cosine_similarity(own.flatten(), given.flatten(), dim=0) < 1


REFUSED = [
    ({"mixer": "attention"}, "mixer='attention' is not allowed"),
    ({"pos_encodings": "learned"}, "pos_encodings='learned' is not allowed"),
    ({"puzzle_emb_ndim": 16}, "puzzle_emb_ndim=16 is not allowed"),
    ({"hidden_size": 2}, "hidden_size=2 is not allowed"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_a_model_that_cannot_carry_the_symmetries_is_refused(change: dict[str, object], message: str) -> None:
    model = RecursiveReasoner(dataclasses.replace(MODEL, **change))
    with pytest.raises(InputError, match=message):
        Symmetry(model, Sudoku(4))


def test_a_task_without_symmetries_is_refused() -> None:
    model = RecursiveReasoner(dataclasses.replace(MODEL, vocab_size=6, seq_len=16))
    with pytest.raises(InputError, match="symmetric=True is not allowed: a task with symmetries; maze"):
        Symmetry(model, Maze(4))
