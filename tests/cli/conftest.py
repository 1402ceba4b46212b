from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rtm_kernels.cli.main import app
from rtm_kernels.data.sudoku import generate, to_text
from tests.oracle import oracle, saved

__all__ = ["oracle"]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved Sudoku model of random weights."""
    return saved("sudoku", tmp_path_factory.mktemp("models"), halt_max_steps=6)


@pytest.fixture(scope="session")
def puzzles() -> list[tuple[str, str]]:
    """Six puzzles with their solutions."""
    boards, solutions = generate(6, seed=11)
    return [(to_text(b), to_text(s)) for b, s in zip(boards, solutions, strict=True)]


@pytest.fixture
def rtm(model_folder: Path) -> Callable[..., Any]:
    """Runs `rtm` in this process with the tiny model; returns its result."""

    def run(command: str, *arguments: str, **options: Any) -> Any:
        extra = ["--model", str(model_folder)] if command in ("solve", "eval") else []
        return invoke(command, *extra, *arguments, **options)

    return run


def invoke(*arguments: object, **options: Any) -> Any:
    """Run `rtm` in this process."""
    return CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False, **options)


def refused(result: Any, named: str) -> None:
    """Bad input ends in exit code 2 and one line that says what is wrong, and prints nothing else."""
    assert result.exit_code == 2 and result.stdout == "" and result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: ") and named in result.stderr and result.stderr[:-1].isprintable()


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]
