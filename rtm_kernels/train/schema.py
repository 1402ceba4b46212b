"""What a training recipe is, as frozen, checked dataclasses: objectives, sources, stages, and the recipe of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import pydantic

from rtm_kernels.config import ModelConfig
from rtm_kernels.data.maze import SIDES
from rtm_kernels.errors import one_of, require
from rtm_kernels.losses import COSTS, ACTLossHead, CumulativeHead, Head, MaskedHead, RoundsHead, official_loss_head
from rtm_kernels.model import RecursiveReasoner
from rtm_kernels.ops.token_loss.api import LOSSES
from rtm_kernels.train.schedule import Schedule
from rtm_kernels.train.starts import INIT, STARTS, StartingHead

TASKS: dict[str, Sequence[int]] = {"sudoku": (4, 9, 16, 25), "maze": SIDES}
"""Tasks of sources, and the sides that their puzzles may have."""


@dataclass(frozen=True, kw_only=True)
class DeepSupervision:
    """TRM, HRM, transformer: one ACT step from the carry, its token loss, and BCE of the halting head.

    Halted samples are replaced in the next step. HRM's Q-learning target is the model's `q_continue_target`.
    `starts` weighs the states that they are replaced by, and `noise` is the deviation of normal numbers that are added
    to the latents before each step (`train.starts.StartingHead`).
    """

    kind: Literal["deep_supervision"] = "deep_supervision"
    starts: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(STARTS, 0.0) | {INIT: 1.0})
    noise: float = 0.0

    def __post_init__(self) -> None:
        for name, weight in self.starts.items():
            one_of("starts", name, STARTS)
            require(0 <= weight < math.inf, f"starts.{name}", weight, "a finite weight of at least 0")
        require(sum(self.starts.values()) > 0, "starts", dict(self.starts), "a weight above 0")
        require(0 <= self.noise < math.inf, "noise", self.noise, "a finite number of at least 0")

    def check(self, model: ModelConfig) -> None:
        """Refuse a model that has no halting head, or whose output is not carried to start from (`InputError`)."""
        require(model.has_q_head, "halting", model.halting, "deep supervision trains a halting head")
        carried = model.program.output in model.program.carried
        require(carried or self._plain, "starts", dict(self.starts), f"init alone for arch={model.arch!r}")

    @property
    def _plain(self) -> bool:
        return self.noise == 0 and all(weight == 0 for name, weight in self.starts.items() if name != INIT)

    def head(self, model: RecursiveReasoner, loss: str) -> Head:
        """The official `ACTLossHead`, or with other starts or noise a `StartingHead`."""
        return ACTLossHead(model, loss) if self._plain else StartingHead(model, loss, self.starts, self.noise)


@dataclass(frozen=True, kw_only=True)
class MaskedSupervision:
    """A model without a halting head: one ACT step from the carry, and its token loss by what the puzzle shows.

    Tokens whose input is `open_token` weigh 1 and all others `other`. A solved sample is replaced with probability
    `leave` after each step, every other one at the cap on ACT steps.
    """

    kind: Literal["masked_supervision"] = "masked_supervision"
    open_token: int = 2
    other: float = 0.02
    leave: float = 0.1

    def __post_init__(self) -> None:
        for name in ("other", "leave"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "0 to 1")

    def check(self, model: ModelConfig) -> None:
        """Refuse a model with a halting head, which nothing would train (`InputError`)."""
        one_of("halting", model.halting, ("settle", "fixed"))

    def head(self, model: RecursiveReasoner, loss: str) -> Head:
        """A `MaskedHead` with these weights."""
        return MaskedHead(model, loss, self.open_token, self.other, self.leave)


@dataclass(frozen=True, kw_only=True)
class FinalLoss:
    """RSM: every batch from fresh latents, the loss at the end alone, the warm-up cycles detached.

    With probability `1 - prob_detach_prev_H` the gradient also chains through the outer update before the last cycle.
    Depth grows by the `H_cycles` and `L_cycles` of the stages.
    """

    kind: Literal["final_loss"] = "final_loss"
    prob_detach_prev_H: float = 0.99

    def check(self, model: ModelConfig) -> None:
        """Refuse another architecture than RSM (`InputError`)."""
        one_of("arch", model.arch, ("rsm",))

    def head(self, model: RecursiveReasoner, loss: str) -> Head:
        """The official RSM `LossHead`."""
        return official_loss_head(model, loss, prob_detach_prev_H=self.prob_detach_prev_H)


@dataclass(frozen=True, kw_only=True)
class CumulativeHalting:
    """RTM: up to `halt_max_steps` ACT steps with gradient; `loss = sum_t w_t loss_t + ponder - entropy`.

    w_t are the cumulative halting weights (min(p, 1 - sum), the last one the remainder), the ponder cost is
    `ponder * sum_t (1 - p_t)` over the steps taken (`cost="graves"`: `ponder * (N + R)`, the number of steps and the
    remainder of the last, arXiv 1603.08983), and `entropy` rewards the entropy of w against collapse. Both
    weights rise linearly from 0 over the first `anneal` share of the run. No unit halts before `min_steps`. The cap
    on steps follows the stages.
    """

    kind: Literal["cumulative_halting"] = "cumulative_halting"
    ponder: float = 0.01
    entropy: float = 0.0
    min_steps: int = 1
    anneal: float = 0.3
    cost: str = "continue"

    def __post_init__(self) -> None:
        for name in ("ponder", "entropy"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        one_of("cost", self.cost, COSTS)
        require(self.min_steps >= 1, "min_steps", self.min_steps, "at least 1")
        require(0 <= self.anneal <= 1, "anneal", self.anneal, "0 to 1")

    def check(self, model: ModelConfig) -> None:
        """Refuse a model without cumulative halting (`InputError`)."""
        one_of("halting", model.halting, ("cumulative", "cumulative_token"))

    def head(self, model: RecursiveReasoner, loss: str) -> Head:
        """A `CumulativeHead` with these weights."""
        return CumulativeHead(model, loss, self.ponder, self.entropy, self.min_steps, self.anneal, self.cost)


@dataclass(frozen=True, kw_only=True)
class StochasticRounds:
    """RINS: one pass of `1 + Binomial(r - 1, keep)` rounds, drawn for each batch, with gradient throughout.

    r is the model's `H_cycles`; `keep=1` always takes all of them.
    """

    kind: Literal["stochastic_rounds"] = "stochastic_rounds"
    keep: float = 0.5

    def __post_init__(self) -> None:
        require(0 <= self.keep <= 1, "keep", self.keep, "0 to 1")

    def check(self, model: ModelConfig) -> None:
        """Refuse another architecture than RINS (`InputError`)."""
        one_of("arch", model.arch, ("rins",))

    def head(self, model: RecursiveReasoner, loss: str) -> Head:
        """A `RoundsHead` that keeps rounds with this probability."""
        return RoundsHead(model, loss, self.keep)


Objective = Annotated[
    DeepSupervision | MaskedSupervision | FinalLoss | CumulativeHalting | StochasticRounds,
    pydantic.Field(discriminator="kind"),
]
"""Any of them; the `kind` in a recipe's file says which."""


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
class Recipe(Schedule):
    """What is trained (`model`), on what (`sources` or `data`), by which objective, optimiser and schedule.

    The learning rate is `lr` times the factor of the stage, after a linear warm-up over `warmup_steps`, falling along
    a cosine to `min_lr_ratio` of itself at the last step (1: constant). `muon` orthogonalises the updates of the
    blocks' matrices (torch.optim.Muon, scaled to AdamW's root mean square); every other parameter is then updated by
    AdamW at `aux_lr`. Puzzle embeddings are trained by sign-SGD at `puzzle_lr`. Gradients are added up over
    `accumulate` parts of a batch. `data` is a folder in the official layout ("": still to be given), and `epochs` over
    it set the number of steps; without it the `sources` are drawn from, and no puzzle of `test`, nor a symmetric twin
    of one, is trained on. Every `eval_every` steps and at the end the moving average is measured on up to `eval_limit`
    test puzzles for `eval_steps` ACT steps. `init` names a saved model to start from (bundled name, folder, hub id).
    `symmetric`: see `train.symmetry`. `compile` compiles the blocks; `graph` captures training steps in CUDA graphs
    (with `muon` forward and backward only). `threads` is for the CPU; None takes all cores.
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
    puzzle_lr: float = 1e-2
    puzzle_weight_decay: float = 0.1
    symmetric: bool = False
    loss: str = "stablemax_cross_entropy"
    accumulate: int = 1
    compile: bool = False
    graph: bool = False
    init: str | None = None
    eval_limit: int = 1000
    eval_steps: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("loss", self.loss, LOSSES)
        require(bool(self.stages), "stages", self.stages, "at least one stage")
        require(self.data is not None or self.sources is not None, "sources", None, "either sources or data")
        for name in ("puzzle_lr", "puzzle_weight_decay"):
            value = getattr(self, name)
            require(0 <= value < math.inf, name, value, "a finite number of at least 0")
        for name in ("accumulate", "eval_steps", "eval_limit"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
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
        return self.scheduled(step, self.total_steps, first + (last - first) * within / stage.steps)
