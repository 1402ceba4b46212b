"""Seeded defects of the kernels, as data: the file, what is found there once, its replacement, the case that kills."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """`find` occurs once in `file`; `kill` is the start of an op's name and a part of its shape."""

    file: str
    find: str
    replace: str
    kill: tuple[str, str]


FUSED, DOWN_NORM, LONG, WIDE = (
    ("swiglu_norm", "[3, 7, 24] F=40 terms=2"), ("swiglu_norm", "[2, 11, 70] F=33"),
    ("swiglu_norm", "[2, 9, 70] F=24 terms=1"), ("swiglu_norm", "[1, 5, 136]"),
)  # fmt: skip
MIXER, HIDDEN, MIXER_LONG, SINGLE = (
    ("mixer_norm", "[2, 17, 24] F=33"), ("mixer_norm", "[2, 7, 20] F=24 hidden"), ("mixer_norm", "[1, 130, 20]"),
    ("mixer_norm", "[3, 1, 64] F=40"),
)  # fmt: skip
TURNED, CAUSAL, ODD, OUT_WIDE, MANY_ROWS = (
    ("attention_norm", "[3, 7, 24]"), ("attention_norm", "[2, 9, 32]"), ("attention_norm", "[1, 5, 130]"),
    ("attention_norm", "[1, 6, 144]"), ("attention_norm", "[2, 97, 64]"),
)  # fmt: skip
FIRST, CONTINUE, MEAN, TOKEN, SUM, SETTLE = (
    ("halting", "[5, 9, 70] q"), ("halting", "[5, 1, 7] q_continue"), ("halting", "q_continue mean"),
    ("halting", "cumulative_token"), ("halting", "cumulative_sequence"), ("halting", "settle"),
)  # fmt: skip
STABLEMAX, SOFTMAX, SOFTMAX_TILES = (
    ("token_loss", "[3, 67, 11] plain scale=3 ignored=0.3 stablemax"),
    ("token_loss", "[3, 67, 11] plain scale=3 ignored=0.3 softmax"),
    ("token_loss", "[2, 5, 70] transposed scale=10 ignored=0.2 softmax"),
)
ADAM, NO_MOMENTUM = ("adam_atan2", "[7, 130]"), ("adam_atan2", "beta1=0.0")
SIGN, FEW_DUPLICATES = ("sign_sgd", "B=12"), ("sign_sgd", "N=64 B=31")
PERSISTENT, PERSISTENT_TOKEN, PERSISTENT_MAX, PERSISTENT_SETTLE, TWO_STACKS = (
    ("persistent", "trm [2, 9, 24]"), ("persistent", "rtm [3, 5, 40]"), ("persistent", "rtm [2, 5, 40]"),
    ("persistent", "transformer [3, 5, 24]"), ("persistent", "hrm"),
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
    ("tiles", "return pid // blocks, ", "return pid * 0, ", MIXER),
    ("forward", "for f in range(0, F, BLOCK_F):", "for f in range(BLOCK_F, F, BLOCK_F):", FUSED),
    ("forward", "    acc += h.to(ACC)\n", "", FUSED),
    ("forward", "/ N + tl.cast(eps, ACC))\n        tl.store(rstd_ptr + batch * R + offs_r, rstd, mask=offs_r < R)",
     "/ N)\n        tl.store(rstd_ptr + batch * R + offs_r, rstd, mask=offs_r < R)", FUSED),
    ("forward", "/ N + tl.cast(eps, ACC))\n        tl.store(rstd_ptr + batch * R + offs_r, rstd, mask=offs_r < R)",
     "/ BLOCK_N + tl.cast(eps, ACC))\n        tl.store(rstd_ptr + batch * R + offs_r, rstd, mask=offs_r < R)", FUSED),
    ("forward", "    for n in range(0, N, BLOCK_N):\n        mask_x",
     "    for n in range(0, N - BLOCK_N, BLOCK_N):\n        mask_x", LONG),
    ("forward", "x_offs += BLOCK_N * tl.cast(x_stride_n, tl.int64)", "x_offs += BLOCK_N", MIXER_LONG),
    ("forward", "a_offs = (batch * R + offs_r)[:, None] * F", "a_offs = (batch * R + offs_r)[:, None] * N", LONG),
    ("forward", "acc = load_sum(x_ptr, first_ptr, second_ptr, x_offs, mask, TERMS, ACC).to(ACC)",
     "acc = tl.zeros((BLOCK_R, BLOCK_N), dtype=ACC)", DOWN_NORM),
    ("forward", "w_ptrs += BLOCK_K * w_stride_k", "w_ptrs += BLOCK_K", WIDE),
    ("forward", "        squares += y * y\n", "        squares += tl.abs(y)\n", WIDE),
    ("forward", "(y * rstd[:, None]).to(y_ptr.dtype.element_ty)", "y.to(y_ptr.dtype.element_ty)", HIDDEN),
    ("forward", "rstd = 1.0 / tl.sqrt(tl.sum(squares, axis=1) / N + tl.cast(eps, ACC))",
     "rstd = 1.0 / (tl.sqrt(tl.sum(squares, axis=1) / N) + tl.cast(eps, ACC))", HIDDEN),
    ("backward", "projection = tl.sum(products, axis=1) / N", "projection = tl.sum(products, axis=1)", FUSED),
    ("backward", "if N == 1 else", "if N == 0 else", SINGLE),
    ("backward", "        products += dy * y\n", "", HIDDEN),
    ("backward", "tl.store(dz_ptrs + F, d_up.to", "tl.store(dz_ptrs + F, d_gate.to", LONG),
    ("backward", "act, d_gate, d_up = silu_gate_backward(d_act, gate, up)",
     "act, d_gate, d_up = silu_gate_backward(d_act, up, gate)", LONG),
    ("backward", "share = tl.cdiv(B * blocks_r, SPLITS)", "share = B * blocks_r // SPLITS", MIXER_LONG),
    ("backward", "out_ptr + (split * P + offs_p)[:, None] * N", "out_ptr + offs_p[:, None] * N", LONG),
    ("backward", "x_offs, mask, TERMS, ACC)\n    tl.store(h_ptr", "x_offs, mask, 0, ACC)\n    tl.store(h_ptr", FUSED),
    ("fused_backward", "(acc + dr.to(ACC))", "(acc)", FUSED),
    ("fused_backward", "join_gate_up(d_gate, d_up,", "join_gate_up(d_up, d_gate,", FUSED),
    ("fused_backward", "tl.store(out_ptrs + F * N, grad_up", "tl.store(out_ptrs + F * N, grad_gate", FUSED),
    ("fused_backward", "silu_gate_backward(d_act, gate, up)  # [BF, BR]",
     "silu_gate_backward(d_act, up, gate)  # [BF, BR]", FUSED),
    ("fused_backward", "mask = (offs_r < R)[:, None] & mask_n[None, :]\n        h_offs",
     "mask = (offs_r < R - 1)[:, None] & mask_n[None, :]\n        h_offs", MIXER),
)  # fmt: skip

