from __future__ import annotations

from pathlib import Path

import pytest

from rtm_kernels.trace import record
from tests.trace.support import PUZZLES, tiny_model, tiny_solver


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model().save_pretrained(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    """Three puzzles of five steps each, through two slots."""
    path = tmp_path_factory.mktemp("traces") / "t.jsonl"
    record(tiny_solver(), PUZZLES, path, model_name=str(model_folder))
    return path
