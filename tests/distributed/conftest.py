from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rtm_kernels.config import ModelConfig
from rtm_kernels.data.sudoku import generate, to_text
from rtm_kernels.model import RecursiveReasoner


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of 9 x 9 Sudoku of random weights whose head halts some puzzles early."""
    torch.manual_seed(3)
    model = RecursiveReasoner(ModelConfig(
        vocab_size=11, seq_len=81, hidden_size=16, num_heads=1, H_cycles=1, L_cycles=1, layers={"L_level": 1},
    ))  # fmt: skip
    with torch.no_grad():
        model.q_head.weight.normal_(std=1.5)
        model.q_head.bias.fill_(-3.0)
    return str(model.save_pretrained(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="session")
def puzzles() -> list[tuple[str, str]]:
    """Forty puzzles with their solutions."""
    boards, solutions = generate(40, seed=21)
    return [(to_text(b), to_text(s)) for b, s in zip(boards, solutions, strict=True)]


@pytest.fixture(scope="session")
def csv_file(tmp_path_factory: pytest.TempPathFactory, puzzles: list[tuple[str, str]]) -> Path:
    path = tmp_path_factory.mktemp("data") / "puzzles.csv"
    path.write_text("puzzle,solution\n" + "".join(f"{p},{s}\n" for p, s in puzzles))
    return path
