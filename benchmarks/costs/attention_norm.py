"""FLOPs, bytes and special functions of attention_norm; what PyTorch runs between its kernels has lines of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from benchmarks.costs import KernelCost, row_for, up
from benchmarks.costs.swiglu import HOPPER, View, gemm, inject, norm_backward, weight_grad
from rtm_kernels.ops.attention_norm.launch import TABLE
from rtm_kernels.ops.swiglu.weights import aligned


def forward(
    batch: int, length: int, width: int, heads: int, terms: int, qk_norm: bool = False, rope: bool = True,
    element: int = 2, families: tuple[str, ...] = HOPPER,
) -> Iterator[KernelCost]:  # fmt: skip
    """The launches of one forward call, and SDPA between them."""
    view = View(1, batch * length, width, 0, terms, "hidden", element, families)
    yield from inject(view)
    yield _qkv(batch, length, width, heads, qk_norm, rope, element, families)
    flops, pairs = 4 * batch * length * length * width, batch * heads * length * length
    yield KernelCost("attention (PyTorch)", flops, flops, 4 * element * view.count * width, pairs)
    yield from gemm(view, aligned(width), width * aligned(width), normalised=True)


def backward(
    batch: int, length: int, width: int, heads: int, qk_norm: bool = False, rope: bool = True,
    element: int = 2, families: tuple[str, ...] = HOPPER,
) -> Iterator[KernelCost]:  # fmt: skip
    """The launches of one backward call, weight gradients included, and what PyTorch runs between them."""
    rows, head_dim = batch * length, width // heads
    view = View(1, rows, width, element=element, families=families)
    latent = element * rows * width
    qkv = _qkv(batch, length, width, heads, qk_norm, rope, element, families)
    yield replace(qkv, useful=0, bytes=qkv.bytes + 4 * rows * 2 * heads * qk_norm)  # q, k and v again
    yield norm_backward(view)
    yield from gemm(view, width, width * aligned(width), residual=False)
    pairs = batch * length * length
    # scores and output again; then the scores once more and the gradients of v, of the scores, of q and of k
    yield KernelCost("attention again, with gradients (PyTorch)", 14 * pairs * width, 8 * pairs * width, 12 * latent,
                     2 * pairs * heads)  # fmt: skip
    yield KernelCost("copies of the attention and of dv (PyTorch)", 0, 0, 4 * latent, 0)
    tables = 2 * 4 * length * head_dim * rope
    for _ in range(2):
        read = latent * qk_norm + 4 * rows * heads * qk_norm + tables
        yield KernelCost("turn_backward", 0, 0, 2 * latent + read, 0)
    yield from gemm(view, 3 * width, 3 * width * aligned(width))
    for outputs in (3 * width, width):
        yield weight_grad(view, outputs)


def _qkv(
    batch: int, length: int, width: int, heads: int, qk_norm: bool, rope: bool, element: int, families: tuple[str, ...]
) -> KernelCost:
    rows, head_dim = batch * length, width // heads
    blocks = row_for(TABLE, "qkv", 8 * element, (head_dim + 1) // 2, families).blocks
    executed, in_tile = up(rows, blocks["BLOCK_M"]), up(3 * heads, blocks["BLOCK_H"])
    moved = element * (4 * rows * width + 3 * width * width)
    return KernelCost(
        "qkv", 2 * executed * in_tile * 2 * blocks["BLOCK_E"] * up(width, blocks["BLOCK_K"]),
        6 * rows * width * width, moved + 2 * 4 * length * head_dim * rope, 2 * executed * in_tile * qk_norm,
    )  # fmt: skip
