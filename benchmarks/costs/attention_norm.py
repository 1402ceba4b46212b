"""FLOPs, bytes and special functions of attention_norm's own kernels; what PyTorch runs between them has own lines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from benchmarks.costs import KernelCost, row_for, up
from rtm_kernels.ops.attention_norm.launch import TABLE, named, splits_of

HOPPER = ("hopper", "portable")


def forward(
    batch: int, length: int, width: int, heads: int, terms: int, qk_norm: bool = False, rope: bool = True,
    element: int = 2, families: tuple[str, ...] = HOPPER,
) -> Iterator[KernelCost]:  # fmt: skip
    """The launches of one forward call, and SDPA between them."""
    rows, bits = batch * length, 8 * element
    latent = element * rows * width
    yield _qkv(batch, length, width, heads, terms, qk_norm, rope, element, families)
    flops, pairs = 4 * batch * length * length * width, batch * heads * length * length
    yield KernelCost("attention (PyTorch)", flops, flops, 4 * latent, pairs)
    row = row_for(TABLE, named("attention_norm.output", width), bits, width, families)
    blocks, whole = row.blocks, width <= row.blocks["BLOCK_N"]
    executed = up(rows, blocks["BLOCK_M"])
    yield KernelCost(
        "attention_norm.output", 2 * executed * up(width, blocks["BLOCK_N"]) * up(width, blocks["BLOCK_K"]),
        2 * rows * width * width, 3 * latent + element * width * width + 4 * rows * whole, 2 * executed * whole,
    )  # fmt: skip
    if not whole:
        executed = up(rows, row_for(TABLE, "attention_norm.normalise", bits, width, families).blocks["BLOCK_M"])
        yield KernelCost("attention_norm.normalise", 0, 0, 2 * latent + 4 * rows, 2 * executed)


def backward(
    batch: int, length: int, width: int, heads: int, qk_norm: bool = False, rope: bool = True,
    element: int = 2, families: tuple[str, ...] = HOPPER,
) -> Iterator[KernelCost]:  # fmt: skip
    """The launches of one backward call, weight gradients included, and what PyTorch runs between them."""
    rows, bits, head_dim = batch * length, 8 * element, width // heads
    latent = element * rows * width
    qkv = _qkv(batch, length, width, heads, 0, qk_norm, rope, element, families)
    yield replace(qkv, useful=0, bytes=qkv.bytes + 4 * rows * 2 * heads * qk_norm)  # q, k and v again
    yield KernelCost("attention_norm.norm_backward", 0, 0, 3 * latent + 4 * rows, 0)
    yield _input_grad(rows, width, width, False, element, families)
    pairs = batch * length * length
    # scores and output again; then the scores once more and the gradients of v, of the scores, of q and of k
    yield KernelCost("attention again, with gradients (PyTorch)", 14 * pairs * width, 8 * pairs * width, 12 * latent,
                     2 * pairs * heads)  # fmt: skip
    yield KernelCost("copies of the attention and of dv (PyTorch)", 0, 0, 4 * latent, 0)
    tables = 2 * 4 * length * head_dim * rope
    for _ in range(2):
        read = latent * qk_norm + 4 * rows * heads * qk_norm + tables
        yield KernelCost("attention_norm.turn_backward", 0, 0, 2 * latent + read, 0)
    yield _input_grad(rows, width, 3 * width, True, element, families)
    blocks = row_for(TABLE, named("attention_norm.weight_grad", width), bits, width, families).blocks
    split_rows, splits = splits_of(rows)
    for outputs in (3 * width, width):
        tile = up(outputs, blocks["BLOCK_N"]) * up(width, blocks["BLOCK_K"])
        yield KernelCost(
            "attention_norm.weight_grad", 2 * splits * up(split_rows, blocks["BLOCK_M"]) * tile,
            2 * rows * outputs * width, element * rows * (outputs + width) + 4 * splits * outputs * width, 0,
        )  # fmt: skip


def _qkv(
    batch: int, length: int, width: int, heads: int, terms: int, qk_norm: bool, rope: bool, element: int,
    families: tuple[str, ...],
) -> KernelCost:  # fmt: skip
    rows, head_dim = batch * length, width // heads
    blocks = row_for(TABLE, named("attention_norm.qkv", width), 8 * element, (head_dim + 1) // 2, families).blocks
    executed, in_tile = up(rows, blocks["BLOCK_M"]), up(3 * heads, blocks["BLOCK_H"])
    moved = element * (rows * width * (4 + terms + (terms > 0)) + 3 * width * width)
    return KernelCost(
        "attention_norm.qkv", 2 * executed * in_tile * 2 * blocks["BLOCK_E"] * up(width, blocks["BLOCK_K"]),
        6 * rows * width * width, moved + 2 * 4 * length * head_dim * rope, 2 * executed * in_tile * qk_norm,
    )  # fmt: skip


def _input_grad(
    rows: int, n: int, k: int, residual: bool, element: int, families: tuple[str, ...]
) -> KernelCost:  # fmt: skip
    blocks = row_for(TABLE, named("attention_norm.input_grad", n), 8 * element, n, families).blocks
    executed = up(rows, blocks["BLOCK_M"]) * up(n, blocks["BLOCK_N"]) * up(k, blocks["BLOCK_K"])
    moved = element * (rows * (k + n * (1 + residual)) + n * k)
    return KernelCost("attention_norm.input_grad", 2 * executed, 2 * rows * n * k, moved, 0)
