"""The README's own task is run as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from rtm_kernels.config import ModelConfig
from rtm_kernels.data import task as tasks
from rtm_kernels.engine import Solver
from rtm_kernels.model import RecursiveReasoner
from rtm_kernels.trace import read_trace, record

README = Path(__file__).resolve().parents[2] / "README.md"


def test_the_latin_square_of_the_readme(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)
    (code,) = [block for block in blocks if "class LatinSquare" in block]
    assert len(code.splitlines()) < 30
    monkeypatch.setattr(tasks, "_TASKS", {k: v for k, v in tasks._TASKS.items() if k != "latin4"})
    exec(compile(code, str(README), "exec"), {})
    task = tasks.get_task("latin4")
    puzzle, answer = "1...2...3...4...", "1234234134124123"
    assert task.verify(puzzle, answer).verified
    assert task.verify(puzzle, "2" + answer[1:]).reason == "a given cell was changed"
    assert "repeats a digit" in task.verify(puzzle, answer[:-1] + "4").reason
    torch.manual_seed(0)
    config = ModelConfig(vocab_size=task.vocab_size, seq_len=16, hidden_size=16, num_heads=1, H_cycles=1, L_cycles=1,
                         layers={"L_level": 1}, halt_max_steps=2)  # fmt: skip
    solver = Solver(RecursiveReasoner(config), task="latin4", batch_size=2, executor="reference")
    (solution,) = solver.solve([puzzle])
    assert (solution.status, solution.task) == ("unverified", "latin4")
    record(solver, [puzzle], tmp_path / "t.jsonl", model_name="random")
    assert read_trace(tmp_path / "t.jsonl").header["task"] == "latin4"
