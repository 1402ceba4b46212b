"""Training objectives as data: what one optimiser step runs and minimises. Each builds its loss head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import pydantic

from rtm_kernels.config import ModelConfig
from rtm_kernels.errors import one_of, require
from rtm_kernels.losses import COSTS, ACTLossHead, CumulativeHead, Head, MaskedHead, RoundsHead, official_loss_head
from rtm_kernels.model import RecursiveReasoner


@dataclass(frozen=True, kw_only=True)
class DeepSupervision:
    """TRM, HRM, transformer: one ACT step from the carry, its token loss, and BCE of the halting head.

    Halted samples are replaced in the next step. HRM's Q-learning target is the model's `q_continue_target`.
    """

    kind: Literal["deep_supervision"] = "deep_supervision"

    def check(self, model: ModelConfig) -> None:
        """Refuse a model that has no halting head (`InputError`)."""
        require(model.has_q_head, "halting", model.halting, "deep supervision trains a halting head")

    def head(self, model: RecursiveReasoner, loss: str) -> Head:
        """The official `ACTLossHead`."""
        return ACTLossHead(model, loss)


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
