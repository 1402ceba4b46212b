"""What an observer of the engine sees: every ACT step of every sample, as it is taken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Step:
    """One ACT step of one sample. `number` counts from 1; `answer` [seq_len] holds the tokens decoded after it, under
    `cumulative_token` those of halted tokens as they were when they halted.

    `q` are the halting head's logits, `halt_probability` is p of this step and `accumulated` the sum of p so far, under
    `cumulative_token` the smallest of the tokens' sums. `change` is |dz| / |z| of each carried latent z. `active`
    samples took this step together, `seconds` after this one entered the batch.
    """

    key: Any
    number: int
    answer: np.ndarray
    finite: bool
    q: tuple[float, ...] | None
    halt_probability: float | None
    accumulated: float
    change: dict[str, float]
    active: int
    seconds: float


Observer = Callable[[Step], None]
