"""The halting step: the state after it, the logits and the order."""

from __future__ import annotations

import random
from functools import partial

import torch
from torch import Tensor

from rtm_kernels.ops.halting.api import halting_step_
from rtm_kernels.ops.halting.launch import TABLE
from rtm_kernels.ops.halting.launchers import halting_step
from rtm_kernels.ops.halting.reference import HaltingState
from tests.cases.case import MOST, SIZES, Case, Op, Tensors, Tuned, meta
from tests.ops.support import LAYOUTS, laid_out

SMALL = (
    ((5, 9, 70), "q", "first", "plain"),
    ((33, 3, 24), "q_continue", "mean", "strided"),
    ((4, 7, 17), "cumulative_sequence", "first", "offset"),
    ((3, 17, 24), "cumulative_token", "token", "plain"),
    ((24, 9, 170), "settle", "first", "plain"),
    ((40, 1, 1), "fixed", "first", "plain"),
)
GATE = (  # shape of y, policy, pool, layout
    ((5, 97, 512), "q", "first", "plain"),
    ((70, 7, 24), "q_continue", "mean", "strided"),
    ((4, 97, 100), "cumulative_sequence", "first", "offset"),
    ((3, 17, 64), "cumulative_token", "token", "transposed"),
    ((3, 7, 100), "settle", "first", "plain"),
    ((300, 1, 1), "fixed", "first", "plain"),
    ((0, 9, 24), "q", "first", "plain"),
    ((33, 3, 130), "q", "mean", "plain"),
    ((5, 1, 7), "q_continue", "first", "expanded"),
    ((6, 18, 40), "cumulative_sequence", "mean", "strided"),
    ((2, 33, 17), "cumulative_token", "token", "plain"),
    ((31, 5, 67), "settle", "first", "offset"),
)
LAUNCHES = (
    ("q", "first"), ("q", "mean"), ("q_continue", "first"), ("q_continue", "mean"), ("cumulative_sequence", "first"),
    ("cumulative_sequence", "mean"), ("cumulative_token", "token"), ("settle", "first"), ("fixed", "first"),
)  # fmt: skip
BY_BATCH = LAUNCHES[:1] + LAUNCHES[3:4] + LAUNCHES[6:]


def _make(shape: tuple[int, ...], policy: str, layout: str, g: torch.Generator) -> dict[str, Tensor]:
    batch, length, width = shape
    units = (batch, length if policy == "cumulative_token" else 1)
    tensors = {"y": laid_out(shape, layout, g).detach(), "active": torch.rand(units, generator=g) < 0.7}
    tensors["steps"] = torch.randint(0, 4, units, generator=g, dtype=torch.int32)
    tensors["accumulated"] = torch.rand(units, generator=g)
    if policy == "settle":
        noise = torch.rand(batch, 1, 1, generator=g) * torch.randn(shape, generator=g)
        tensors["previous"] = tensors["y"] + 0.1 * noise
    elif policy != "fixed":
        tensors["weight"] = torch.randn(2, width, generator=g) / width**0.5
        tensors["bias"] = 0.1 * torch.randn(2, generator=g)
    return tensors


def _call(policy: str, pool: str, impl: str, t: Tensors) -> tuple[Tensor, ...]:
    given = {name: t[name] for name in ("weight", "bias", "previous") if name in t}
    zeros = torch.zeros_like(t["accumulated"])
    state = HaltingState(t["steps"].clone(), t["active"].clone(), t["accumulated"], zeros, zeros.clone())
    result = halting_step_(state, t["y"], policy=policy, pool=pool, max_steps=4, min_steps=2, tol=0.05, impl=impl,
                           **given)  # fmt: skip
    return state.steps, state.active, state.accumulated, state.weight, state.remainder, *result


def halting(shape: tuple[int, ...], policy: str, pool: str, layout: str) -> Case:
    """One halting step of samples that have come differently far."""
    name = f"{list(shape)} {policy} {pool} {layout}"
    return Case("halting", name, partial(_make, shape, policy, layout), partial(_call, policy, pool))


def launch_halting(
    batch: int, length: int, width: int, policy: str, pool: str, dtype: torch.dtype = torch.float32
) -> None:
    """One halting step on meta tensors; `settle` with answers."""
    units, headed = length if pool == "token" else 1, policy not in ("settle", "fixed")
    y, ints = meta(batch, length, width, dtype=dtype), partial(meta, dtype=torch.int32)
    numbers = [meta(batch, units) for _ in range(3)]
    state = HaltingState(ints(batch, units), meta(batch, units, dtype=torch.bool), *numbers)
    head = (meta(2, width), meta(2)) if headed else None
    answers = [meta(batch, length, dtype=torch.int64)] * 2
    latents = (y, *answers) if policy == "settle" else None
    logits = meta(batch, units, 2 if headed else 0)
    halting_step(state, y, logits, head, latents, policy, pool, 1e-3, 16, ints(batch))


def draw(rng: random.Random) -> tuple[Case, torch.dtype]:
    policy = rng.choice(("q", "q_continue", "settle", "cumulative_sequence", "cumulative_token", "fixed"))
    pool = {"cumulative_token": "token"}.get(policy) or rng.choice(("first", "mean"))
    batch = rng.choice((1, 2, 7, 31, 33, 65))
    length, width = rng.choice([(n, d) for n in SIZES for d in SIZES if batch * n * d <= MOST])
    pool = "first" if policy in ("settle", "fixed") else pool
    return halting((batch, length, width), policy, pool, rng.choice(LAYOUTS)), torch.float32


OP = Op(
    gate=[halting(*row) for row in GATE],
    small=[halting(*row) for row in SMALL],
    drawn=[draw],
    launched={
        f"halting {policy} {pool} D=512 bf16": partial(launch_halting, 8, 97, 512, policy, pool, torch.bfloat16)
        for policy, pool in LAUNCHES
    },
    by_batch={
        f"halting {policy} {pool}": partial(launch_halting, length=97, width=512, policy=policy, pool=pool)
        for policy, pool in BY_BATCH
    },
    tuned=[
        Tuned(f"halting-{policy}", lambda b, p=policy, pool=pool: halting((b, 97, 512), p, pool, "plain"), 768,
              torch.float32)
        for policy, pool in (("q", "first"), ("cumulative_token", "token"), ("settle", "first"))
    ],
    tables={"halting": TABLE},
)  # fmt: skip
