"""Cases of the persistent kernel for the interpreter gate: latents, logits and halting state after ACT steps."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from rtm_kernels import program as programs
from rtm_kernels.block import FusedTRMBlock, Stack
from rtm_kernels.ops.halting.api import halting_step_
from rtm_kernels.ops.halting.reference import initial_state
from rtm_kernels.program import Program
from rtm_kernels.recursion import reference
from rtm_kernels.recursion.head import HaltingHead
from rtm_kernels.recursion.persistent.executor import run_act_step
from tests.gates.interpret_gate import OpCase, Tensors
from tests.ops.support import swiglu_weights

CASES = (  # B, L, D, inner widths over L and D, norm axis, policy, pool, ACT steps, program
    (2, 9, 24, (20, 40), "sequence", "q", "first", 2, programs.trm(1, 1)),
    (3, 7, 17, (5, 33), "hidden", "q_continue", "mean", 1, programs.trm(1, 2)),
    (2, 5, 40, (18, 50), "hidden", "cumulative_token", "token", 2, programs.rtm(1)),
    (5, 9, 24, (20, 40), "sequence", "cumulative_sequence", "mean", 2, programs.trm_singlez(1, 1)),
    (3, 9, 24, (20, 40), "hidden", "settle", "first", 2, programs.transformer()),
    (1, 97, 48, (96, 80), "sequence", "fixed", "first", 1, programs.transformer()),
    (1, 17, 33, (33, 31), "hidden", "q", "first", 1, programs.trm_hier6(1, 1)),
    (4, 1, 16, (8, 8), "sequence", "q", "first", 1, programs.hrm(1, 1)),
    (2, 13, 40, (70, 100), "sequence", "q_continue", "first", 1, programs.rins(1)),
    (7, 3, 65, (16, 65), "hidden", "cumulative_sequence", "first", 1, programs.rsm(1, 1)),
    (2, 16, 64, (64, 128), "hidden", "q", "mean", 1, programs.transformer()),
    (17, 2, 8, (8, 8), "sequence", "q", "first", 1, programs.transformer()),
)
MAX_STEPS, TOLERANCE = 2, 1.3
WEIGHTS = ("mlp_t", "mlp")


def _make(
    batch: int, length: int, width: int, inner: tuple[int, int], program: Program, g: torch.Generator
) -> dict[str, Tensor]:
    shape = (batch, length, width)
    tensors = {f"z.{name}": torch.randn(shape, generator=g) for name in (*program.carried, program.output)}
    tensors["x"] = torch.randn(shape, generator=g)
    for stack in program.stacks:
        for mlp, n, hidden in zip(WEIGHTS, (length, width), inner, strict=True):
            weights = swiglu_weights(n, hidden, g)
            tensors |= {f"{stack}.{mlp}.{name}": w.detach() for name, w in weights.items()}
    tensors["head"] = torch.randn(2, width, generator=g) / width**0.5
    tensors["bias"] = 0.1 * torch.randn(2, generator=g)
    return tensors


def _stacks(program: Program, t: Tensors, norm_axis: str) -> dict[str, nn.Module]:
    _, length, width = t["x"].shape
    stacks = {}
    for name in program.stacks:
        block = FusedTRMBlock(width, length, norm_axis=norm_axis, impl="reference")
        for mlp in WEIGHTS:
            module = block.get_submodule(mlp)
            module.gate_up_proj.weight = nn.Parameter(t[f"{name}.{mlp}.gate_up_weight"], requires_grad=False)
            module.down_proj.weight = nn.Parameter(t[f"{name}.{mlp}.down_weight"], requires_grad=False)
        stacks[name] = Stack([block])
    return stacks


def _call(
    norm_axis: str, policy: str, pool: str, act_steps: int, program: Program, impl: str, t: Tensors
) -> tuple[Tensor, ...]:
    stacks, latents = _stacks(program, t, norm_axis), {n[2:]: v for n, v in t.items() if n.startswith("z.")}
    headed = {} if policy in ("settle", "fixed") else {"weight": t["head"], "bias": t["bias"], "pool": pool}
    if impl == "triton":
        head = HaltingHead(policy, MAX_STEPS, tolerance=TOLERANCE, **headed)
        latents, state, logits = run_act_step(program, latents, t["x"], stacks, head, act_steps=act_steps)
    else:
        latents, state, logits = _reference(program, latents, t["x"], stacks, policy, headed, act_steps)
    values = [latents[name] for name in sorted(latents)]
    return (*values, state.steps, state.active, state.accumulated, state.remainder, logits)


def _reference(program, latents, x, stacks, policy, headed, act_steps):  # type: ignore[no-untyped-def]
    units = x.shape[1] if headed.get("pool") == "token" else 1
    state, logits = initial_state(len(x), units, x.device), torch.zeros(len(x), units, 2, device=x.device)
    for _ in range(act_steps):
        active = state.active_samples
        new = reference.run(program, latents, x, stacks)
        settle = {"previous": latents[program.output], "tol": TOLERANCE} if policy == "settle" else {}
        step = halting_step_(
            state, new[program.output], policy=policy, max_steps=MAX_STEPS, **headed, **settle, impl="reference"
        )
        latents = {name: torch.where(active[:, None, None], new[name], latents[name]) for name in new}
        if headed:
            logits = torch.where(active[:, None, None], step.logits, logits)
    if policy == "settle":
        logits = torch.zeros_like(logits)
    return latents, state, logits


def case(
    batch: int, length: int, width: int, inner: tuple[int, int], norm_axis: str, policy: str, pool: str,
    act_steps: int, program: Program,
) -> OpCase:  # fmt: skip
    """One configuration."""
    name = f"{program.name} {[batch, length, width]} F={list(inner)} {norm_axis} {policy} {pool} steps={act_steps}"
    make = partial(_make, batch, length, width, inner, program)
    return OpCase("persistent", name, make, partial(_call, norm_axis, policy, pool, act_steps, program))


def interpret_cases() -> Iterator[OpCase]:
    """Every program and policy, odd sizes, both norm axes."""
    return (case(*row) for row in CASES)