_ATTENTION = (
    ("qkv", "a * cos_a - b * sin_a, b * cos_b + a * sin_b", "a * cos_a + b * sin_a, b * cos_b - a * sin_b", CAUSAL),
    ("qkv", "((start + rows) % L)", "((start * 0 + rows) % L)", MANY_ROWS),
    ("qkv", "turned = head < 2 * HEADS", "turned = head < 3 * HEADS", CAUSAL),
    ("qkv", "squares / HEAD_DIM", "squares / BLOCK_E", TURNED),
    ("qkv", "rstd = tl.where((heads < 2 * HEADS)[None, :], rstd, 1.0)", "", TURNED),
    ("qkv", "mask_k = k + offs_k < D", "mask_k = k + offs_k < D - 1", CAUSAL),
    ("qkv", "in_head = lane_e + lanes % 2 * half", "in_head = lane_e + (1 - lanes % 2) * half", CAUSAL),
    ("output", "acc = tl.load(h_ptr + start * D + offs, mask=mask, other=0.0).to(ACC)",
     "acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=ACC)", CAUSAL),
    ("output", "tl.sum(acc * acc, axis=1) / D + tl.cast(eps, ACC)", "tl.sum(acc * acc, axis=1) / D", CAUSAL),
    ("output", "for k in range(0, D, BLOCK_K):", "for k in range(BLOCK_K, D, BLOCK_K):", ODD),
    ("output", "other=0.0).to(ACC) * rstd[:, None]", "other=0.0).to(ACC)", OUT_WIDE),
    ("backward", "ds = rstd[:, None] * (dy - y * mean[:, None])", "ds = rstd[:, None] * dy", CAUSAL),
    ("backward", "a * cos_a + b * sin_b, b * cos_b - a * sin_a",
     "a * cos_a - b * sin_b, b * cos_b + a * sin_a", CAUSAL),
    ("backward", "rstd * (a - normed_a * mean[:, None])", "rstd * a", TURNED),
    ("gemm_backward", "acc += tl.load(residual_ptr", "acc -= tl.load(residual_ptr", CAUSAL),
    ("gemm_backward", "end = tl.minimum(M - start, SPLIT_ROWS)", "end = tl.minimum(M - start, SPLIT_ROWS) - 1", CAUSAL),
    ("steps", "head_dim).transpose(1, 2), causal)", "head_dim).transpose(1, 2), False)", CAUSAL),
)  # fmt: skip

