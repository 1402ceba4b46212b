"""What a recipe of a text model is, and the named ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import pydantic

from rtm_kernels.config import ModelConfig
from rtm_kernels.errors import require
from rtm_kernels.text.config import SYMBOLS, TextConfig
from rtm_kernels.train.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class TextRecipe(Schedule):
    """A text model trained on `batch_size` rows of words for `steps` steps; the loss is the mean over symbols.

    `data`: a file or folder of UTF-8 text (`train.corpus`), or `stdlib`, the sources of this Python's standard library.
    The share `held_out` of the documents is never trained on; on up to `eval_bytes` of it the moving average is
    measured every `eval_every` steps and at the end. A model of fixed rounds takes 1 + Binomial(rounds - 1, `keep`) of
    them in a step. One whose words halt pays `ponder` times the mean of steps and remainder of its words
    (arXiv 1603.08983), a weight that rises linearly from 0 over the first `anneal` share of the run. The rest as in
    `Recipe`.
    """

    __pydantic_config__ = pydantic.ConfigDict(extra="forbid", strict=True)
    graph: ClassVar[bool] = False
    puzzle_lr: ClassVar[float] = 0.0
    puzzle_weight_decay: ClassVar[float] = 0.0
    accumulate: ClassVar[int] = 1

    model: TextConfig
    data: str = "stdlib"
    steps: int
    batch_size: int = 16
    keep: float = 1.0
    ponder: float = 0.01
    anneal: float = 0.3
    held_out: float = 0.02
    eval_bytes: int = 100_000

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "batch_size", "eval_bytes"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("keep", "anneal"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "0 to 1")
        require(0 < self.held_out < 1, "held_out", self.held_out, "a share between 0 and 1")
        require(0 <= self.ponder < math.inf, "ponder", self.ponder, "a finite number of at least 0")

    @property
    def total_steps(self) -> int:
        """Optimiser steps."""
        return self.steps

    def lr_factor(self, step: int) -> float:
        """Learning-rate factor at optimiser step `step` (from 0)."""
        return self.scheduled(step, self.steps)


TEXT_SMALL = TextRecipe(
    model=TextConfig(
        backbone=ModelConfig(
            vocab_size=SYMBOLS, seq_len=128, arch="rins", hidden_size=160, num_heads=4, layers={"A": 2, "B": 2},
            H_cycles=2, L_cycles=1, mixer="attention", causal=True, pos_encodings="rope", qk_norm=True, inner_size=448,
            halting="fixed", adapter_rank=8,
        ),
    ),
    steps=1500, batch_size=8, keep=0.5, optimizer="muon", lr=4e-3, aux_lr=4e-3, min_lr_ratio=0.05, warmup_steps=50,
    ema=0.99, eval_every=250,
)  # fmt: skip

TEXT_PRESETS: dict[str, TextRecipe] = {"text-small": TEXT_SMALL}
"""Recipes by the name that `rtm train` takes."""

TEXT_ABOUT = {"text-small": "text or code on a CPU, 17 minutes; Python's standard library, or data=FILE or FOLDER"}
