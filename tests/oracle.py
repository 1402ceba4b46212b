"""Saved models of random weights for the tasks, and an executor that knows the answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rtm_kernels.config import ModelConfig
from rtm_kernels.data import maze, sudoku
from rtm_kernels.engine import executor
from rtm_kernels.model import RecursiveReasoner

WIDTH = 16
SIZES = {"sudoku4": (6, 16), "sudoku": (11, 81), "maze": (6, 900), "arc": (12, 900)}


def saved(task: str, folder: Path, halt_max_steps: int = 4) -> Path:
    """A saved model of `SIZES[task]`, its embedding of token t being t in every feature."""
    torch.manual_seed(0)
    vocab, cells = SIZES[task]
    model = RecursiveReasoner(ModelConfig(
        vocab_size=vocab, seq_len=cells, hidden_size=WIDTH, num_heads=1, H_cycles=1, L_cycles=1, expansion=1,
        layers={"L_level": 1}, halt_max_steps=halt_max_steps,
    ))  # fmt: skip
    with torch.no_grad():
        model.embed_tokens.embedding_weight.copy_(torch.arange(float(vocab))[:, None].expand(-1, WIDTH))
        for name in ("H_init", "L_init"):
            model.get_buffer(name).zero_()
    return model.save_pretrained(folder / task)


class Oracle:
    """Answers a Sudoku in step (blanks mod 3) + 1, a maze in step 2, both by search, and an ARC grid by itself.

    Before that, and for a Sudoku without a solution, its digits break the rules, as those of an untrained model do.
    """

    name, batch_invariant, recorded, check = "oracle", True, None, staticmethod(lambda: None)

    def __init__(self, model: RecursiveReasoner) -> None:
        self.vocab = model.config.vocab_size

    def step(self, latents: Mapping[str, Tensor], x: Tensor) -> executor.ActStep:
        tokens = (x[..., 0] / WIDTH**0.5).round().long().numpy()
        new = {name: latent + 1 for name, latent in latents.items()}
        before, answers, needed = tokens, tokens, np.full(len(tokens), 2)
        if self.vocab == SIZES["sudoku"][0]:
            boards = np.where(tokens > 0, tokens - 1, 0).astype(np.uint8)
            before, answers, needed = np.full_like(tokens, 2), sudoku.solve(boards)[1], (boards == 0).sum(1) % 3 + 1
            answers = answers.astype(np.int64) + 1
        elif self.vocab == SIZES["maze"][0]:
            fields = tokens.reshape(-1, 30, 30).copy()
            there = maze.shortest(fields) > 0
            fields[there] = maze.solve(fields[there])
            answers = fields.reshape(tokens.shape)
        known = (new["z_H"][:, 0, 0].numpy() >= needed)[:, None]
        answers = torch.from_numpy(np.where(known, answers, before)).clamp(max=self.vocab - 1)
        logits = torch.nn.functional.one_hot(answers, self.vocab).float()
        return executor.ActStep(new, logits, torch.where(torch.from_numpy(known), 3.0, -3.0).repeat(1, 2))


@pytest.fixture(scope="session")
def oracle() -> Iterator[None]:
    """Adds the executor `oracle`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(executor.EXECUTORS, "oracle", executor.Backend(Oracle, lambda model: None))
        yield