_HALTING = (
    ("step", "(steps >= max_steps)", "(steps > max_steps)", ("halting", "[70, 7, 24]")),
    ("step", "(steps >= least)", "(steps > least)", MEAN),
    ("step", "wants = halt > 0", "wants = halt < 0", FIRST),
    ("step", "wants = halt > carry_on", "wants = halt < carry_on", MEAN),
    ("step", "wants = accumulated + p >= 1.0", "wants = accumulated + p >= 2.0", SUM),
    ("step", "left = 1.0 - accumulated", "left = 1.0 + accumulated", TOKEN),
    ("step", "next_idle + tl.cumsum(idle, 0)) - 1", "next_idle + tl.cumsum(idle, 0)) - 0", FIRST),
    ("step", "alive_ptr, tl.num_programs(0), BLOCK_ORDER)", "alive_ptr, tl.num_programs(0) - 1, BLOCK_ORDER)", FIRST),
    ("step", "alive = tl.maximum(alive, tl.max(active, axis=0))", "alive = tl.max(active, axis=0)", TOKEN),
    ("signals", "weight_ptr + D + offs_d", "weight_ptr + offs_d", CONTINUE),
    ("step", "steps = tl.load(steps_ptr + unit, mask=mask, other=0) + active.to(tl.int32)",
     "steps = tl.load(steps_ptr + unit, mask=mask, other=0) + 1", FIRST),
    ("signals", "count = L if POOL", "count = D if POOL", MEAN),
    ("signals", "l + rows < L, stride_l", "l + rows < L - 1, stride_l", MEAN),
    ("signals", "u + rows, u + rows < end,", "u + rows, u + rows < end - 1,", TOKEN),
    ("signals", "return tl.sqrt(tl.sum(change, axis=0))", "return tl.sum(change, axis=0)", SETTLE),
    ("signals", "(y - before) * (y - before)", "(y + before) * (y - before)", SETTLE),
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
    ("adam", "1.57079633 - angle", "1.57079633 + angle", NO_MOMENTUM),
    ("adam", "(1 - beta2).to(tl.float32) * (g * g)", "(1 - beta2).to(tl.float32) * tl.abs(g)", ADAM),
    ("adam", "(1 - beta1).to(tl.float32) * (g - m)", "(1 - beta1).to(tl.float32) * g", ADAM),
    ("adam", "p * decay.to(tl.float32) - ", "p - ", ADAM),
    ("adam", "rate = lr / (1 - tl.exp2(step * log_beta1))", "rate = lr", ADAM),
    ("adam", "tl.exp2(step * log_beta2)", "tl.exp2(log_beta2)", ADAM),
    ("adam", "tl.load(row + 5), 0)", "tl.load(row + 5) - 1, 0)", ADAM),
    ("sign_sgd", "place += 1", "place += 2", SIGN),
    ("sign_sgd", "tl.where(total < 0, -1.0, 0.0)", "tl.where(total < 0, -1.0, 1.0)", FEW_DUPLICATES),
    ("sign_sgd", "w * decay.to(w.dtype)", "w", SIGN),
)

