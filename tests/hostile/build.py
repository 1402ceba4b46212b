"""The targets by name, each built in a folder of its own; what needs an extra is imported when it is built."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from rtm_kernels.config import ModelConfig
from rtm_kernels.model import RecursiveReasoner
from rtm_kernels.trace import record
from tests.hostile import files, targets
from tests.hostile.targets import Target
from tests.trace.support import PUZZLES, tiny_model, tiny_solver


def saved(task: str, vocab: int, cells: int, root: Path) -> str:
    """A saved model of random weights."""
    torch.manual_seed(0)
    config = ModelConfig(vocab_size=vocab, seq_len=cells, hidden_size=16, num_heads=1, H_cycles=1, L_cycles=1,
                         expansion=1, layers={"L_level": 1}, halt_max_steps=2)  # fmt: skip
    return str(RecursiveReasoner(config).save_pretrained(root / task))


def recorded(root: Path) -> Path:
    """A trace of a model that lies beside it."""
    folder = tiny_model().save_pretrained(root / "tiny")
    record(tiny_solver(), PUZZLES, root / "t.jsonl", model_name=str(folder))
    return root / "t.jsonl"


def scratch(root: Path) -> Path:
    path = root / "scratch"
    path.mkdir()
    return path


def tool_arguments(root: Path) -> Target:
    from rtm_kernels.agent.solvers import Solvers

    tasks = (("sudoku", 11, 81), ("maze", 6, 900), ("arc", 12, 900))
    models = [f"{task}={saved(task, vocab, cells, root)}" for task, vocab, cells in tasks]
    return targets.tool_arguments(Solvers(models, executor="reference", batch_size=1))


def http(root: Path) -> Target:
    from tests.hostile.http import http

    return http()


TARGETS: dict[str, Callable[[Path], Target]] = {
    "model_files": lambda root: files.model_files(saved("sudoku4", 6, 16, root), scratch(root)),
    "data_sets": lambda root: files.data_sets(scratch(root)),
    "trace_files": lambda root: targets.trace_files(recorded(root), scratch(root)),
    "command_line": lambda root: targets.command_line(saved("sudoku", 11, 81, root), recorded(root), scratch(root)),
    "tool_arguments": tool_arguments,
    "http": http,
}
