"""One table of cases per op: what the gates, the proof and the tuner run."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch

from tests.cases import attention_norm, conv, halting, optimisers, persistent, queue, swiglu, token_loss
from tests.cases.case import Case, Op, Tuned

OPS: dict[str, Op] = {
    "swiglu": swiglu.OP,
    "attention_norm": attention_norm.OP,
    "conv_swiglu_norm": conv.OP,
    "halting": halting.OP,
    "token_loss": token_loss.OP,
    "adam_atan2": optimisers.OP,
    "persistent": persistent.OP,
    "queue": queue.OP,
}
"""Folder of the kernels -> the cases."""
DRAWS = [draw for op in OPS.values() for draw in op.drawn]
DIFFERENTIABLE = ("swiglu_norm", "mixer_norm", "attention_norm", "conv_swiglu_norm", "token_loss")


@dataclass(frozen=True)
class Drawn:
    """A random configuration: the case, the dtype that it runs in, and the largest block of its kernels."""

    case: Case
    dtype: torch.dtype
    tile: int


def drawn(seed: int) -> Drawn:
    """The configuration of one seed."""
    rng = random.Random(seed)
    case, dtype = DRAWS[seed % len(DRAWS)](rng)
    return Drawn(case, dtype, rng.choice((32, 32, 64, 256)))


def gate_cases() -> list[Case]:
    """Every case of the interpreter gate."""
    return [case for op in OPS.values() for case in op.gate]


def small_cases() -> list[Case]:
    """A few configurations of each op; together they launch every kernel."""
    return [case for op in OPS.values() for case in op.small]


def by_batch() -> dict[str, Callable[[int], object]]:
    """The launchers at official sizes on meta tensors, as functions of the batch size alone."""
    return {name: use for op in OPS.values() for name, use in op.by_batch.items()}


def tuned() -> list[Tuned]:
    """What launch rows are tuned for, what most of the time is spent in first."""
    return [use for op in OPS.values() for use in op.tuned]


def name_of(case: Case) -> str:
    """A test id."""
    return f"{case.op}-{case.name}".replace(" ", "")
