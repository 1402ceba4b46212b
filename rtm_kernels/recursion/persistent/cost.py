"""What one ACT step of the persistent kernel computes and moves, counted from the program and the launch row."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from rtm_kernels.recursion.persistent.pack import ROW_MULTIPLE, round_up
from rtm_kernels.recursion.persistent.runner import PersistentRecursion


@dataclass(frozen=True)
class Cost:
    """One ACT step of the whole batch, every sample active."""

    flops: int
    """Useful floating-point operations of the matrix products, a multiply-add being two."""
    padded_flops: int
    """The same with the rows and columns that tiles add."""
    weight_bytes: int
    """Bytes of the packed layers that the program applies, each once: what must be in cache."""
    latent_bytes: int
    """Bytes of the latents and the input."""
    moved_bytes: int
    """Bytes that the tiles load and store: the traffic between multiprocessors and L2."""
    phases: int
    """Phases that all programs finish before any begins the next; each ends in one grid barrier."""


def act_step_cost(recursion: PersistentRecursion) -> Cost:
    """Count one ACT step of `recursion`, the halting phase included."""
    rows = recursion.plan.rows.tolist()
    layout, batch = recursion.weights.layout, recursion.batch
    element = recursion.latents.element_size()
    useful = 6 * batch * layout.length * layout.width * (layout.inner_len + layout.inner_width)
    return Cost(
        flops=len(rows) * useful,
        padded_flops=len(rows) * _padded_flops(recursion),
        weight_bytes=len({layer for _, layer, *_ in rows}) * layout.layer_size * element,
        latent_bytes=recursion.latents.numel() * element,
        moved_bytes=sum(_token_mix_bytes(recursion, row) + _channel_bytes(recursion) for row in rows)
        + _norm_bytes(recursion),
        phases=3 * len(rows) + 1 + (recursion.head is not None),
    )


def _padded_flops(recursion: PersistentRecursion) -> int:
    layout, blocks, batch = recursion.weights.layout, recursion.row.blocks, recursion.batch
    rows = batch * layout.length
    columns = round_up(layout.width, blocks["MIX_D"])
    mix = 6 * batch * blocks["BLOCK_L"] * columns * round_up(layout.inner_len, blocks["MIX_I"])
    up = 4 * round_up(rows, blocks["UP_M"]) * round_up(layout.width, blocks["UP_K"])
    down = 2 * round_up(rows, blocks["DOWN_M"]) * round_up(layout.width, blocks["DOWN_D"])
    return (
        mix + up * round_up(layout.inner_width, blocks["UP_I"]) + down * round_up(layout.inner_width, blocks["DOWN_K"])
    )


def _parts(recursion: PersistentRecursion) -> tuple[int, int]:
    """Bytes of the partial sums of squares of one row: of a latent, and of `mixed` (0 unless normalised over D)."""
    width, blocks = recursion.weights.layout.width, recursion.row.blocks
    hidden = recursion.weights.norm_axis == "hidden"
    return 4 * ceil(width / blocks["DOWN_D"]), 4 * ceil(width / blocks["MIX_D"]) * hidden


def _token_mix_bytes(recursion: PersistentRecursion, row: list[int]) -> int:
    layout, batch, element = recursion.weights.layout, recursion.batch, recursion.latents.element_size()
    n_blocks = ceil(layout.width / recursion.row.blocks["MIX_D"])
    weights = element * layout.inner_len * 2 * round_up(layout.length, ROW_MULTIPLE)
    weights += element * layout.length * layout.inner_len
    latent_parts, mixed_parts = _parts(recursion)
    n_state, n_inject, terms = row[2], row[3], row[4:]
    half = len(terms) // 2
    read = terms[:n_state] + terms[half : half + n_inject]
    rows = batch * layout.length
    pending = sum(term % 2 for term in read)
    return (
        batch * n_blocks * weights
        + rows * (layout.width * element * (len(read) + 1) + n_blocks * latent_parts * pending + mixed_parts)
    )  # fmt: skip


def _channel_bytes(recursion: PersistentRecursion) -> int:
    layout, blocks, element = recursion.weights.layout, recursion.row.blocks, recursion.latents.element_size()
    rows = recursion.batch * layout.length
    n_inner = ceil(layout.inner_width / blocks["UP_I"])
    n_width = ceil(layout.width / blocks["DOWN_D"])
    matrix = element * layout.width * layout.inner_width
    latent_parts, mixed_parts = _parts(recursion)
    up = ceil(rows / blocks["UP_M"]) * 2 * matrix
    up += rows * (n_inner * (layout.width * element + mixed_parts) + layout.inner_width * element)
    down = ceil(rows / blocks["DOWN_M"]) * matrix
    down += rows * (n_width * (layout.inner_width * element + mixed_parts) + 2 * layout.width * element + latent_parts)
    return up + down


def _norm_bytes(recursion: PersistentRecursion) -> int:
    layout, element = recursion.weights.layout, recursion.latents.element_size()
    rows = len(recursion.written) * recursion.batch * layout.length
    return rows * (2 * layout.width * element + _parts(recursion)[0])
