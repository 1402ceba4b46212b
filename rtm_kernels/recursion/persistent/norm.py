"""The phase that ends a program: the norm of every latent that is still pending."""

from __future__ import annotations

import triton
import triton.language as tl

from rtm_kernels.recursion.persistent.device import load_normed


@triton.jit
def norm_phase(latents_ptr, partials_ptr, slots_ptr, n_slots, B, eps,
               L: tl.constexpr, D: tl.constexpr, N_PARTS: tl.constexpr, BLOCK_R: tl.constexpr):  # fmt: skip
    """Normalise in place, over D, every latent that the program has written; one tile per (slot, row block)."""
    PADDED: tl.constexpr = triton.next_power_of_2(D)
    offs_d = tl.arange(0, PADDED)
    n_rows = B * L
    n_blocks = tl.cdiv(n_rows, BLOCK_R)
    tile = tl.program_id(0)
    while tile < n_slots * n_blocks:
        first_row = tl.load(slots_ptr + tile // n_blocks).to(tl.int64) * n_rows
        rows = (tile % n_blocks).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
        mask_rows = rows < n_rows
        mask = mask_rows[:, None] & (offs_d[None, :] < D)
        x_ptr = latents_ptr + first_row * D
        y = load_normed(x_ptr, partials_ptr + first_row * N_PARTS, rows, offs_d, mask, mask_rows, True, eps,
                        D, N_PARTS)  # fmt: skip
        tl.store(x_ptr + rows[:, None] * D + offs_d[None, :], y, mask)
        tile += tl.num_programs(0)
