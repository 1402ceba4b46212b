"""Small traces of a random Sudoku model of four by four cells."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from rtm_kernels.config import ModelConfig
from rtm_kernels.data.task import Puzzle
from rtm_kernels.engine import Solver
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


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines(keepends=True)


def edited(text: list[str], number: int, **fields: object) -> list[str]:
    """The lines of a trace with other fields in one of them."""
    number %= len(text)
    return [*text[:number], json.dumps(json.loads(text[number]) | fields) + "\n", *text[number + 1 :]]


def written(folder: Path, text: list[str]) -> Path:
    (folder / "t.jsonl").write_text("".join(text))
    return folder / "t.jsonl"
