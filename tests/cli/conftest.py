from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from rtm_kernels.cli.main import app
from rtm_kernels.config import ModelConfig
from rtm_kernels.data.sudoku import generate, solve, to_text
from rtm_kernels.engine import executor
from rtm_kernels.engine.executor import ActStep
from rtm_kernels.model import RecursiveReasoner

WIDTH = 16


class OracleExecutor:
    """Plays a model that needs (blanks mod 3) + 1 steps: an exact search gives the answer, a Task still checks it.

    A puzzle without a solution gets digits that break the rules, as an untrained model would answer.
    """

    name = "oracle"
    batch_invariant, recorded = False, None

    def __init__(self, model: RecursiveReasoner) -> None:
        self.model = model

    def step(self, latents: Mapping[str, Tensor], x: Tensor) -> ActStep:
        tokens = (x[..., 0] / WIDTH**0.5).round().long().numpy()
        boards = np.where(tokens > 0, tokens - 1, 0).astype(np.uint8)
        new = {name: latent + 1 for name, latent in latents.items()}
        step = new["z_H"][:, 0, 0].numpy()
        known = (step > (boards == 0).sum(1) % 3)[:, None]
        answers = torch.from_numpy(np.where(known, solve(boards)[1], 1) + 1).long()
        logits = torch.nn.functional.one_hot(answers.clamp(max=10), 11).float()
        return ActStep(new, logits, torch.where(torch.from_numpy(known), 3.0, -3.0).repeat(1, 2))


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved Sudoku model of random weights, its embedding of token t being t in every feature."""
    torch.manual_seed(0)
    config = ModelConfig(vocab_size=11, seq_len=81, hidden_size=WIDTH, num_heads=1, H_cycles=1, L_cycles=1,
                         layers={"L_level": 1}, halt_max_steps=6)  # fmt: skip
    model = RecursiveReasoner(config)
    with torch.no_grad():
        model.embed_tokens.embedding_weight.copy_(torch.arange(11.0)[:, None].expand(-1, WIDTH))
        for name in ("H_init", "L_init"):
            model.get_buffer(name).zero_()
    return model.save_pretrained(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def puzzles() -> list[tuple[str, str]]:
    """Six puzzles with their solutions."""
    boards, solutions = generate(6, seed=11)
    return [(to_text(b), to_text(s)) for b, s in zip(boards, solutions, strict=True)]


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(executor.EXECUTORS, "oracle", executor.Backend(OracleExecutor, lambda model: None))


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
