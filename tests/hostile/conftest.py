from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rtm_kernels.config import ModelConfig
from rtm_kernels.model import RecursiveReasoner
from rtm_kernels.pretrained import save_pretrained
from rtm_kernels.trace import record
from tests.trace.support import PUZZLES, tiny_model, tiny_solver


def folder_of(task: str, vocab: int, cells: int, root: Path) -> str:
    """A saved model of random weights."""
    torch.manual_seed(0)
    config = ModelConfig(vocab_size=vocab, seq_len=cells, hidden_size=16, num_heads=1, H_cycles=1, L_cycles=1,
                         expansion=1, layers={"L_level": 1}, halt_max_steps=2)  # fmt: skip
    return str(save_pretrained(RecursiveReasoner(config), root / task))


@pytest.fixture(scope="session")
def hostile_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return folder_of("sudoku", 11, 81, tmp_path_factory.mktemp("hostile"))


@pytest.fixture(scope="session")
def hostile_trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hostile")
    folder = save_pretrained(tiny_model(), root / "tiny")
    record(tiny_solver(), PUZZLES, root / "t.jsonl", model_name=str(folder))
    return root / "t.jsonl"


@pytest.fixture(scope="session")
def hostile_solvers(hostile_model: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    pytest.importorskip("mcp", reason="no package mcp here: hostile tool arguments stay untried")
    from rtm_kernels.agent.solvers import Solvers

    root = tmp_path_factory.mktemp("hostile")
    models = [hostile_model, f"maze={folder_of('maze', 6, 900, root)}", f"arc={folder_of('arc', 12, 900, root)}"]
    with Solvers(models, executor="reference", batch_size=1) as found:
        yield found
