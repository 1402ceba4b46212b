"""A recipe that trains in milliseconds, and what the tests of the trainer share."""

from __future__ import annotations

import torch

from rtm_kernels.config import ModelConfig
from rtm_kernels.train.loop import Trainer
from rtm_kernels.train.schema import Recipe, Source, Stage

MODEL = ModelConfig(vocab_size=6, seq_len=16, hidden_size=16, expansion=1, num_heads=2, layers={"L_level": 1},
                    H_cycles=2, L_cycles=1)  # fmt: skip
TINY = Recipe(
    model=MODEL,
    sources={"all": Source(size=4, clues=(8, 12), count=16, seed=1)},
    stages=(
        Stage(steps=3, batch_size=4, mix={"all": 1.0}, halt_max_steps=2),
        Stage(steps=5, batch_size=6, mix={"all": 1.0}, halt_max_steps=3, lr=(0.5, 0.0)),
    ),
    optimizer="adamw",
    lr=1e-2,
    warmup_steps=2,
)


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Copies of the weights and of their moving average."""
    own = {f"model.{k}": v.clone() for k, v in trainer.model.state_dict().items()}
    return own | {f"average.{k}": v.clone() for k, v in trainer.average.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of tensors are equal in every bit."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def fit(trainer: Trainer) -> list[dict[str, float]]:
    """Train to the end; the metrics of every step."""
    return [trainer.step() for _ in range(trainer.recipe.total_steps)]
