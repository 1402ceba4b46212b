"""What a training recipe is: frozen, checked dataclasses, and the learning rate and stage of every step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import pydantic

from rtm_kernels.config import ModelConfig
from rtm_kernels.data.maze import SIDES
from rtm_kernels.errors import one_of, require
from rtm_kernels.ops.token_loss.api import LOSSES
from rtm_kernels.train.objective import DeepSupervision, Objective

OPTIMIZERS = ("adamw", "adam_atan2", "muon")
TASKS: dict[str, Sequence[int]] = {"sudoku": (4, 9, 16, 25), "maze": SIDES}
"""Tasks of sources, and the sides that their puzzles may have."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A pool of puzzles of side `size`: generated from a seed, or read from a csv file with solutions.

    `difficulty` and `clues` say which Sudokus are generated; `path_cells`, which mazes: the least cells on a shortest
    path. With `hints` each puzzle that is drawn has that many more cells of its solution filled in, from the first
    number to the second: puzzles of every difficulty below that of a list.
    """

    __pydantic_config__ = pydantic.ConfigDict(extra="forbid", strict=True)

    task: str = "sudoku"
    difficulty: str = "singles"
    clues: tuple[int, int] | None = None
    path_cells: int | None = None
    count: int = 30_000
    seed: int = 0
    path: str | None = None
    size: int = 9
    hints: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        one_of("task", self.task, TASKS)
        require(self.count >= 1, "count", self.count, "at least 1")
        require(0 <= self.hints[0] <= self.hints[1], "hints", self.hints, "two numbers from 0, in order")
        sides = "5 to 64" if self.task == "maze" else ", ".join(map(str, TASKS[self.task]))
        require(self.size in TASKS[self.task], "size", self.size, f"a side of a {self.task}: {sides}")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """`steps` optimiser steps on a mix of sources (name -> weight), with a batch size and a cap on ACT steps.

    `lr` holds the first and the last learning-rate factor of the stage; it changes linearly between them. `H_cycles`
    and `L_cycles` override the model's, so that stages of growing depth are data too.
    """

    steps: int
    batch_size: int
    mix: Mapping[str, float]
    halt_max_steps: int = 16
    lr: tuple[float, float] = (1.0, 1.0)
    H_cycles: int | None = None
    L_cycles: int | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "halt_max_steps"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        require(all(weight >= 0 for weight in self.mix.values()), "mix", self.mix, "weights of at least 0")

    def model(self, config: ModelConfig) -> ModelConfig:
        """The model's config as this stage trains it."""
        return replace(
            config,
            halt_max_steps=self.halt_max_steps,
            H_cycles=self.H_cycles or config.H_cycles,
            L_cycles=self.L_cycles or config.L_cycles,
        )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is trained (`model`), on what (`sources` or `data`), by which objective, optimiser and schedule.

    The learning rate is `lr` times the factor of the stage, after a linear warm-up over `warmup_steps`, falling along
    a cosine to `min_lr_ratio` of itself at the last step (1: constant). `muon` orthogonalises the updates of the
    blocks' matrices (torch.optim.Muon, scaled to AdamW's root mean square); every other parameter is then updated by
    AdamW at `aux_lr`. Puzzle embeddings are trained by sign-SGD at `puzzle_lr`. Each batch is worked off in
    `accumulate` parts. `data` is a folder in the official layout ("": still to be given), and `epochs` over it set
    the number of steps; without it the `sources` are drawn from, and `test` is a source of which no puzzle,
    nor a symmetric twin of one, is trained on. Every `eval_every` steps,
    and at the end, the moving average is measured on up to `eval_limit` test puzzles for `eval_steps` ACT steps.
    `init` starts from the weights of a saved model of the same sizes (bundled name, folder or hub id), else from random
    ones. `symmetric` keeps the weights in the subspace that commutes with the symmetries of the task
    (`train.symmetry`). `compile` compiles the blocks; `graph` captures training steps in CUDA graphs: forward and
    backward, and, but for `muon`, all that follows up to the moving average. `threads` is for the CPU, where tiny
    models gain nothing from more than one; None takes all cores.
    """

    __pydantic_config__ = pydantic.ConfigDict(extra="forbid", strict=True)

    model: ModelConfig
    stages: tuple[Stage, ...]
    sources: Mapping[str, Source] | None = None
    data: str | None = None
    epochs: int | None = None
    augment: bool = False
    test: Source | None = None
    objective: Objective = field(default_factory=DeepSupervision)
    optimizer: str = "adam_atan2"
    lr: float = 1e-4
    aux_lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    puzzle_lr: float = 1e-2
    puzzle_weight_decay: float = 0.1
    warmup_steps: int = 100
    min_lr_ratio: float = 1.0
    grad_clip: float | None = 1.0
    ema: float = 0.999
    symmetric: bool = False
    loss: str = "stablemax_cross_entropy"
    accumulate: int = 1
    compile: bool = False
    graph: bool = False
    seed: int = 0
    init: str | None = None
    threads: int | None = None
    eval_every: int = 0
    eval_limit: int = 1000
    eval_steps: int = 16

    def __post_init__(self) -> None:
        one_of("optimizer", self.optimizer, OPTIMIZERS)
        one_of("loss", self.loss, LOSSES)
        require(bool(self.stages), "stages", self.stages, "at least one stage")
        require(self.data is not None or self.sources is not None, "sources", None, "either sources or data")
        for name in ("lr", "aux_lr", "puzzle_lr", "weight_decay", "puzzle_weight_decay"):
            value = getattr(self, name)
            require(0 <= value < math.inf, name, value, "a finite number of at least 0")
        for name in ("ema", "min_lr_ratio"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "0 to 1")
        for name in ("accumulate", "eval_steps", "eval_limit", "threads"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "at least 1")
        for stage in self.stages:
            divides = stage.batch_size % self.accumulate == 0
            require(divides, "accumulate", self.accumulate, f"a divisor of batch_size={stage.batch_size}")
            stage.model(self.model)
            for name in stage.mix if self.data is None else ():
                one_of("mix", name, self.sources or ())
        sizes = sorted(
            {source.size for source in [*(self.sources or {}).values(), *([self.test] if self.test else [])]}
        )
        allowed = "one task and size for all sources and the test"
        require(len(sizes) < 2 or self.model.any_length, "sources", sizes, allowed)
        self.objective.check(self.model)

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
        ramp = first + (last - first) * within / stage.steps
        done = step + 1
        if done < self.warmup_steps:
            return ramp * done / self.warmup_steps
        progress = (done - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        return ramp * (self.min_lr_ratio + (1 - self.min_lr_ratio) * cosine)
