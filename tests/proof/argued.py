"""Seeded defects of compiled code that `defects` does not find, each with the reason why it changes nothing."""

from __future__ import annotations

Place = tuple[str, str, str, str]
"""Part of a case's name, kernel, kind of defect, line of the source."""
ARGUED: dict[Place, tuple[tuple[int, int], str]] = {
    ("", "plan_kernel", "barrier", "tl.debug_barrier()  # the samples just stored are read by other threads"):
        ((1, 1), "the two sums after the last store of a sample have barriers, and samples are loaded behind them"),
    ("token", "halting_kernel", "barrier", "tl.debug_barrier() halt_tokens(row, doubles, y_ptr, weight_ptr, bias_ptr, "
     "y_stride_l, y_stride_d, D, may, P, S, HAS_BIAS,"):
        ((1, 1), "halt_tokens loads nothing that observe stores, and has a barrier of its own before it stores"),
    ("token", "halting_kernel", "barrier", "tl.debug_barrier() tl.store(answers_ptr + S, answers, mask=mask & better)"):
        ((1, 1), "with a flag for each token, the sum of the flags has barriers after the last load of what is stored"),
    ("persistent", "recursion_kernel", "barrier", "tl.debug_barrier()  # no warp loads before the acquire"):
        ((1, 1), "what ends the spin reaches other threads by way of shared memory, behind barriers after the acquire"),
    ("persistent", "recursion_kernel", "barrier",
     "return (x.to(tl.float32) * scale[:, None]).to(x.dtype).to(tl.float32)"):
        ((1, 0), "each warp overwrites only what it has itself read or stored"),
    ("persistent", "recursion_kernel", "barrier",
     "w_down = tl.load(down_ptrs, (offs_l[:, None] < L) & mask_i[None, :], other=0.0)"):
        ((1, 0), "the copies go where nobody has read or stored since the barrier before"),
    ("persistent", "recursion_kernel", "barrier", "y = (residual + acc).to(out_ptr.dtype.element_ty)"):
        ((0, 1), "each thread overwrites only what it has itself read"),
    ("persistent", "recursion_kernel", "16-bit sum", "acc = tl.dot(inner, w, acc, input_precision=\"ieee\")"):
        ((1, 0), "the product itself adds the residual, so its sum is what is rounded to 16 bits next"),
    ("persistent", "recursion_kernel", "mask", "tl.store(q_ptr + 2 * rows + k, logit, mask_rows)"):
        ((2, 2), "120 rows are a whole number of blocks"),
    ("swiglu_norm-[3", "fused_kernel", "barrier", "for f in range(0, F, BLOCK_F):"):
        ((1, 0), "behind the loop each warp stores only where copies of its own have landed"),
    ("swiglu_norm-[3", "fused_input_grad_kernel", "barrier",
     "w = tl.load(w_ptrs, mask=mask_w, other=0.0)  # [BN, 2 BF]"):
        ((1, 0), "copies go where products of the round before read; each warp waits for them before other barriers"),
    ("_norm", "weight_grad_kernel", "barrier",
     "z = tl.load(z_ptrs, mask=mask_p[:, None] & mask_r[None, :], other=0.0)  # [BP, BR]"):
        ((2, 0), "the part that is not copied is stored before a third barrier, which orders the copies as well"),
    ("_norm", "hidden_backward_kernel", "barrier",
     "w = tl.load(w_ptrs, mask=mask_rows & below(n + offs_n, N_PAD, BLOCK_N)[:, None], other=0.0)  # [BN, 2 BF]"):
        ((2, 1), "the part that is not copied is stored before a third barrier, which orders the copies as well"),
    ("_norm", "hidden_backward_kernel", "barrier", "for n in range(0, N, BLOCK_N):"):
        ((1, 1), "behind the loop each warp stores only where copies of its own have landed"),
    ("attention", "qkv_kernel", "barrier",
     "for k in range(0, d_end, BLOCK_K):  # D as a value of the run, as `gemm_kernel` takes K"):
        ((1, 0), "behind the loop each warp stores only where copies of its own have landed"),
    ("attention", "qkv_kernel", "barrier",
     "tl.store(rstd_ptr + start * 2 * HEADS + rows[:, None] * 2 * HEADS + heads[None, :], rstd, mask=kept)"):
        ((1, 0), "each warp overwrites only what it has itself read, and reads only what it has itself stored"),
    ("attention", "gemm_kernel", "barrier",
     "a = tl.load(a_ptrs, mask=mask_r[:, None] & mask_k[None, :], other=0.0)  # [BR, BK]"):
        ((1, 0), "the copies of each warp go where that warp alone has read"),
    ("attention", "gemm_kernel", "cp.async wait", "for k in range(0, k_end, BLOCK_K):"):
        ((1, 0), "after so few rounds the copies under way go to other stages than the one stored to behind the loop"),
    ("tma", "gate_up_tma_kernel", "barrier", "for n in range(0, N, BLOCK_N):"):
        ((1, 0), "the tiles behind it go where the round before read, and another barrier stands between"),
    ("tma", "gate_up_tma_kernel", "barrier", "w_up = gate_up_desc.load([F + start_f, n])"):
        ((2, 0), "tiles have places of their own, which the stores after the barrier leave alone"),
    **{
        ("token_loss", "forward_kernel", "mask", f"tl.store({what}, mask=mask_l)"):
            ((1, 1), "of a vocabulary this wide a tile is one token, so none lies beyond the last one")
        for what in ("saved_ptr + row, rest", "prediction_ptr + row, prediction")
    },
}  # fmt: skip
"""Place -> how many defects there are not found in a kernel for sm_90 and for sm_80, and why they change nothing."""
