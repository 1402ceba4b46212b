"""The targets by name, each built in a folder of its own; each imports only what it attacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.hostile.targets import Target


def saved(task: str, vocab: int, cells: int, root: Path) -> str:
    """A saved model of random weights."""
    import torch

    from rtm_kernels.config import ModelConfig
    from rtm_kernels.model import RecursiveReasoner

    torch.manual_seed(0)
    config = ModelConfig(vocab_size=vocab, seq_len=cells, hidden_size=16, num_heads=1, H_cycles=1, L_cycles=1,
                         expansion=1, layers={"L_level": 1}, halt_max_steps=2)  # fmt: skip
    return str(RecursiveReasoner(config).save_pretrained(root / task))


def recorded(root: Path) -> Path:
    """A trace of a model that lies beside it."""
    from rtm_kernels.trace import record
    from tests.trace.support import PUZZLES, tiny_model, tiny_solver

    folder = tiny_model().save_pretrained(root / "tiny")
    record(tiny_solver(), PUZZLES, root / "t.jsonl", model_name=str(folder))
    return root / "t.jsonl"


def scratch(root: Path) -> Path:
    path = root / "scratch"
    path.mkdir()
    return path


@contextmanager
def model_files(root: Path) -> Iterator[Target]:
    from tests.hostile import files

    yield files.model_files(saved("sudoku4", 6, 16, root), scratch(root))


@contextmanager
def data_sets(root: Path) -> Iterator[Target]:
    from tests.hostile import files

    yield files.data_sets(scratch(root))


@contextmanager
def trace_files(root: Path) -> Iterator[Target]:
    from tests.hostile import targets

    yield targets.trace_files(recorded(root), scratch(root))


@contextmanager
def command_line(root: Path) -> Iterator[Target]:
    from tests.hostile import targets

    yield targets.command_line(saved("sudoku", 11, 81, root), recorded(root), scratch(root))


@contextmanager
def tool_arguments(root: Path) -> Iterator[Target]:
    from rtm_kernels.agent.solvers import Solvers
    from tests.hostile import targets

    tasks = (("sudoku", 11, 81), ("maze", 6, 900), ("arc", 12, 900))
    models = [f"{task}={saved(task, vocab, cells, root)}" for task, vocab, cells in tasks]
    with Solvers(models, executor="reference", batch_size=1) as found:
        yield targets.tool_arguments(found)


@contextmanager
def http(root: Path) -> Iterator[Target]:
    from tests.hostile.http import http

    yield http()


TARGETS: dict[str, Callable[[Path], AbstractContextManager[Target]]] = {
    "model_files": model_files, "data_sets": data_sets, "trace_files": trace_files, "command_line": command_line,
    "tool_arguments": tool_arguments, "http": http,
}  # fmt: skip
