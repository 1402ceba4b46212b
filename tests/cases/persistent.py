"""The persistent kernel: latents, logits and halting state after ACT steps in one launch."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rtm_kernels import program as programs
from rtm_kernels.block import FusedTRMBlock, Stack
from rtm_kernels.ops.halting.api import halting_step_
from rtm_kernels.ops.halting.reference import initial_state
from rtm_kernels.ops.launch import select
from rtm_kernels.program import Program
from rtm_kernels.recursion import reference
from rtm_kernels.recursion.head import HaltingHead
from rtm_kernels.recursion.persistent.executor import run_act_step
from rtm_kernels.recursion.persistent.launch import KERNEL, TABLE
from rtm_kernels.recursion.persistent.pack import PackedWeights
from rtm_kernels.recursion.persistent.runner import PersistentRecursion
from tests.cases.case import HALVES, MOST, SIZES, Case, Op, Tensors, Tuned, latent_shape
from tests.ops.support import swiglu_weights

SMALL = (
    (2, 9, 24, (20, 40), "sequence", "q", "first", 2, programs.trm(1, 1)),
    (3, 5, 40, (18, 50), "hidden", "cumulative_token", "token", 1, programs.rtm(1)),
    (3, 5, 24, (20, 40), "hidden", "settle", "first", 1, programs.transformer()),
)
GATE = (  # B, L, D, inner widths over L and D, norm axis, policy, pool, ACT steps, program
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
LAUNCHES = (  # L, dtype, norm axis, policy, pool
    (97, torch.bfloat16, "sequence", "q", "first"),
    (97, torch.bfloat16, "sequence", "q_continue", "first"),
    (97, torch.bfloat16, "hidden", "settle", "first"),
    (97, torch.bfloat16, "sequence", "cumulative_sequence", "mean"),
    (97, torch.bfloat16, "hidden", "cumulative_token", "token"),
    (97, torch.bfloat16, "hidden", "fixed", "first"),
    (97, torch.bfloat16, "sequence", None, "first"),
    (97, torch.float16, "hidden", "q", "first"),
    (97, torch.float32, "sequence", "q", "first"),
    (97, torch.float32, "hidden", "cumulative_token", "token"),
    (196, torch.bfloat16, "hidden", "cumulative_token", "token"),
)
DRAWN = (programs.trm(1, 1), programs.trm_singlez(1, 1), programs.hrm(1, 1), programs.rtm(2), programs.transformer(),
         programs.rins(2), programs.rsm(1, 1))  # fmt: skip
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


def _latents(t: Tensors) -> dict[str, Tensor]:
    return {n[2:]: v for n, v in t.items() if n.startswith("z.")}


def _call(
    norm_axis: str, policy: str, pool: str, act_steps: int, program: Program, impl: str, t: Tensors
) -> tuple[Tensor, ...]:
    stacks, latents = _stacks(program, t, norm_axis), _latents(t)
    headed = {} if policy in ("settle", "fixed") else {"weight": t["head"], "bias": t["bias"], "pool": pool}
    if impl == "triton":
        head = HaltingHead(policy, MAX_STEPS, tolerance=TOLERANCE, **headed)
        latents, state, logits = run_act_step(program, latents, t["x"], stacks, head, act_steps=act_steps)
    else:
        latents, state, logits = _reference(program, latents, t["x"], stacks, policy, headed, act_steps)
    values = [latents[name] for name in sorted(latents)]
    return (*values, state.steps, state.active, state.accumulated, state.remainder, logits)


def _reference(
    program: Program, latents: dict[str, Tensor], x: Tensor, stacks: dict[str, nn.Module], policy: str,
    headed: dict[str, Any], act_steps: int,
) -> tuple[Any, ...]:  # fmt: skip
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
    return latents, state, torch.zeros_like(logits) if policy == "settle" else logits


def _launches(norm_axis: str, program: Program, t: Tensors) -> Callable[[], Tensor]:
    x, made = t["x"], {}
    weights = PackedWeights(_stacks(program, t, norm_axis), x.dtype)

    def step() -> Tensor:
        row = select(TABLE, KERNEL, x.dtype, x.shape[1])  # another one where the tuner tries it
        if str(row) not in made:
            made[str(row)] = PersistentRecursion(program, weights, len(x), row=row)
            made[str(row)].load(_latents(t), x)
        made[str(row)].step()
        return made[str(row)].latents

    return step


def persistent(
    batch: int, length: int, width: int, inner: tuple[int, int], norm_axis: str, policy: str, pool: str,
    act_steps: int, program: Program,
) -> Case:  # fmt: skip
    """ACT steps of one program, with its halting."""
    name = f"{program.name} {[batch, length, width]} F={list(inner)} {norm_axis} {policy} {pool} steps={act_steps}"
    make = partial(_make, batch, length, width, inner, program)
    call = partial(_call, norm_axis, policy, pool, act_steps, program)
    return Case("persistent", name, make, call, start=partial(_launches, norm_axis, program))


def launch_persistent(
    batch: int, length: int, axis: str, policy: str | None, pool: str, dtype: torch.dtype = torch.float32,
    program: Program | None = None, layers: int = 1, grid: int | None = 1, launch: bool = True,
) -> PersistentRecursion:  # fmt: skip
    """One ACT step at D = 512 on meta tensors."""
    program = program or programs.transformer()
    with torch.device("meta"):
        stack, head = Stack([FusedTRMBlock(512, length, norm_axis=axis) for _ in range(layers)]), None
        if policy is not None:
            headed = {} if policy == "settle" else {"weight": torch.empty(2, 512), "bias": torch.empty(2)}
            head = HaltingHead(policy, 16, pool=pool, **headed)
    weights = PackedWeights({name: stack for name in program.stacks}, dtype)
    recursion = PersistentRecursion(program, weights, batch, head=head, grid=grid)
    if launch:
        recursion.step()
    return recursion


def draw(rng: random.Random) -> tuple[Case, torch.dtype]:
    batch, length, width = latent_shape(rng, MOST // 4)
    if length > 128:
        return draw(rng)
    dtype = rng.choice(HALVES)
    # a decision near its threshold falls either way in half precision
    policy = "fixed" if dtype == torch.float16 else rng.choice(("q", "q_continue", "cumulative_token", "settle"))
    pool = {"cumulative_token": "token"}.get(policy, "first")
    inner = (rng.choice(SIZES[:16]), rng.choice(SIZES[:16]))
    axis, program = rng.choice(("sequence", "hidden")), rng.choice(DRAWN)
    return persistent(batch, length, width, inner, axis, policy, pool, 1, program), dtype


OP = Op(
    gate=[persistent(*row) for row in GATE],
    small=[persistent(*row) for row in SMALL],
    drawn=[draw],
    launched={
        f"persistent L={length} {str(dtype)[6:]} {policy} {axis}": partial(
            launch_persistent, 4, length, axis, policy, pool, dtype, programs.trm(3, 6), 2, None)
        for length, dtype, axis, policy, pool in LAUNCHES
    },
    by_batch={
        "persistent": partial(launch_persistent, length=97, axis="sequence", policy="q", pool="first"),
        "persistent hidden": partial(
            launch_persistent, length=97, axis="hidden", policy="cumulative_token", pool="token"),
    },
    tuned=[
        Tuned("persistent-sudoku", lambda b: persistent(
            b, 97, 512, (512, 1536), "sequence", "fixed", "first", 1, programs.trm(3, 6)), 1)
    ],
    tables={"persistent": TABLE},
)  # fmt: skip
