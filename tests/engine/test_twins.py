"""Rollouts over symmetric twins: answers come back in the puzzle's own terms, and are confirmed there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from rtm_kernels.config import ModelConfig
from rtm_kernels.data import maze, sudoku
from rtm_kernels.data.task import Task, get_task
from rtm_kernels.engine import Rollouts, Solver
from rtm_kernels.engine.executor import Act, ActStep
from rtm_kernels.model import RecursiveReasoner

WIDTH = 16


class Picky:
    """Knows the answer to those 4 x 4 Sudokus that begin with a given 1 (`lucky`), and breaks the others."""

    name, batch_invariant, check = "picky", True, staticmethod(lambda: None)

    def __init__(self) -> None:
        self.seen: list[np.ndarray] = []

    @property
    def recorded(self) -> Act:
        return self.step

    def step(self, latents: Mapping[str, Tensor], x: Tensor) -> ActStep:
        tokens = (x[..., 0] / WIDTH**0.5).round().long().numpy()
        self.seen.extend(tokens)
        answers = sudoku.solve((tokens - 1).clip(0).astype(np.uint8))[1].astype(np.int64) + 1
        answers = np.where(self.lucky(tokens)[:, None], answers, 2)
        logits = torch.nn.functional.one_hot(torch.from_numpy(answers), 6).float()
        return ActStep(dict(latents), logits, None)

    @staticmethod
    def lucky(tokens: np.ndarray) -> np.ndarray:
        return tokens[:, 0] == 2


def solver(count: int, picky: Picky | None = None, **options: object) -> Solver:
    config = ModelConfig(vocab_size=6, seq_len=16, hidden_size=WIDTH, num_heads=1, H_cycles=1, L_cycles=1,
                         layers={"L_level": 1}, halt_max_steps=3, halting="settle")  # fmt: skip
    reasoner = RecursiveReasoner(config)
    with torch.no_grad():
        reasoner.embed_tokens.embedding_weight.copy_(torch.arange(6.0)[:, None].expand(-1, WIDTH))
    made = Solver(reasoner, task="sudoku4", rollouts=Rollouts(count, kind="twins"), **options)  # type: ignore[arg-type]
    made.executor = picky or Picky()
    return made


def puzzles() -> list[str]:
    boards, _ = sudoku.generate(6, size=4, seed=9)
    return [sudoku.to_text(board) for board in boards if board[0] != 1]


def test_a_lucky_twin_answers_for_the_puzzle() -> None:
    texts = puzzles()
    assert len(texts) >= 3
    assert {s.status for s in solver(1).solve(texts)} == {"unverified"}
    picky = Picky()
    for text, solution in zip(texts, solver(64, picky).solve(texts), strict=True):
        assert solution.status == "verified" and solution.rollout > 0 and solution.answer is not None
        assert get_task("sudoku4").verify(text, solution.answer).verified and solution.input == text
    assert any(Picky.lucky(np.array(picky.seen)))


def test_an_unconfirmed_candidate_is_turned_back_too() -> None:
    picky = Picky()
    picky.lucky = lambda tokens: np.zeros(len(tokens), dtype=bool)  # type: ignore[method-assign]
    (solution,) = solver(4, picky).solve(puzzles()[:1])
    assert (solution.status, solution.reason, solution.total_steps) == ("unverified", "max_steps", 12)
    assert solution.answer is not None and len(set(solution.answer)) == 1


@pytest.mark.parametrize("task", [get_task("sudoku"), get_task("sudoku4"), get_task("sudoku16"), maze.Maze(6)])
def test_twins_keep_the_rules_and_invert(task: Task) -> None:
    if isinstance(task, maze.Maze):
        inputs, answers = maze.generate(4, seed=2, side=6)
    else:
        boards = sudoku.random_grids(4, task.size, np.random.default_rng(1))  # type: ignore[attr-defined]
        answers = boards + np.uint8(1)
        inputs = np.where(np.random.default_rng(2).random(boards.shape) < 0.5, answers, 1).astype(np.uint8)
    moved = 0
    for seed, (tokens, answer) in enumerate([*zip(inputs, answers, strict=True)] * 8):
        found = task.twin(tokens, np.random.default_rng(seed), 3 + seed % 6)
        same = task.twin(answer, np.random.default_rng(seed), 3 + seed % 6)
        assert found is not None and same is not None
        twin, back = found
        assert task.verify_tokens(twin[None], same[0][None])[0]
        assert (back(same[0].astype(np.int32)) == answer).all() and (back(twin) == tokens).all()
        moved += bool((twin != tokens).any())
    assert moved > 16
    assert back(np.zeros_like(tokens)).shape == tokens.shape


class Bound:
    """Knows the label of mazes whose start is in the last two columns, and of those that are mostly walls.

    To the label of others it adds all open cells of the first row.
    """

    name, batch_invariant, check = "bound", True, staticmethod(lambda: None)
    recorded: Act

    def __init__(self) -> None:
        self.recorded, self.calls = self.step, 0

    def step(self, latents: Mapping[str, Tensor], x: Tensor) -> ActStep:
        self.calls += 1
        tokens = (x[..., 0] / WIDTH**0.5).round().long().numpy()
        answers = maze.solve(tokens.reshape(-1, 8, 8)).reshape(tokens.shape)
        known = ((tokens == maze.START).argmax(1) % 8 >= 6) | ((tokens == maze.WALL).sum(1) > 32)
        stray = (tokens == maze.OPEN) & (np.arange(64) < 8) & ~known[:, None]
        logits = torch.nn.functional.one_hot(torch.from_numpy(np.where(stray, maze.PATH, answers)).long(), 6).float()
        return ActStep(dict(latents), logits, None)


def test_twins_of_a_maze_that_keep_its_label_run_one_after_the_other() -> None:
    inputs, labels = maze.generate(40, seed=1, side=8)
    column = (inputs == maze.START).argmax(1) % 8
    mirrored = maze.solve(inputs.reshape(-1, 8, 8)[..., ::-1])[..., ::-1].reshape(inputs.shape)
    assert ((mirrored == labels).all(1)).mean() > 0.8
    reasoner, task = RecursiveReasoner(replace(solver(1).model.config, seq_len=64, halt_max_steps=2)), maze.Maze(8)
    with torch.no_grad():
        reasoner.embed_tokens.embedding_weight.copy_(torch.arange(6.0)[:, None].expand(-1, WIDTH))
    made = Solver(reasoner, task=task, rollouts=4, batch_size=1)
    made.executor = bound = Bound()  # type: ignore[assignment]
    found = made.solve(map(task.decode, inputs))
    wanted = np.where(column >= 6, 0, np.where(column < 2, 1, 2))
    stray = ((labels == maze.OPEN) & (mirrored == maze.OPEN))[:, :8].any(1)  # else there is nothing to add
    for i in np.flatnonzero(stray):
        assert (found[i].status, found[i].rollout) == ("verified", wanted[i])
        assert found[i].answer == task.decode((mirrored if wanted[i] == 1 else labels)[i])
    assert {*wanted[stray]} == {0, 1, 2} and bound.calls < 6 * len(inputs)
    made.rollouts = replace(made.rollouts, agree=2)
    found = made.solve(map(task.decode, inputs))
    for i in np.flatnonzero(stray & (mirrored == labels).all(1) & (wanted < 2)):
        assert (found[i].answer, found[i].rollout, found[i].total_steps) == (task.decode(labels[i]), wanted[i], 4)
