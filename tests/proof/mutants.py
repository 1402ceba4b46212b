"""Seeded defects of the kernels, as data: the file, what is found there once, its replacement, the case that kills."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """`find` occurs once in `file`; `kill` is an op and a part of the case's name; `how` is the dtype in which Triton's
    interpreter runs it, "compiled": executed as compiled for sm_90, in bfloat16, or "refused": by the compile gate."""

    file: str
    find: str
    replace: str
    kill: tuple[str, str]
    how: str = "float32"


OPPOSITE, LARGE, FUSED_APART, APART, GROUPED = (
    ("swiglu_norm", "F=40 terms=2 opposite"), ("swiglu_norm", "F=24 terms=0 large"),
    ("swiglu_norm", "F=64 terms=0 transposed"), ("mixer_norm", "[1, 131, 17]"), ("mixer_norm", "[9, 72, 5]"),
)  # fmt: skip
FUSED, DOWN_NORM, LONG, WIDE = (
    ("swiglu_norm", "[3, 7, 24] F=40 terms=2"), ("swiglu_norm", "[2, 11, 70] F=33"),
    ("swiglu_norm", "[2, 9, 70] F=24 terms=1"), ("swiglu_norm", "[1, 5, 136]"),
)  # fmt: skip
MIXER, HIDDEN, MIXER_LONG, SINGLE = (
    ("mixer_norm", "[2, 17, 24] F=33"), ("mixer_norm", "[2, 7, 20] F=24 hidden"), ("mixer_norm", "[1, 130, 20]"),
    ("mixer_norm", "[3, 1, 64] F=40"),
)  # fmt: skip
TURNED, CAUSAL, ODD, OUT_WIDE, MANY_ROWS, SEGMENTS = (
    ("attention_norm", "[3, 7, 24]"), ("attention_norm", "[2, 9, 32]"), ("attention_norm", "[1, 5, 130]"),
    ("attention_norm", "[1, 6, 144]"), ("attention_norm", "[2, 97, 64]"), ("attention_norm", "[2, 10, 32]"),
)  # fmt: skip
FIRST, CONTINUE, TOKEN, TOKEN_CONTINUE, SUM, MOVING, VERIFIES, BROKEN_APART = (
    ("halting", "[5, 9, 70] q"), ("halting", "q_continue strided"), ("halting", "cumulative_token"),
    ("halting", "q_continue+cumulative_token"), ("halting", "cumulative offset"), ("halting", "settle=2/0.06+q"),
    ("halting", "verified"), ("halting", "cumulative+settle=2 strided"),
)  # fmt: skip
ALONG, GRID = ("conv_swiglu_norm", "[2, 13, 32, 40]"), ("conv_swiglu_norm", "[2, 67, 12, 33]")
STABLEMAX, SOFTMAX, SOFTMAX_TILES = (
    ("token_loss", "[3, 67, 11] plain scale=3 ignored=0.3 stablemax"),
    ("token_loss", "[3, 67, 11] plain scale=3 ignored=0.3 softmax"),
    ("token_loss", "[2, 5, 70] transposed scale=10 ignored=0.2 softmax"),
)
ADAM, NO_MOMENTUM = ("adam_atan2", "[7, 130]"), ("adam_atan2", "beta1=0.0")
SIGN, FEW_DUPLICATES = ("sign_sgd", "B=12"), ("sign_sgd", "N=64 B=31")
PERSISTENT, PERSISTENT_HIDDEN, TWO_STACKS = (
    ("persistent", "trm [2, 9, 24]"), ("persistent", "rtm [3, 5, 40]"), ("persistent", "hrm"),
)  # fmt: skip

_SWIGLU = (
    ("tiles", "total += tl.load(second_ptr", "total -= tl.load(second_ptr", FUSED),
    ("tiles", "(h.to(ACC) + total)", "(total)", FUSED),
    ("tiles", "return offs < SIZE", "return offs <= SIZE", DOWN_NORM),
    ("tiles", "return gate / (1.0 + tl.exp(-gate)) * up", "return gate / (1.0 + tl.exp(gate)) * up", FUSED),
    ("tiles", "return gate / (1.0 + tl.exp(-gate)) * up", "return tl.maximum(gate, 0.0) * up", LONG),
    ("tiles", "(sigmoid + silu * (1.0 - sigmoid))", "(sigmoid + silu * (1.0 + sigmoid))", FUSED),
    ("tiles", "return silu * up, d_gate, d_act * silu", "return silu * up, d_gate, d_act * sigmoid", LONG),
    ("tiles", "gate, up = tl.split(z)", "up, gate = tl.split(z)", FUSED),
    ("tiles", "return (pid // blocks).to(", "return (pid * 0).to(", MIXER),
    ("forward", "for f in range(0, F, BLOCK_F):", "for f in range(BLOCK_F, F, BLOCK_F):", FUSED),
    ("forward", "    acc += h.to(ACC)\n", "", FUSED),
    ("forward", "/ N + tl.cast(eps, ACC))\n        tl.store(rstd_ptr + batch * R + offs_r, rstd, mask=offs_r < R)",
     "/ N)\n        tl.store(rstd_ptr + batch * R + offs_r, rstd, mask=offs_r < R)", FUSED),
    ("forward", "/ N + tl.cast(eps, ACC))\n        tl.store(rstd_ptr + batch * R + offs_r, rstd, mask=offs_r < R)",
     "/ BLOCK_N + tl.cast(eps, ACC))\n        tl.store(rstd_ptr + batch * R + offs_r, rstd, mask=offs_r < R)", FUSED),
    ("forward", "    for n in range(0, N, BLOCK_N):\n        mask_h",
     "    for n in range(0, N - BLOCK_N, BLOCK_N):\n        mask_h", LONG),
    ("forward", "h_offs += BLOCK_N * tl.cast(h_stride_n, tl.int64)", "h_offs += BLOCK_N", MIXER_LONG),
    ("forward", "a_offs = (batch * R + offs_r)[:, None] * F", "a_offs = (batch * R + offs_r)[:, None] * N", LONG),
    *(("forward", "acc = tl.load(h_ptr + h_offs, mask=mask, other=0.0).to(ACC)",
       "acc = tl.zeros((BLOCK_R, BLOCK_N), dtype=ACC)", case) for case in (DOWN_NORM, CAUSAL)),
    ("forward", "/ N + tl.cast(eps, ACC))\n        tl.store(rstd_ptr + batch * R + offs_r, rstd, mask=mask_r)",
     "/ N)\n        tl.store(rstd_ptr + batch * R + offs_r, rstd, mask=mask_r)", CAUSAL),
    ("forward", "for k in range(0, k_end, BLOCK_K):", "for k in range(BLOCK_K, k_end, BLOCK_K):", ODD),
    ("forward", "w_ptrs += BLOCK_K * w_stride_k", "w_ptrs += BLOCK_K", WIDE),
    ("forward", "        squares += y * y\n", "        squares += tl.abs(y)\n", WIDE),
    *(("forward", "(y * rstd[:, None]).to(y_ptr.dtype.element_ty)", "y.to(y_ptr.dtype.element_ty)", case)
      for case in (HIDDEN, OUT_WIDE)),
    ("forward", "rstd = 1.0 / tl.sqrt(tl.sum(squares, axis=1) / N + tl.cast(eps, ACC))",
     "rstd = 1.0 / (tl.sqrt(tl.sum(squares, axis=1) / N) + tl.cast(eps, ACC))", HIDDEN),
    *(("backward", "projection = tl.sum(products, axis=1) / N", "projection = tl.sum(products, axis=1)", case)
      for case in (FUSED, CAUSAL)),
    ("backward", "if N == 1 else", "if N == 0 else", SINGLE),
    ("backward", "        products += dy * y\n", "", HIDDEN),
    ("backward", "tl.store(dz_ptrs + F, d_up.to", "tl.store(dz_ptrs + F, d_gate.to", LONG),
    ("backward", "act, d_gate, d_up = silu_gate_backward(d_act, gate, up)",
     "act, d_gate, d_up = silu_gate_backward(d_act, up, gate)", LONG),
    ("backward", "share = tl.cdiv(B * blocks_r, SPLITS)", "share = B * blocks_r // SPLITS", MANY_ROWS),
    *(("backward", "(block < B * blocks_r)", "(block < B * blocks_r - 1)", case) for case in (MIXER_LONG, CAUSAL)),
    ("backward", "out_ptr + (split.to(tl.int64) * P + offs_p)[:, None] * N_PAD", "out_ptr + offs_p[:, None] * N_PAD",
     LONG),
    ("backward", "offs_p)[:, None] * N_PAD + offs_n", "offs_p)[:, None] * N + offs_n", FUSED),
    ("backward", "x_offs, mask, TERMS, ACC)\n    tl.store(h_ptr", "x_offs, mask, 0, ACC)\n    tl.store(h_ptr", FUSED),
    ("fused_backward", "(acc + dr.to(ACC))", "(acc)", FUSED),
    ("fused_backward", "join_gate_up(d_gate, d_up,", "join_gate_up(d_up, d_gate,", FUSED),
    ("fused_backward", "tl.store(dz_ptrs + F, d_up", "tl.store(dz_ptrs + F, d_gate", FUSED),
    ("fused_backward", "silu_gate_backward(d_act, gate, up)", "silu_gate_backward(d_act, up, gate)", FUSED),
    ("fused_backward", "dz_ptrs += BLOCK_F", "dz_ptrs += BLOCK_F // 2", MIXER),
    ("fused_backward", "mask = (offs_r < R)[:, None] & below(offs_n, N, BLOCK_N)",
     "mask = (offs_r < R - 1)[:, None] & below(offs_n, N, BLOCK_N)", MIXER),
    # another association of three terms
    ("tiles", "total += tl.load(second_ptr + offsets, mask=mask, other=0.0).to(ACC)",
     "h, total = h.to(ACC) + total, tl.load(second_ptr + offsets, mask=mask, other=0.0).to(ACC)", OPPOSITE),
    # strides of two tensors, and the last group of tiles
    ("forward", "offs_r[:, None] * y_stride_r + offs_n.to(tl.int64)[None, :] * y_stride_n\n    tl.store",
     "offs_r[:, None] * x_stride_r + offs_n.to(tl.int64)[None, :] * x_stride_n\n    tl.store", FUSED_APART),
    ("forward", "y_offs = batch * y_stride_b + offs_r[:, None] * y_stride_r + wide_n * y_stride_n",
     "y_offs = batch * y_stride_b + offs_r[:, None] * h_stride_r + wide_n * h_stride_n", APART),
    ("backward", "offs_r[:, None] * dr_stride_r + wide_n * dr_stride_n",
     "offs_r[:, None] * h_stride_r + wide_n * h_stride_n", APART),
    ("tma", "size = tl.minimum(blocks_r - first, GROUP)", "size = tl.minimum(blocks_r, GROUP)", GROUPED),
    ("tma", "first + inside % size, inside // size", "first + inside % GROUP, inside // GROUP", GROUPED),
)  # fmt: skip

_ATTENTION = (
    ("qkv", "a * cos_a - b * sin_a, b * cos_b + a * sin_b", "a * cos_a + b * sin_a, b * cos_b - a * sin_b", CAUSAL),
    ("qkv", "((start + rows) % L)", "((start * 0 + rows) % L)", MANY_ROWS),
    ("qkv", "turned = head < 2 * HEADS", "turned = head < 3 * HEADS", CAUSAL),
    ("qkv", "squares / HEAD_DIM", "squares / BLOCK_E", TURNED),
    ("qkv", "rstd = tl.where((heads < 2 * HEADS)[None, :], rstd, 1.0)", "", TURNED),
    ("qkv", "below(k + offs_k, D, BLOCK_K)", "below(k + offs_k, D - 1, BLOCK_K)", CAUSAL),
    ("qkv", "in_head = lane_e + lanes % 2 * half", "in_head = lane_e + (1 - lanes % 2) * half", CAUSAL),
    ("qkv", "a * cos_a + b * sin_b, b * cos_b - a * sin_a", "a * cos_a - b * sin_b, b * cos_b + a * sin_b", CAUSAL),
    ("qkv", "rstd * (a - normed_a * mean[:, None])", "rstd * a", TURNED),
    # units and heads
    ("qkv", "(lane_head * HEAD_DIM + in_head)", "(lane_head * HEADS + in_head)", TURNED),
    ("qkv", "column = (head * HEAD_DIM)[:, None]", "column = (head * HEADS)[:, None]", CAUSAL),
    ("qkv", "rows[:, None] * 2 * HEADS + heads[None, :], rstd", "rows[:, None] * HEADS + heads[None, :], rstd", TURNED),
    ("qkv", "head * dq_stride_h + position * dq_stride_l", "head * dq_stride_l + position * dq_stride_h", CAUSAL),
    ("qkv", "position[:, None] * HEAD_DIM + offs_e", "position[:, None] * HEADS + offs_e", CAUSAL),
    ("op", "qkv_weight.t(), residual,", "qkv_weight.t(), None,", CAUSAL),
    ("attention", "for t in heads), 0.0, causal", "for t in heads), 0.0, False", CAUSAL),
    ("attention", "*saved, 0.0, causal, attn", "*saved, 0.0, False, attn", CAUSAL),
    ("attention", "(None, causal) if bias is None", "(None, causal) if qkv.numel()", SEGMENTS),
    ("attention", "*saved, 0.0, causal, attn_mask=bias", "*saved, 0.0, causal", SEGMENTS),
)  # fmt: skip

_HALTING = (
    ("kernel", "tl.where(steps >= tl.load(row + LIMIT)", "tl.where(steps > tl.load(row + LIMIT)", MOVING),
    ("kernel", "reason = tl.where((steps >= min_steps)", "reason = tl.where((steps > min_steps)", CONTINUE),
    ("kernel", "logit.to(tl.float64) > THRESHOLD", "logit.to(tl.float64) < THRESHOLD", FIRST),
    ("kernel", "logit = logit - second", "logit = logit + second", CONTINUE),
    ("kernel", "tl.load(doubles + ACCUMULATED) >= 1", "tl.load(doubles + ACCUMULATED) >= 2", SUM),
    ("kernel", "halted = (tl.load(halted_ptr + offs_l, mask=mask, other=0) != 0) |", "halted =", TOKEN),
    ("kernel", "token = tl.where(halted != 0, old, token)", "", TOKEN),
    ("kernel", "tl.where(changed, 0, tl.load(row + STABLE) + 1)", "tl.load(row + STABLE) + 1", MOVING),
    ("kernel", "better = (better & (verified == 0)) |", "better = better |", VERIFIES),
    ("kernel", "wrong += broken(other_ptr", "wrong += 0 * broken(other_ptr", FIRST),
    ("signals", "weight_ptr + D + offs_d", "weight_ptr + offs_d", TOKEN_CONTINUE),
    ("signals", "(best == best) & ((z > best)", "(best == best) & ((z >= best)", FIRST),
    ("signals", "return tl.sqrt(tl.sum(change, axis=0))", "return tl.sum(change, axis=0)", MOVING),
    ("signals", "(y - before) * (y - before)", "(y + before) * (y - before)", MOVING),
    ("signals", "exponential * t * (1 / (6 - n))", "exponential * t * (1 / (7 - n))", SUM),
    ("kernel", "(total >= 1)", "(total >= 2)", TOKEN),
    ("kernel", "    steps = tl.load(row + STEPS) + 1\n", "    steps = tl.load(row + STEPS) + 2\n", FIRST),
    ("kernel", "better = (logit < tl.load(floats + BEST_LOGIT)) == 0",
     "better = (logit < tl.load(floats + BEST_LOGIT)) == 1", FIRST),
    ("kernel", "tl.load(row + FINITE) == 0, NON_FINITE", "tl.load(row + FINITE) != 0, NON_FINITE", FIRST),
    ("kernel", "asks = changed & (finite != 0) &", "asks = (finite != 0) &", VERIFIES),
    ("kernel", "going_on == 0, AT_TOKEN", "going_on != 0, AT_TOKEN", TOKEN),
    ("kernel", "mask=mask & better)", "mask=mask)", FIRST),
    ("signals", "first += tl.load(bias_ptr).to(tl.float32)", "first -= tl.load(bias_ptr).to(tl.float32)", TOKEN),
    ("signals", "l + rows < L, D)\n            before", "l + rows < L - 1, D)\n            before", MOVING),
    ("signals", "tl.where(x < 0, small, 1.0 - small)", "tl.where(x < 0, 1.0 - small, small)", SUM),
    # at equality
    ("kernel", "tl.load(doubles + ACCUMULATED) >= 1", "tl.load(doubles + ACCUMULATED) > 1", SUM),
    *(("kernel", "(total >= 1)", "(total > 1)", case) for case in (TOKEN, TOKEN_CONTINUE)),
    *(("kernel", "logit.to(tl.float64) > THRESHOLD", "logit.to(tl.float64) >= THRESHOLD", case)
      for case in (FIRST, CONTINUE)),
    ("kernel", "tl.load(row + STABLE) >= settle_steps", "tl.load(row + STABLE) > settle_steps", VERIFIES),
    ("kernel", "(steps >= min_steps) & (first", "(steps > min_steps) & (first", SUM),
    ("kernel", "tl.load(row + STEPS) + 1 >= min_steps", "tl.load(row + STEPS) + 1 > min_steps", TOKEN),
    # strides of two tensors
    ("kernel", "previous_ptr, y_stride_l, y_stride_d, previous_stride_l,",
     "previous_ptr, y_stride_l, y_stride_d, y_stride_l,", BROKEN_APART),
    ("kernel", "sample * other_stride_b, other_stride_l,", "sample * other_stride_b, y_stride_l,", BROKEN_APART),
    ("kernel", "wrong += broken(y_ptr, y_stride_l", "wrong += broken(y_ptr, previous_stride_l", BROKEN_APART),
)  # fmt: skip

_LOSS = (
    ("kernels", "1.0 / (1.0 + tl.abs(x))", "1.0 / (2.0 + tl.abs(x))", STABLEMAX),
    ("kernels", "            rest *= tl.where(larger, tl.exp(before - best), 1.0)\n", "", SOFTMAX_TILES),
    ("kernels", "tl.where(counted, log_inverse_share(rest, own, log_own), 0.0)",
     "log_inverse_share(rest, own, log_own)", STABLEMAX),
    ("kernels", "z * (1.0 / 3.0 +", "z * (1.0 / 4.0 +", SOFTMAX),
    ("kernels", "slope = tl.where(x < 0, weight * weight, 1.0)", "slope = tl.where(x < 0, weight, 1.0)", STABLEMAX),
    ("kernels", "(-scale * own_slope * rest)", "(scale * own_slope * rest)", SOFTMAX),
    ("kernels", "tl.where(larger, v + index, prediction)", "tl.where(larger, index, prediction)", SOFTMAX_TILES),
    ("kernels", "tl.where(other, weight, 0.0)", "tl.where(mask, weight, 0.0)", STABLEMAX),
)  # fmt: skip

_OPTIMISERS = (
    ("kernels", "1.57079633 - angle", "1.57079633 + angle", NO_MOMENTUM),
    ("kernels", "(1 - beta2).to(tl.float32) * (g * g)", "(1 - beta2).to(tl.float32) * tl.abs(g)", ADAM),
    ("kernels", "(1 - beta1).to(tl.float32) * (g - m)", "(1 - beta1).to(tl.float32) * g", ADAM),
    ("kernels", "p * decay.to(tl.float32) - ", "p - ", ADAM),
    ("kernels", "rate = lr / (1 - tl.exp2(step * log_beta1))", "rate = lr", ADAM),
    ("kernels", "tl.exp2(step * log_beta2)", "tl.exp2(log_beta2)", ADAM),
    ("kernels", "tl.load(row + 5), 0)", "tl.load(row + 5) - 1, 0)", ADAM),
    ("kernels", "place += 1", "place += 2", SIGN),
    ("kernels", "tl.where(total < 0, -1.0, 0.0)", "tl.where(total < 0, -1.0, 1.0)", FEW_DUPLICATES),
    ("kernels", "w * decay.to(w.dtype)", "w", SIGN),
)

_PERSISTENT = (
    ("token_mix", "h = (state + inject)", "h = (state - inject)", PERSISTENT),
    ("token_mix", "/ L + eps)[None, :]", "/ L)[None, :]", PERSISTENT),
    ("token_mix", "h.to(tl.float32) + mlp", "mlp", PERSISTENT),
    ("token_mix", "mask_i = offs_i < INNER_L", "mask_i = offs_i < INNER_L - 1", PERSISTENT),
    ("channel", "inner = gate * tl.sigmoid(gate) * up", "inner = up * tl.sigmoid(up) * gate", PERSISTENT),
    ("channel", "y = (residual + acc)", "y = (acc)", PERSISTENT),
    ("channel", "gate, up = gate * scale[:, None], up * scale[:, None]",
     "gate, up = gate + scale[:, None] * 0.0, up", PERSISTENT_HIDDEN),
    ("channel", "for k0 in range(0, INNER_D, BLOCK_K):", "for k0 in range(BLOCK_K, INNER_D, BLOCK_K):", PERSISTENT),
    ("device", "tl.sum(squares, axis=1) / D + eps", "tl.sum(squares, axis=1) / D", PERSISTENT),
    ("device", "is_pending = tl.full(rows.shape, pending, tl.int32) != 0",
     "is_pending = tl.full(rows.shape, pending, tl.int32) >= 0", PERSISTENT),
    ("kernel", "slots_ptr + tile // n_blocks", "slots_ptr", PERSISTENT),
    ("kernel", "tl.load(row_ptr + 1).to(tl.int64) * LAYER_SIZE", "tl.load(row_ptr + 1).to(tl.int64) * 0", TWO_STACKS),
    ("kernel", "weight_ptr + k * D", "weight_ptr", PERSISTENT),
    ("kernel", "bias_ptr + k, rows", "bias_ptr, rows", PERSISTENT),
    ("kernel", "previous_ptr + start, D", "y_ptr + start, D", PERSISTENT),
)  # fmt: skip

_CONVOLUTION = [
    ("kernels", "t + step_column\n", "t - step_column\n", ALONG),
    ("kernels", "cell // SIDE + step_row", "cell // SIDE - step_row", GRID),
    ("kernels", "(row < SIDE)", "(row <= SIDE)", GRID),
    ("kernels", "(column < SIDE)", "(column <= SIDE)", GRID),
    ("kernels", "(t >= PREFIX) & ", "", GRID),
    ("kernels", "silu * up, total)", "total, total)", GRID),
    ("kernels", "tl.load(bias_ptr + f, mask", "tl.load(bias_ptr + f * 0, mask", ALONG),
    ("kernels", "share * (1.0 + pre * (1.0 - share))", "share * (1.0 + pre * share)", ALONG),
    ("kernels", "K // 2 - tap // K, K", "tap // K - K // 2, K", GRID),
    ("kernels", "part_ptr + pid * (taps + 1) * F", "part_ptr + pid * taps * F", ALONG),
    ("kernels", "own = tl.where((t < PREFIX)[:, None], 0.0, own)", "own = own + 0.0", GRID),
    ("kernels", "d_gate = dact * up * share", "d_gate = dact * share", ALONG),
    ("kernels", "total[taps].to(bias", "total[taps - 1].to(bias", ALONG),
]

FOLDERS = {
    "ops/swiglu": _SWIGLU, "ops/attention_norm": _ATTENTION, "ops/halting": _HALTING, "ops/token_loss": _LOSS,
    "ops/conv_swiglu_norm": _CONVOLUTION,
    "ops/adam_atan2": _OPTIMISERS, "recursion/persistent": _PERSISTENT,
}  # fmt: skip


IN_16_BITS = (
    ("ops/swiglu/forward", "        squares += y * y\n",
     "        squares += (y * y).to(y_ptr.dtype.element_ty).to(ACC)\n", LARGE, "float16"),
    ("ops/swiglu/forward", "act = silu_gate(gate, up).to(h.dtype)", "act = gate.to(h.dtype)", FUSED, "bfloat16"),
    ("ops/swiglu/forward", "        squares += y * y\n", "        squares += tl.abs(y)\n", WIDE, "bfloat16"),
    ("ops/swiglu/backward", "tl.store(dz_ptrs + F, d_up.to", "tl.store(dz_ptrs + F, d_gate.to", LONG, "bfloat16"),
    ("ops/attention_norm/qkv", "squares / HEAD_DIM", "squares / BLOCK_E", TURNED, "bfloat16"),
    ("ops/token_loss/kernels", "(-scale * own_slope * rest)", "(scale * own_slope * rest)", SOFTMAX, "bfloat16"),
    ("ops/conv_swiglu_norm/kernels", "(row < SIDE)", "(row <= SIDE)", GRID, "bfloat16"),
    ("recursion/persistent/device", "(x.to(tl.float32) * scale[:, None]).to(x.dtype).to(tl.float32)",
     "x.to(tl.float32)", PERSISTENT, "bfloat16"),
    ("recursion/persistent/token_mix", "y = (h.to(tl.float32) + mlp).to(h.dtype)", "y = mlp.to(h.dtype)",
     PERSISTENT, "bfloat16"),
)  # fmt: skip
"""What the interpreter must notice in 16 bits: sums that overflow, and some of the above once more."""
DOT = 'out_dtype=ACC, input_precision="ieee")'
COMPILED = (
    # sums that are rounded on their way, and products that are not IEEE products
    ("ops/swiglu/forward", f"acc = tl.dot(a, w, acc, {DOT}", f"acc = tl.dot(a, w, acc, {DOT}.to(a.dtype).to(ACC)",
     WIDE),
    ("ops/swiglu/forward", f"z = tl.dot(h, w, z, {DOT}", f"z = tl.dot(h, w, z, {DOT}.to(h.dtype).to(ACC)", WIDE),
    ("ops/swiglu/backward", "tl.store(out_ptrs, acc,", "tl.store(out_ptrs, acc.to(z_ptr.dtype.element_ty).to(ACC),",
     WIDE),
    ("ops/attention_norm/qkv", f"acc = tl.dot(h, w, acc, {DOT}", f"acc = tl.dot(h, w, acc, {DOT}.to(h.dtype).to(ACC)",
     CAUSAL),
    ("ops/swiglu/forward", f"z = tl.dot(h, w_gate_up, {DOT}", f"z = tl.dot(h, w_gate_up, {DOT.replace('ieee', 'tf32')}",
     FUSED),
    # races
    ("recursion/persistent/device", "    tl.debug_barrier()  # the stores of all warps come before the release\n", "",
     PERSISTENT),
    ("recursion/persistent/device", 'sem="release"', 'sem="relaxed"', PERSISTENT),
    ("recursion/persistent/device", 'sem="acquire"', 'sem="relaxed"', PERSISTENT),
    ("recursion/persistent/device", 'mask, other=0.0, cache_modifier=".cg")\n    is_pending',
     "mask, other=0.0)\n    is_pending", PERSISTENT),
    ("ops/halting/kernel", "total = tl.load(doubles + ACCUMULATED)\n    tl.debug_barrier()\n",
     "total = tl.load(doubles + ACCUMULATED)\n", TOKEN),
    ("ops/halting/kernel", "    tl.debug_barrier()\n    tl.store(answers_ptr + S", "    tl.store(answers_ptr + S",
     FIRST),
    ("ops/halting/kernel", "        tl.debug_barrier()\n    if DECIDES", "    if DECIDES", MOVING),
)  # fmt: skip
"""What the interpreter cannot see and compiled code must show, or its IR."""
TOO_EARLY = Mutant(
    "rtm_kernels/recursion/persistent/channel.py",
    """            w_ptrs = weights_ptr + offs_i[None, :] * STRIDE_D""",
    """            if NORM_HIDDEN:
                scale = row_scale(mixed_partials_ptr, rows, mask_rows, eps, D, N_MIXED_PARTS)
                x = (x.to(tl.float32) * scale[:, None]).to(x.dtype)
            w_ptrs = weights_ptr + offs_i[None, :] * STRIDE_D""",
    ("persistent", "persistent L=97 bfloat16 hidden head"), "refused",
)  # fmt: skip
"""A in registers that the loop writes while products read it, as this kernel had it before commit 1094013."""


def mutants() -> Iterator[Mutant]:
    """All of them."""
    for folder, rows in FOLDERS.items():
        for file, find, replace, kill in rows:
            yield Mutant(f"rtm_kernels/{folder}/{file}.py", find, replace, kill)
    for file, find, replace, kill, how in (*IN_16_BITS, *((*row, "compiled") for row in COMPILED)):
        yield Mutant(f"rtm_kernels/{file}.py", find, replace, kill, how)
    yield TOO_EARLY
