"""Training recipes as data: what is trained, on which puzzles, in which stages, by which optimiser."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rtm_kernels.config import ModelConfig
from rtm_kernels.errors import one_of, require

OPTIMIZERS = ("adamw", "adam_atan2", "muon")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A bank of Sudoku puzzles: generated from a seed at a difficulty, or read from a csv file with solutions."""

    difficulty: str = "singles"
    clues: tuple[int, int] | None = None
    count: int = 30_000
    seed: int = 0
    path: str | None = None


@dataclass(frozen=True, kw_only=True)
class Stage:
    """`steps` optimiser steps on a mix of sources (name -> weight), with a batch size and a cap on ACT steps.

    `lr` holds the first and the last learning-rate factor of the stage; it changes linearly between them.
    """

    steps: int
    batch_size: int
    mix: Mapping[str, float]
    halt_max_steps: int = 16
    lr: tuple[float, float] = (1.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Deep supervision with the ACT carry: every ACT step is one optimiser step, halted samples are replaced.

    The learning rate is `lr` times the factor of the stage, after a linear warm-up over `warmup_steps`. `muon`
    orthogonalises the updates of the blocks' matrices (torch.optim.Muon, scaled to AdamW's root mean square); every
    other parameter is then updated by AdamW at `aux_lr`.
    """

    model: ModelConfig
    sources: Mapping[str, Source]
    stages: tuple[Stage, ...]
    optimizer: str = "adam_atan2"
    lr: float = 1e-4
    aux_lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    warmup_steps: int = 100
    grad_clip: float = 1.0
    ema: float = 0.999
    loss: str = "stablemax_cross_entropy"
    compile: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        one_of("optimizer", self.optimizer, OPTIMIZERS)
        require(bool(self.stages), "stages", self.stages, "at least one stage")
        for stage in self.stages:
            for name in stage.mix:
                one_of("mix", name, self.sources)

    @property
    def total_steps(self) -> int:
        """Optimiser steps over all stages."""
        return sum(stage.steps for stage in self.stages)

    def stage_at(self, step: int) -> tuple[Stage, int]:
        """The stage that optimiser step `step` (from 0) belongs to, and the step within it."""
        for stage in self.stages[:-1]:
            if step < stage.steps:
                return stage, step
            step -= stage.steps
        return self.stages[-1], step

    def lr_factor(self, step: int) -> float:
        """Learning-rate factor at optimiser step `step` (from 0)."""
        stage, within = self.stage_at(step)
        first, last = stage.lr
        return min(1.0, (step + 1) / max(1, self.warmup_steps)) * (first + (last - first) * within / stage.steps)


SUDOKU_SMALL = Recipe(
    model=ModelConfig(
        vocab_size=11, seq_len=81, hidden_size=128, num_heads=4, layers={"L_level": 2}, H_cycles=2, L_cycles=2,
        halt_max_steps=16, forward_dtype="bfloat16",
    ),
    sources={
        "easy": Source(difficulty="singles", clues=(26, 40), count=40_000, seed=101),
        "sparse": Source(difficulty="singles", clues=(22, 28), count=20_000, seed=102),
        "locked": Source(difficulty="locked", count=2_000, seed=103),
        "subsets": Source(difficulty="subsets", count=1_000, seed=104),
        "search": Source(difficulty="search", count=1_000, seed=105),
    },
    stages=(
        Stage(steps=1592, batch_size=64, mix={"easy": 1.0}, halt_max_steps=4),
        Stage(steps=1_400, batch_size=128, mix={"easy": 0.8, "sparse": 0.2}, halt_max_steps=8, lr=(0.6, 0.3)),
        Stage(
            steps=2_600, batch_size=128, lr=(0.3, 0.01),
            mix={"easy": 0.4, "sparse": 0.25, "locked": 0.1, "subsets": 0.05, "search": 0.2},
        ),
    ),
    optimizer="muon", lr=4e-3, ema=0.995, warmup_steps=50, compile=True,
)  # fmt: skip

PRESETS: dict[str, Recipe] = {"sudoku-small": SUDOKU_SMALL}
"""Recipes by the name that `rtm train` takes."""
