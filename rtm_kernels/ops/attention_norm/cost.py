"""FLOPs, bytes and special functions of attention_norm's own kernels; the attention is PyTorch's, a line of its own."""

from __future__ import annotations

from collections.abc import Iterator

from rtm_kernels.ops.attention_norm.launch import TABLE, named
from rtm_kernels.ops.cost import KernelCost, row_for, up

HOPPER = ("hopper", "portable")


def forward(
    batch: int, length: int, width: int, heads: int, terms: int, qk_norm: bool = False, rope: bool = True,
    element: int = 2, families: tuple[str, ...] = HOPPER,
) -> Iterator[KernelCost]:  # fmt: skip
    """The launches of one forward call, and SDPA between them."""
    rows, head_dim, bits = batch * length, width // heads, 8 * element
    latent, half = element * rows * width, (head_dim + 1) // 2
    blocks = row_for(TABLE, named("attention_norm.qkv", width), bits, half, families).blocks
    executed, in_tile = up(rows, blocks["BLOCK_M"]), up(3 * heads, blocks["BLOCK_H"])
    tables = 2 * 4 * length * head_dim * rope
    yield KernelCost(
        "attention_norm.qkv", 2 * executed * in_tile * 2 * blocks["BLOCK_E"] * up(width, blocks["BLOCK_K"]),
        6 * rows * width * width, latent * (4 + terms + (terms > 0)) + 3 * element * width * width + tables,
        2 * executed * in_tile * qk_norm,
    )  # fmt: skip
    yield KernelCost("attention (PyTorch)", *_attention(batch, length, width, heads, element))
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


def _attention(batch: int, length: int, width: int, heads: int, element: int) -> tuple[int, int, int, int]:
    """FLOPs, useful FLOPs, bytes and exponentials of softmax(q k^T) v without padding."""
    flops = 4 * batch * length * length * width
    return flops, flops, 4 * element * batch * length * width, batch * heads * length * length