_PERSISTENT = (
    ("token_mix", "h = (state + inject)", "h = (state - inject)", PERSISTENT),
    ("token_mix", "/ L + eps)[None, :]", "/ L)[None, :]", PERSISTENT),
    ("token_mix", "h.to(tl.float32) + mlp", "mlp", PERSISTENT),
    ("token_mix", "mask_i = offs_i < INNER_L", "mask_i = offs_i < INNER_L - 1", PERSISTENT),
    ("channel", "inner = gate * tl.sigmoid(gate) * up", "inner = up * tl.sigmoid(up) * gate", PERSISTENT),
    ("channel", "y = (residual + acc)", "y = (acc)", PERSISTENT),
    ("channel", "x = (x.to(tl.float32) * scale[:, None]).to(x.dtype)",
     "x = x + scale[:, None] * 0.0", PERSISTENT_TOKEN),
    ("channel", "for k0 in range(0, INNER_D, BLOCK_K):", "for k0 in range(BLOCK_K, INNER_D, BLOCK_K):", PERSISTENT),
    ("device", "tl.sum(squares, axis=1) / D + eps", "tl.sum(squares, axis=1) / D", PERSISTENT),
    ("device", "is_pending = tl.full(rows.shape, pending, tl.int32) != 0",
     "is_pending = tl.full(rows.shape, pending, tl.int32) >= 0", PERSISTENT),
    ("norm", "slots_ptr + tile // n_blocks", "slots_ptr", PERSISTENT),
    ("kernel", "tl.load(row_ptr + 1).to(tl.int64) * LAYER_SIZE", "tl.load(row_ptr + 1).to(tl.int64) * 0", TWO_STACKS),
    ("halting", "(steps >= max_steps)", "(steps > max_steps)", PERSISTENT),
    ("halting", "wants = q_halt > 0", "wants = q_halt < 0", PERSISTENT_SETTLE),
    ("halting", "delta = y - load_rows", "delta = y + load_rows", PERSISTENT_SETTLE),
    ("halting", "weight = tl.where(halts, left, tl.minimum(weight, left))",
     "weight = tl.minimum(weight, left)", PERSISTENT_MAX),
    ("halting", "tl.load(head_ptr + 2 * D)", "tl.load(head_ptr + 2 * D + 1)", PERSISTENT),
)  # fmt: skip

_FOLDERS = {
    "ops/swiglu": _SWIGLU, "ops/attention_norm": _ATTENTION, "ops/halting": _HALTING, "ops/token_loss": _LOSS,
    "ops/adam_atan2": _OPTIMISERS, "recursion/persistent": _PERSISTENT,
}  # fmt: skip


def mutants() -> Iterator[Mutant]:
    """All of them."""
    for folder, rows in _FOLDERS.items():
        for file, find, replace, kill in rows:
            yield Mutant(f"rtm_kernels/{folder}/{file}.py", find, replace, kill)
