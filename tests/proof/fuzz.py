"""Random configurations of every op, held to the interpreter gate's budget.

python -m tests.proof.fuzz SEED [SEED ...]      # what a failing seed draws, and how it fails
"""

from __future__ import annotations

import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch

from rtm_kernels import program as programs
from rtm_kernels.ops.token_loss.api import LOSSES
from tests.gates import (
    interpret_adam_atan2,
    interpret_attention_norm,
    interpret_halting,
    interpret_mixer_norm,
    interpret_persistent,
    interpret_swiglu_norm,
    interpret_token_loss,
)
from tests.gates.interpret_gate import OpCase, check
from tests.interpreter import take_loop_bounds
from tests.ops.support import LAYOUTS
from tests.proof.tiles import tiles

SIZES = (1, 2, 3, 5, 7, 8, 13, 15, 16, 17, 24, 31, 32, 33, 47, 48, 63, 64, 65, 96, 97, 127, 128, 129, 131)
MOST = 6000
"""Elements of a latent; a larger draw is drawn again."""
FAR, AGAIN = 4.0, 1 << 20
"""In a tensor of few elements the baseline may be exact by luck: below FAR times the budget other values decide."""
HALVES = (torch.float32, torch.float16)
PROGRAMS = (programs.trm(1, 1), programs.trm_singlez(1, 1), programs.hrm(1, 1), programs.rtm(2), programs.transformer(),
            programs.rins(2), programs.rsm(1, 1))  # fmt: skip


@dataclass(frozen=True)
class Drawn:
    """A configuration: the case, the dtype that it runs in, and the largest block of its kernels."""

    case: OpCase
    dtype: torch.dtype
    tile: int


def shape(rng: random.Random, most: int = MOST) -> tuple[int, int, int]:
    """B, L and D of a small latent."""
    while True:
        found = (rng.choice((1, 1, 2, 3, 5)), rng.choice(SIZES), rng.choice(SIZES))
        if found[0] * found[1] * found[2] <= most:
            return found


def swiglu(rng: random.Random) -> tuple[OpCase, torch.dtype]:
    row = (shape(rng), rng.choice(SIZES), rng.randint(0, 2), rng.choice(LAYOUTS))
    return interpret_swiglu_norm.case(*row), rng.choice(HALVES)


def mixer(rng: random.Random) -> tuple[OpCase, torch.dtype]:
    row = (rng.choice(SIZES), rng.choice(("sequence", "hidden")), rng.randint(0, 2), rng.choice(LAYOUTS))
    return interpret_mixer_norm.case(*shape(rng), *row), rng.choice(HALVES)


def attention(rng: random.Random) -> tuple[OpCase, torch.dtype]:
    batch, length, width = shape(rng, MOST // 2)
    heads = rng.choice([h for h in (1, 2, 3, 4, 5, 8) if width % h == 0])
    options = " ".join(name for name in ("qk_norm", "causal") if rng.random() < 0.5)
    if width // heads % 2 == 0 and rng.random() < 0.7:
        options += " rope"
    row = ((batch, length, width), heads, rng.randint(0, 3), rng.choice(LAYOUTS), options)
    return interpret_attention_norm.case(*row), rng.choice(HALVES)


def halting(rng: random.Random) -> tuple[OpCase, torch.dtype]:
    policy = rng.choice(("q", "q_continue", "settle", "cumulative_sequence", "cumulative_token", "fixed"))
    pool = {"cumulative_token": "token"}.get(policy) or rng.choice(("first", "mean"))
    batch = rng.choice((1, 2, 7, 31, 33, 65))
    length, width = rng.choice([(n, d) for n in SIZES for d in SIZES if batch * n * d <= MOST])
    pool = "first" if policy in ("settle", "fixed") else pool
    return interpret_halting.case((batch, length, width), policy, pool, rng.choice(LAYOUTS)), torch.float32


def loss(rng: random.Random) -> tuple[OpCase, torch.dtype]:
    layout = rng.choice([name for name in LAYOUTS if name != "expanded"])  # the logits are scaled in place
    row = (layout, rng.choice((0.1, 1.0, 10.0, 100.0)), rng.choice((0.0, 0.3, 1.0)), rng.choice(LOSSES))
    return interpret_token_loss.case(shape(rng), *row), rng.choice(HALVES)


def adam(rng: random.Random) -> tuple[OpCase, torch.dtype]:
    shapes = tuple((rng.choice(SIZES), rng.choice(SIZES)) for _ in range(rng.randint(1, 4)))
    return interpret_adam_atan2.case(shapes, rng.choice(("plain", "offset")), rng.choice((0.0, 0.9))), torch.float32


def sparse(rng: random.Random) -> tuple[OpCase, torch.dtype]:
    layout = rng.choice([name for name in LAYOUTS if name != "expanded"])
    return interpret_adam_atan2.sparse_case(rng.choice(SIZES), rng.choice(SIZES[:12]), rng.choice(SIZES), layout), (
        torch.float32
    )


def persistent(rng: random.Random) -> tuple[OpCase, torch.dtype]:
    batch, length, width = shape(rng, MOST // 4)
    if length > 128:
        return persistent(rng)
    dtype = rng.choice(HALVES)
    # a decision near its threshold falls either way in half precision
    policy = "fixed" if dtype == torch.float16 else rng.choice(("q", "q_continue", "cumulative_token", "settle"))
    pool = {"cumulative_token": "token"}.get(policy, "first")
    inner = (rng.choice(SIZES[:16]), rng.choice(SIZES[:16]))
    axis, program = rng.choice(("sequence", "hidden")), rng.choice(PROGRAMS)
    return interpret_persistent.case(batch, length, width, inner, axis, policy, pool, 1, program), dtype


OPS: tuple[Callable[[random.Random], tuple[OpCase, torch.dtype]], ...] = (
    swiglu, mixer, attention, halting, loss, adam, sparse, persistent, swiglu, mixer,
)  # fmt: skip
"""The SwiGLU ops, which have the most kernels, twice."""


def drawn(seed: int) -> Drawn:
    """The configuration of one seed."""
    rng = random.Random(seed)
    case, dtype = OPS[seed % len(OPS)](rng)
    return Drawn(case, dtype, rng.choice((32, 32, 64, 256)))


def failure(seed: int) -> str | None:
    """How the configuration of a seed fails, with the line that shows it again, or None."""
    d = drawn(seed)
    with tiles(d.tile):
        outcome = check(d.case, d.dtype, seed=seed)
        if outcome.failures and max(outcome.forward, outcome.backward) < FAR:
            outcome = check(d.case, d.dtype, seed=seed + AGAIN)
    if not outcome.failures:
        return None
    what = f"{d.case.op} {d.case.shape} {d.dtype} tiles of {d.tile}: {'; '.join(outcome.failures)}"
    return f"{what}\n    python -m tests.proof.fuzz {seed}"


def main(seeds: list[int]) -> int:
    take_loop_bounds()
    failures = 0
    for seed in seeds:
        d = drawn(seed)
        result = failure(seed)
        failures += result is not None
        print(f"{seed}: {d.case.op} {d.case.shape} {d.dtype} tiles of {d.tile}: {result or 'ok'}")
    return 1 if failures or not seeds else 0


if __name__ == "__main__":
    sys.exit(main([int(seed) for seed in sys.argv[1:]]))
