"""Models of random weights for every task, an executor that knows the answers, and an MCP client of both."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from torch import Tensor

from rtm_kernels.config import ModelConfig
from rtm_kernels.data import maze, sudoku
from rtm_kernels.engine import executor
from rtm_kernels.model import RecursiveReasoner

pytest.importorskip(
    "mcp", reason="no package mcp here: the agent's tools stay unproven (pip install 'rtm-kernels[mcp]')"
)

WIDTH = 16
SIZES = {"sudoku": (11, 81), "maze": (6, 900), "arc": (12, 900)}
Found = TypeVar("Found")


class Oracle:
    """Answers in its second step: a Sudoku and a maze by search, an ARC grid by itself."""

    name, batch_invariant = "oracle", True

    def __init__(self, model: RecursiveReasoner) -> None:
        self.vocab = model.config.vocab_size

    def step(self, latents: Mapping[str, Tensor], x: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor | None]:
        tokens = (x[..., 0] / WIDTH**0.5).round().long().numpy()
        new = {name: latent + 1 for name, latent in latents.items()}
        known = new["z_H"][:, 0, 0].numpy() >= 2
        answers = np.where(known[:, None], self.answers(tokens), tokens)
        logits = torch.nn.functional.one_hot(torch.from_numpy(answers), self.vocab).float()
        return new, logits, torch.where(torch.from_numpy(known), 3.0, -3.0)[:, None].repeat(1, 2)

    def answers(self, tokens: np.ndarray) -> np.ndarray:
        if self.vocab == SIZES["sudoku"][0]:
            boards = np.where(tokens > 0, tokens - 1, 0).astype(np.uint8)
            return sudoku.solve(boards)[1].astype(np.int64) + 1
        if self.vocab == SIZES["maze"][0]:
            fields = tokens.reshape(-1, 30, 30).copy()
            there = maze.shortest(fields) > 0
            fields[there] = maze.solve(fields[there])
            return fields.reshape(tokens.shape)
        return tokens


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A saved model of random weights per task, its embedding of token t being t in every feature."""
    folders = {}
    for task, (vocab, cells) in SIZES.items():
        torch.manual_seed(0)
        model = RecursiveReasoner(ModelConfig(
            vocab_size=vocab, seq_len=cells, hidden_size=WIDTH, num_heads=1, H_cycles=1, L_cycles=1, expansion=1,
            layers={"L_level": 1}, halt_max_steps=4,
        ))  # fmt: skip
        with torch.no_grad():
            model.embed_tokens.embedding_weight.copy_(torch.arange(float(vocab))[:, None].expand(-1, WIDTH))
            for name in ("H_init", "L_init"):
                model.get_buffer(name).zero_()
        folders[task] = model.save_pretrained(tmp_path_factory.mktemp("agents") / task)
    return folders


@pytest.fixture(scope="session")
def oracle() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(executor.EXECUTORS, "oracle", executor.Backend(Oracle, lambda model: None))
        yield


@pytest.fixture(scope="session")
def solvers(model_folders: dict[str, Path], oracle: None) -> Iterator[Any]:
    """All three tasks, played by the oracle."""
    from rtm_kernels.agent.solvers import Solvers

    with Solvers([f"{task}={folder}" for task, folder in model_folders.items()], executor="oracle") as found:
        yield found


def with_client(target: Any, use: Callable[[Any], Awaitable[Found]]) -> Found:
    """What `use` returns, given an MCP client that is connected to `target`."""
    from mcp import Client

    async def main() -> Found:
        async with Client(target, read_timeout_seconds=60) as client:
            return await use(client)

    return asyncio.run(main())


@pytest.fixture
def ask(solvers: Any) -> Callable[..., list[Any]]:
    """Calls tools of an in-process server, each given as (name, arguments)."""
    from rtm_kernels.agent.server import build

    async def use(client: Any, calls: Any) -> list[Any]:
        return [await client.call_tool(name, arguments) for name, arguments in calls]

    return lambda *calls: with_client(build(solvers), lambda client: use(client, calls))


@pytest.fixture
def call(ask: Callable[..., list[Any]]) -> Callable[..., Any]:
    """Calls one tool."""
    return lambda name, **arguments: ask((name, arguments))[0]
