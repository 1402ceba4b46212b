"""Cases of halting for the interpreter gate: the state after a step, the logits and the order."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from rtm_kernels.ops.halting.api import halting_step_
from rtm_kernels.ops.halting.reference import HaltingState
from tests.gates.interpret_gate import OpCase, Tensors
from tests.ops.support import laid_out

CASES = (  # shape of y, policy, pool, layout
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


def case(shape: tuple[int, ...], policy: str, pool: str, layout: str) -> OpCase:
    """One configuration."""
    name = f"{list(shape)} {policy} {pool} {layout}"
    return OpCase("halting", name, partial(_make, shape, policy, layout), partial(_call, policy, pool))


def interpret_cases() -> Iterator[OpCase]:
    """Every policy at official, odd and empty sizes."""
    return (case(*row) for row in CASES)
