"""Small traces: a random Sudoku model of four by four cells, and the scripted task of the engine's tests."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from rtm_kernels.config import ModelConfig
from rtm_kernels.data.task import Puzzle, get_task
from rtm_kernels.engine import Solver
from rtm_kernels.engine.executor import ActStep
from rtm_kernels.model import RecursiveReasoner

PUZZLES = [
    Puzzle("1..4.4.1.1.44.1.", "123434122143" + "4321"),
    Puzzle("...4.4.1.1.44.1."),
    Puzzle(".2..34....4.4..1"),
]


def tiny_model(seed: int = 0) -> RecursiveReasoner:
    """A random model of 4 x 4 Sudoku whose halting head says something."""
    torch.manual_seed(seed)
    config = ModelConfig(vocab_size=6, seq_len=16, hidden_size=32, num_heads=2, H_cycles=1, L_cycles=2,
                         layers={"L_level": 1}, halt_max_steps=5)  # fmt: skip
    model = RecursiveReasoner(config)
    with torch.no_grad():
        model.q_head.weight.normal_()
    return model.eval()


def tiny_solver(model: RecursiveReasoner | None = None, **options: object) -> Solver:
    values = {"task": "sudoku4", "executor": "reference", "batch_size": 2, "batch_invariant": True} | options
    return Solver(model or tiny_model(), **values)


class Played:
    """An executor whose answer after step k is the k-th of `answers`, whatever the puzzle."""

    name = "played"
    batch_invariant, recorded = True, None

    def __init__(self, model: RecursiveReasoner, answers: Sequence[Tensor]) -> None:
        self.model, self.answers = model, answers

    def step(self, latents: Mapping[str, Tensor], x: Tensor) -> ActStep:
        new = {name: latent + 1 for name, latent in latents.items()}
        step = int(new["z_H"][0, 0, 0])
        answer = self.answers[min(step, len(self.answers)) - 1]
        logits = torch.nn.functional.one_hot(answer, self.model.config.vocab_size).float()
        return ActStep(new, logits.expand(len(x), -1, -1), torch.zeros(len(x), 2))


def played_solver(task_name: str, answers: Sequence[str]) -> Solver:
    """A solver of one slot that gives these answers, one a step."""
    task = get_task(task_name)
    config = ModelConfig(vocab_size=task.vocab_size, seq_len=task.seq_len, hidden_size=8, num_heads=1, H_cycles=1,
                         L_cycles=1, layers={"L_level": 1}, halt_max_steps=len(answers))  # fmt: skip
    model = RecursiveReasoner(config).eval()
    for name in ("H_init", "L_init"):
        model.get_buffer(name).zero_()
    solver = Solver(model, task=task, executor="reference", batch_size=1, batch_invariant=True)
    tokens = [torch.from_numpy(task.encode(answer)).long() for answer in answers]
    solver.executor = Played(model, tokens)
    return solver


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines(keepends=True)


def edited(text: list[str], number: int, **fields: object) -> list[str]:
    """The lines of a trace with other fields in one of them."""
    number %= len(text)
    return [*text[:number], json.dumps(json.loads(text[number]) | fields) + "\n", *text[number + 1 :]]


def written(folder: Path, text: list[str]) -> Path:
    (folder / "t.jsonl").write_text("".join(text))
    return folder / "t.jsonl"
