"""What every recipe shares: the optimiser, its schedule, and how often a run looks at its test."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rtm_kernels.errors import one_of, require

OPTIMIZERS = ("adamw", "adam_atan2", "muon")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Fields of every recipe, as `Recipe` describes them."""

    optimizer: str = "adam_atan2"
    lr: float = 1e-4
    aux_lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    warmup_steps: int = 100
    min_lr_ratio: float = 1.0
    grad_clip: float | None = 1.0
    ema: float = 0.999
    seed: int = 0
    threads: int | None = None
    eval_every: int = 0

    def __post_init__(self) -> None:
        one_of("optimizer", self.optimizer, OPTIMIZERS)
        for name in ("lr", "aux_lr", "weight_decay"):
            value = getattr(self, name)
            require(0 <= value < math.inf, name, value, "a finite number of at least 0")
        for name in ("ema", "min_lr_ratio"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "0 to 1")
        require(self.threads is None or self.threads >= 1, "threads", self.threads, "at least 1")

    def scheduled(self, step: int, total_steps: int, ramp: float = 1.0) -> float:
        """`ramp` times the learning-rate factor at step `step` (from 0): a linear warm-up, then along a cosine."""
        done = step + 1
        if done < self.warmup_steps:
            return ramp * done / self.warmup_steps
        progress = (done - self.warmup_steps) / max(1, total_steps - self.warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        return ramp * (self.min_lr_ratio + (1 - self.min_lr_ratio) * cosine)
