"""Halting between ACT steps, in place and without a host synchronisation: the public function of the op."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rtm_kernels.errors import one_of, require
from rtm_kernels.ops.halting import reference
from rtm_kernels.ops.halting.op import halting_step_op
from rtm_kernels.ops.halting.reference import POLICIES, POOLS, HaltingState
from rtm_kernels.ops.launch import choose
from rtm_kernels.ranges import ranged

HEADED = {"q": 1, "q_continue": 2, "cumulative_sequence": 1, "cumulative_token": 1}
"""Policy that reads a head -> the least number of logits per unit."""


class HaltingStep(NamedTuple):
    """What a halting step gives beside the state that it changed."""

    logits: Tensor
    """[B, U, K] float32, the halting head's output; K = 0 under a policy without one."""
    order: Tensor
    """[B] int32, the samples still active first, both parts in batch order: the compaction index."""
    still_active: Tensor
    """[1] int32, how many samples are still active; stays on the device."""


@ranged("halting_step")
def halting_step_(
    state: HaltingState,
    y: Tensor,
    *,
    policy: str,
    max_steps: int,
    min_steps: int | Tensor = 1,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    pool: str = "first",
    previous: Tensor | None = None,
    tol: float = 1e-3,
    answer: Tensor | None = None,
    previous_answer: Tensor | None = None,
    impl: str = "auto",
) -> HaltingStep:
    """Advance `state` in place by the ACT step that gave y, and say which samples go on. Not differentiable.

    y [B, L, D] of a float dtype. Policies with a head (`q`, `q_continue`, `cumulative_*`) take its `weight` [K, D]
    and `bias` [K], K = 1 or 2, and the `pool` it reads: "first", "mean" or, for `cumulative_token` and nothing else,
    "token". `settle` takes the latent `previous` to y and `tol`, and may take the answers [B, A] decoded from both.
    The formulas are those of `reference.halting_logits`, `settled` and `halting_update`; logits, p and norms are
    computed in float32. For training use these functions, which are differentiable.

    On a GPU every policy and pool is one launch, which reads y and `previous` in any strides.

    Errors: `InputError` naming the argument; `BackendUnavailable` for a named `impl` that cannot run here.
    """
    _check_policy(policy, pool, weight, bias, previous, max_steps, min_steps, tol)
    _check_shapes(state, y, policy, weight, bias, previous, answer, previous_answer, min_steps)
    if choose(impl, y.device, y.dtype) == "triton":
        per_sample = min_steps if isinstance(min_steps, Tensor) else None
        return HaltingStep(*halting_step_op(
            state.steps, state.active, state.accumulated, state.weight, state.remainder,
            y, weight, bias, previous, answer, previous_answer, per_sample,
            policy, pool, tol, max_steps, 0 if isinstance(min_steps, Tensor) else min_steps,
        ))  # fmt: skip
    with torch.no_grad():
        logits = y.new_empty(len(y), state.steps.shape[1], 0, dtype=torch.float32)
        quiet = None
        if weight is not None:
            logits = reference.halting_logits(y, weight, bias, pool).to(torch.float32)
        if previous is not None:
            quiet = reference.settled(y, previous, tol, answer, previous_answer)
        new = reference.halting_update(
            state, policy, logits=logits, quiet=quiet, max_steps=max_steps, min_steps=min_steps
        )
        for name in ("steps", "active", "accumulated", "weight", "remainder"):
            getattr(state, name).copy_(getattr(new, name))
        return HaltingStep(logits, *reference.compaction(state.active_samples))


def _check_policy(
    policy: str, pool: str, weight: Tensor | None, bias: Tensor | None, previous: Tensor | None, max_steps: int,
    min_steps: int | Tensor, tol: float,
) -> None:  # fmt: skip
    one_of("policy", policy, POLICIES)
    one_of("pool", pool, POOLS)
    require(1 <= max_steps < 1 << 31, "max_steps", max_steps, "an integer from 1 to 2^31 - 1")
    if not isinstance(min_steps, Tensor):
        require(min_steps >= 0, "min_steps", min_steps, "an integer of at least 0, or a tensor [B]")
    per_token = policy == "cumulative_token"
    require(per_token == (pool == "token"), "pool", pool, "'token' with the policy cumulative_token and only with it")
    require((weight is not None) == (policy in HEADED), "weight", _told(weight), f"as the policy {policy} has a head")
    require(bias is None or weight is not None, "bias", _told(bias), "given with a weight only")
    require((previous is not None) == (policy == "settle"), "previous", _told(previous), "the policy settle reads it")
    require(tol >= 0, "tol", tol, "a number of at least 0")


def _check_shapes(
    state: HaltingState, y: Tensor, policy: str, weight: Tensor | None, bias: Tensor | None, previous: Tensor | None,
    answer: Tensor | None, previous_answer: Tensor | None, min_steps: int | Tensor,
) -> None:  # fmt: skip
    require(y.dim() == 3 and y.is_floating_point(), "y", _told(y), "floating-point [B, L, D]")
    units = (len(y), y.shape[1] if policy == "cumulative_token" else 1)
    for name in ("steps", "active", "accumulated", "weight", "remainder"):
        tensor = getattr(state, name)
        fits = tuple(tensor.shape) == units and tensor.is_contiguous()
        require(fits, f"state.{name}.shape", tuple(tensor.shape), f"{units}, [B, U], contiguous")
    if weight is not None:
        fits = weight.dim() == 2 and HEADED[policy] <= len(weight) <= 2 and weight.shape[1] == y.shape[2]
        require(fits, "weight.shape", tuple(weight.shape), f"[K, {y.shape[2]}] with K from {HEADED[policy]} to 2")
        require(bias is None or bias.shape == weight.shape[:1], "bias", _told(bias), f"[{len(weight)}], as the weight")
    fits = previous is None or (previous.shape == y.shape and previous.dtype == y.dtype)
    require(fits, "previous", _told(previous), f"as y, {_told(y)}")
    both = (answer is None) == (previous_answer is None)
    require(both, "previous_answer", _told(previous_answer), "given with answer and only with it")
    if answer is not None and previous_answer is not None:
        fits = len(answer) == len(y) and answer.shape == previous_answer.shape and answer.dtype == previous_answer.dtype
        require(fits, "previous_answer", _told(previous_answer), f"as answer, {_told(answer)}, for B = {len(y)}")
    if isinstance(min_steps, Tensor):
        fits = min_steps.shape == y.shape[:1] and not min_steps.is_floating_point()
        require(fits, "min_steps", _told(min_steps), f"integers [B] = [{len(y)}]")


def _told(tensor: Tensor | None) -> str:
    return "None" if tensor is None else f"{tensor.dtype}{list(tensor.shape)}"
