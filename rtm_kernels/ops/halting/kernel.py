"""Kernel of halting after an ACT step: one program per sample, in place over its row of `reference.SlotState`.

Each phase reads all that it needs, waits for every warp, and stores: a warp that reads late would see new values.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from rtm_kernels.ops.halting import reference
from rtm_kernels.ops.halting.policy import HaltingPolicy
from rtm_kernels.ops.halting.reference import Outputs, SlotState
from rtm_kernels.ops.halting.signals import broken, decode, head_of, relative_change, sigmoid64
from rtm_kernels.ops.launch import ANY, LaunchRow, launch, select, tuned

TABLE = tuned("halting", (
    LaunchRow("halting.step", "portable", 0, ANY, {"BLOCK_L": 16, "BLOCK_D": 64}, 4, 1),
    LaunchRow("halting.step", "interpreter", 0, ANY, {"BLOCK_L": 16, "BLOCK_D": 64}),
))  # fmt: skip
"""The size of a shape class is the number of positions of a latent."""

ACCUMULATED, LOGIT, BEST_LOGIT, RESIDUAL = (tl.constexpr(n) for n in (0, 2, 3, 4))
LIMIT, STEPS, BEST_STEP, STABLE, FINITE = (tl.constexpr(n) for n in (6, 7, 8, 9, 10))
ASKS, VERIFIED, REASON, TOKENS = (tl.constexpr(n) for n in (11, 12, 13, 14))
"""Where the columns of a row begin, in elements of int32; the sums of the tokens follow at TOKENS."""
MAX_STEPS, NON_FINITE, SIGNAL, NONE = (tl.constexpr(n) for n in (1, 2, 3, 1 << 20))


@triton.jit
def halt_tokens(row, doubles, y_ptr, weight_ptr, bias_ptr, stride_l, stride_d, D, may, P: tl.constexpr,
                SEQ: tl.constexpr, HAS_BIAS: tl.constexpr, COMPARES: tl.constexpr, BLOCK_L: tl.constexpr,
                BLOCK_D: tl.constexpr):  # fmt: skip
    """Add the p of each position to its sum, and let those halt whose sum is 1."""
    halted_ptr = row + TOKENS + 2 * P + 2 * SEQ
    for l in range(0, P, BLOCK_L):  # noqa: E741
        offs_l = l + tl.arange(0, BLOCK_L).to(tl.int64)
        mask = offs_l < P
        logit = head_of(y_ptr, weight_ptr, bias_ptr, offs_l, mask, stride_l, stride_d, D, HAS_BIAS, COMPARES,
                        BLOCK_L, BLOCK_D)  # fmt: skip
        total = tl.load(doubles + TOKENS // 2 + offs_l, mask=mask, other=0.0) + sigmoid64(logit)
        halted = (tl.load(halted_ptr + offs_l, mask=mask, other=0) != 0) | (may & (total >= 1))
        tl.debug_barrier()
        tl.store(doubles + TOKENS // 2 + offs_l, total, mask=mask)
        tl.store(halted_ptr + offs_l, halted.to(tl.int32), mask=mask)


@triton.jit
def observe(row, floats, doubles, token, finite, logit, residual, min_steps, S: tl.constexpr, P: tl.constexpr,
            SUMS: tl.constexpr, ASKING: tl.constexpr, BLOCK_S: tl.constexpr):  # fmt: skip
    """`reference.observe` but for the sums of the tokens: their flags [P] are those before the step."""
    offs_s = tl.arange(0, BLOCK_S)
    mask = offs_s < S
    answers_ptr = row + TOKENS + 2 * P + offs_s
    old = tl.load(answers_ptr, mask=mask, other=0)
    if P > 0:
        halted = tl.load(answers_ptr + 2 * S + (P - S), mask=mask, other=0)
        token = tl.where(halted != 0, old, token)
    changed = tl.sum((mask & (token != old)).to(tl.int32), axis=0) > 0
    steps = tl.load(row + STEPS) + 1
    stable = tl.where(changed, 0, tl.load(row + STABLE) + 1)
    asks = changed & (finite != 0) & (tl.load(row + VERIFIED) == 0)
    total = tl.load(doubles + ACCUMULATED)
    tl.debug_barrier()
    tl.store(answers_ptr, token, mask=mask)
    tl.store(row + STEPS, steps)
    tl.store(row + STABLE, stable)
    tl.store(row + FINITE, finite)
    tl.store(floats + LOGIT, logit)
    tl.store(floats + RESIDUAL, residual)
    if ASKING:
        tl.store(row + ASKS, asks.to(tl.int32))
    if SUMS:
        tl.store(doubles + ACCUMULATED, total + sigmoid64(logit))


@triton.jit
def decide(row, floats, doubles, confirmed, min_steps, settle_steps, S: tl.constexpr, P: tl.constexpr,
           CONFIRMS: tl.constexpr, AT_VERIFIED: tl.constexpr, AT_Q: tl.constexpr, AT_SETTLE: tl.constexpr,
           AT_CUMULATIVE: tl.constexpr, AT_TOKEN: tl.constexpr, THRESHOLD: tl.constexpr, TOLERANCE: tl.constexpr,
           BLOCK_S: tl.constexpr, BLOCK_P: tl.constexpr):  # fmt: skip
    """`reference.decide`; AT_* are the places of the signals in the policy, -1 where it lacks one."""
    offs_s = tl.arange(0, BLOCK_S)
    mask = offs_s < S
    answers_ptr = row + TOKENS + 2 * P + offs_s
    answers = tl.load(answers_ptr, mask=mask, other=0)
    steps = tl.load(row + STEPS)
    logit = tl.load(floats + LOGIT)
    verified = tl.load(row + VERIFIED)
    better = (logit < tl.load(floats + BEST_LOGIT)) == 0
    if CONFIRMS:
        better = (better & (verified == 0)) | (confirmed != 0)
        verified = ((verified != 0) | (confirmed != 0)).to(tl.int32)
    first = steps * 0 + NONE
    if AT_VERIFIED >= 0:
        first = tl.minimum(first, tl.where(verified != 0, AT_VERIFIED, NONE))
    if AT_Q >= 0:
        first = tl.minimum(first, tl.where(logit.to(tl.float64) > THRESHOLD, AT_Q, NONE))
    if AT_SETTLE >= 0:
        settled = tl.load(row + STABLE) >= settle_steps
        if TOLERANCE > 0:
            settled &= tl.load(floats + RESIDUAL).to(tl.float64) < TOLERANCE
        first = tl.minimum(first, tl.where(settled, AT_SETTLE, NONE))
    if AT_CUMULATIVE >= 0:
        first = tl.minimum(first, tl.where(tl.load(doubles + ACCUMULATED) >= 1, AT_CUMULATIVE, NONE))
    if AT_TOKEN >= 0:
        offs_p = tl.arange(0, BLOCK_P)
        halted = tl.load(row + TOKENS + 2 * P + 2 * S + offs_p, mask=offs_p < P, other=1)
        going_on = tl.sum((halted == 0).to(tl.int32), axis=0)
        first = tl.minimum(first, tl.where(going_on == 0, AT_TOKEN, NONE))
    reason = tl.where(steps >= tl.load(row + LIMIT), MAX_STEPS, 0)
    reason = tl.where((steps >= min_steps) & (first < NONE), SIGNAL + first, reason)
    reason = tl.where(tl.load(row + FINITE) == 0, NON_FINITE, reason)
    tl.debug_barrier()
    tl.store(answers_ptr + S, answers, mask=mask & better)
    tl.store(row + BEST_STEP, steps, mask=better)
    tl.store(floats + BEST_LOGIT, logit, mask=better)
    tl.store(row + VERIFIED, verified)
    tl.store(row + REASON, reason)


@triton.jit
def halting_kernel(
    rows_ptr, floats_ptr, doubles_ptr, logits_ptr, q_ptr, y_ptr, previous_ptr, other_ptr, weight_ptr, bias_ptr,
    finite_ptr, change_ptr, confirmed_ptr, min_steps, settle_steps, V, L, D,
    logits_stride_b, logits_stride_s, logits_stride_v, q_stride_b, q_stride_k, y_stride_b, y_stride_l, y_stride_d,
    previous_stride_b, previous_stride_l, previous_stride_d, other_stride_b, other_stride_l, other_stride_d,
    S: tl.constexpr, P: tl.constexpr, WIDTH: tl.constexpr, OBSERVES: tl.constexpr, DECIDES: tl.constexpr,
    HAS_Q: tl.constexpr, HAS_PREVIOUS: tl.constexpr, HAS_OTHER: tl.constexpr, HAS_FINITE: tl.constexpr,
    HAS_CHANGE: tl.constexpr, HAS_BIAS: tl.constexpr, CHECKS: tl.constexpr, COMPARES: tl.constexpr,
    SUMS: tl.constexpr, AT_VERIFIED: tl.constexpr, AT_Q: tl.constexpr, AT_SETTLE: tl.constexpr,
    AT_CUMULATIVE: tl.constexpr, AT_TOKEN: tl.constexpr, THRESHOLD: tl.constexpr, TOLERANCE: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """`reference.observe` and `reference.decide`, or one of them, for the row of one sample."""
    sample = tl.program_id(0).to(tl.int64)
    row, floats = rows_ptr + sample * WIDTH, floats_ptr + sample * WIDTH
    doubles = doubles_ptr + sample * (WIDTH // 2)
    if OBSERVES:
        y_ptr += sample * y_stride_b
        offs_s = tl.arange(0, BLOCK_S)
        token, wrong = decode(logits_ptr + sample * logits_stride_b, offs_s, offs_s < S, logits_stride_s,
                              logits_stride_v, V, BLOCK_S)  # fmt: skip
        if HAS_PREVIOUS:
            previous_ptr += sample * previous_stride_b
            if CHECKS:
                wrong += broken(y_ptr, y_stride_l, y_stride_d, L, D, BLOCK_L, BLOCK_D)
        if HAS_OTHER:
            wrong += broken(other_ptr + sample * other_stride_b, other_stride_l, other_stride_d, L, D,
                            BLOCK_L, BLOCK_D)  # fmt: skip
        logit = float("nan")
        if HAS_Q:
            logit = tl.load(q_ptr + sample * q_stride_b)
            wrong += ((tl.abs(logit) < float("inf")) == 0).to(tl.int32)
            if COMPARES:
                second = tl.load(q_ptr + sample * q_stride_b + q_stride_k)
                wrong += ((tl.abs(second) < float("inf")) == 0).to(tl.int32)
                logit = logit - second
        finite = (wrong == 0).to(tl.int32)
        if HAS_FINITE:
            given = tl.load(finite_ptr + sample).to(tl.int32)
            finite = finite & given if CHECKS else given
        residual = float("nan")
        if HAS_CHANGE:
            residual = tl.load(change_ptr + sample).to(tl.float32)
        elif HAS_PREVIOUS:
            residual = relative_change(y_ptr, previous_ptr, y_stride_l, y_stride_d, previous_stride_l,
                                       previous_stride_d, L, D, BLOCK_L, BLOCK_D)  # fmt: skip
        may = tl.load(row + STEPS) + 1 >= min_steps
        observe(row, floats, doubles, token, finite, logit, residual, min_steps, S, P, SUMS, AT_VERIFIED >= 0, BLOCK_S)
        if P > 0:
            tl.debug_barrier()
            halt_tokens(row, doubles, y_ptr, weight_ptr, bias_ptr, y_stride_l, y_stride_d, D, may, P, S, HAS_BIAS,
                        COMPARES, BLOCK_L, BLOCK_D)  # fmt: skip
        tl.debug_barrier()
    if DECIDES:
        confirmed = tl.load(confirmed_ptr + sample).to(tl.int32) if AT_VERIFIED >= 0 else 0
        decide(row, floats, doubles, confirmed, min_steps, settle_steps, S, P, AT_VERIFIED >= 0, AT_VERIFIED, AT_Q,
               AT_SETTLE, AT_CUMULATIVE, AT_TOKEN, THRESHOLD, TOLERANCE, BLOCK_S, BLOCK_P)  # fmt: skip


def halting_step(
    state: SlotState, policy: HaltingPolicy, seen: Outputs | None, confirmed: Tensor | None, sums: bool
) -> None:
    """`reference.observe` of `seen`, if any, and `reference.decide` unless the verifier has to look first."""
    rows, (count, seq_len), positions = state.rows, state.answers.shape, state.token_halted.shape[1]
    if count == 0:
        return
    at = {name: place for place, name in reversed(list(enumerate(policy.on)))}
    at_q = min((at[name] for name in ("q", "q_continue") if name in at), default=-1)
    decides = "verified" not in policy.on or confirmed is not None
    none = torch.empty(0, 0, 0, dtype=torch.float32, device=rows.device)
    here = Outputs(none, None, none) if seen is None else seen
    checks, finite = here.finite is None, here.finite
    if checks and len(here.others) > 1:  # the kernel looks at one of them
        finite = reference.all_finite(replace(here, others=here.others[1:], previous=None))
    y, q = here.output, here.q
    weight, bias = (None, None) if here.head is None else here.head
    previous = y if here.previous is None else here.previous
    looks, other = bool(here.others) and checks, here.others[0] if here.others else y

    def or_rows(tensor: Tensor | None) -> Tensor:  # what is absent is not read
        return rows if tensor is None else tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor

    launch(
        halting_kernel, select(TABLE, "halting.step", y.dtype, y.shape[1]), (count,),
        rows, rows.view(torch.float32), rows.view(torch.float64), here.logits, or_rows(q), y, previous,
        other, or_rows(None if weight is None else weight.contiguous()), or_rows(bias),
        or_rows(finite), or_rows(here.change), or_rows(confirmed), policy.min_steps, policy.settle_steps,
        here.logits.shape[2], y.shape[1], y.shape[2], *here.logits.stride(),
        *((0, 0) if q is None else q.stride()), *y.stride(), *previous.stride(), *other.stride(),
        S=seq_len, P=positions, WIDTH=rows.shape[1], OBSERVES=seen is not None, DECIDES=decides,
        HAS_Q=q is not None, HAS_PREVIOUS=here.previous is not None, HAS_OTHER=looks,
        HAS_FINITE=finite is not None, HAS_CHANGE=here.change is not None, HAS_BIAS=bias is not None, CHECKS=checks,
        COMPARES=here.compares, SUMS=q is not None and (sums or "cumulative" in policy.on),
        AT_VERIFIED=at.get("verified", -1), AT_Q=at_q, AT_SETTLE=at.get("settle", -1),
        AT_CUMULATIVE=at.get("cumulative", -1), AT_TOKEN=at.get("cumulative_token", -1),
        THRESHOLD=math.log(policy.q_threshold / (1 - policy.q_threshold)),
        TOLERANCE=float(policy.settle_tolerance), BLOCK_S=triton.next_power_of_2(seq_len),
        BLOCK_P=triton.next_power_of_2(max(positions, 1)), enable_fp_fusion=False,
    )  # fmt: skip
