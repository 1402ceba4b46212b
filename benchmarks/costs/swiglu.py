"""FLOPs, bytes and special functions of the SwiGLU kernels, of the launches that `launchers` makes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from benchmarks.costs import KernelCost, row_for, up
from rtm_kernels.errors import InputError
from rtm_kernels.ops.launch import LaunchRow
from rtm_kernels.ops.swiglu.weights import aligned

HOPPER = ("hopper", "portable")


@dataclass(frozen=True)
class View:
    """Rows that a half layer is applied to: `batch` times `rows` rows of `features`, with inner width `inner`.

    `element` is the size of an element in bytes, `families` whose launch rows are taken.
    """

    batch: int
    rows: int
    features: int
    inner: int
    terms: int = 0
    element: int = 2
    families: tuple[str, ...] = HOPPER

    @property
    def count(self) -> int:
        """Rows in all."""
        return self.batch * self.rows

    def executed(self, block: int) -> int:
        """Rows in all, with those that tiles of `block` rows add."""
        return self.batch * up(self.rows, block)


def forward(view: View, table: tuple[LaunchRow, ...], norm_features: bool = True) -> Iterator[KernelCost]:
    """The launches of `swiglu_residual`; with `norm_features` the rows are normalised over their features."""
    v, element = view, view.element
    inner, width = aligned(v.inner), v.features
    try:
        row = _row(v, table, "fused")
    except InputError:
        yield from _long_forward(v, table, norm_features)
        return
    blocks = row.blocks
    rows, padded = v.executed(blocks["BLOCK_R"]), up(inner, blocks["BLOCK_F"])
    yield KernelCost(
        "fused", 6 * rows * padded * blocks["BLOCK_N"], 6 * v.count * v.inner * width,
        element * (v.count * width * (2 + v.terms) + inner * (2 * aligned(width) + width)) + _rstd(v, norm_features),
        2 * rows * padded + 2 * rows * norm_features,
    )  # fmt: skip


def _long_forward(v: View, table: tuple[LaunchRow, ...], norm_features: bool) -> Iterator[KernelCost]:
    inner, width, element = aligned(v.inner), v.features, v.element
    blocks = _row(v, table, "gate_up").blocks
    rows, padded = v.executed(blocks["BLOCK_R"]), up(inner, blocks["BLOCK_F"])
    yield KernelCost(
        "gate_up", 4 * rows * padded * up(width, blocks["BLOCK_N"]), 4 * v.count * v.inner * width,
        element * (v.count * (width * (1 + v.terms) + inner) + 2 * inner * aligned(width)), 2 * rows * padded,
    )  # fmt: skip
    inside = norm_features and not v.terms
    try:
        blocks = _row(v, table, "down_norm" if inside else "residual_gemm").blocks
    except InputError:
        inside = False
        blocks = _row(v, table, "residual_gemm").blocks
    name = "down_norm" if inside else "residual_gemm"
    yield _gemm(name, v, blocks, inner, element * width * inner, v.terms, inside)
    if norm_features and not inside:
        yield normalise(v, table)


def _gemm(
    name: str, v: View, blocks: Mapping[str, int], k: int, weight_bytes: int, terms: int, normalised: bool
) -> KernelCost:  # fmt: skip
    rows = v.executed(blocks["BLOCK_R"])
    return KernelCost(
        name, 2 * rows * up(v.features, blocks["BLOCK_N"]) * up(k, blocks["BLOCK_K"]), 2 * v.count * v.features * k,
        v.element * v.count * (k + v.features * (2 + terms)) + weight_bytes + _rstd(v, normalised),
        2 * rows * normalised,
    )  # fmt: skip


def normalise(view: View, table: tuple[LaunchRow, ...]) -> KernelCost:
    """The launch of `normalise`: rows are read, normalised over their features and written."""
    rows = view.executed(_row(view, table, "norm").blocks["BLOCK_R"])
    size = 2 * view.element * view.count * view.features  # the second reading is from the cache
    return KernelCost("norm", 0, 0, size + _rstd(view, True), 2 * rows)


def norm_backward(view: View, table: tuple[LaunchRow, ...]) -> KernelCost:
    """The launch of `norm_backward`: dy and y are read, dr is written."""
    return KernelCost("norm_backward", 0, 0, 3 * view.element * view.count * view.features + _rstd(view, True), 0)


def backward(view: View, table: tuple[LaunchRow, ...]) -> Iterator[KernelCost]:
    """The launches of `injected`, `input_grad` and `weight_grads`, for the rows of one call."""
    v, element = view, view.element
    inner, width = aligned(v.inner), v.features
    latent, useful = v.count * width, 6 * v.count * v.inner * width
    weights = element * inner * (2 * aligned(width) + width)
    if v.terms:
        yield KernelCost("inject", 0, 0, element * latent * (2 + v.terms), 0)
    try:
        blocks = _row(v, table, "fused_input_grad").blocks
    except InputError:
        yield from _long_backward(v, table)
        return
    rows, padded = v.executed(blocks["BLOCK_R"]), up(inner, blocks["BLOCK_F"])
    products = 10 * rows * padded * blocks["BLOCK_N"]
    yield KernelCost("fused_input_grad", products, useful, element * latent * 3 + weights, 2 * rows * padded)
    blocks = _row(v, table, "fused_weight_grad").blocks
    rows, padded = v.executed(blocks["BLOCK_R"]), up(inner, blocks["BLOCK_F"])
    partials = 4 * blocks["SPLITS"] * 3 * inner * width
    products = 12 * rows * padded * blocks["BLOCK_N"]
    yield KernelCost(
        "fused_weight_grad", products, useful, element * latent * 2 + weights + partials, 2 * rows * padded
    )


def _long_backward(v: View, table: tuple[LaunchRow, ...]) -> Iterator[KernelCost]:
    inner, width, element = aligned(v.inner), v.features, v.element
    blocks = _row(v, table, "hidden_backward").blocks
    rows, padded = v.executed(blocks["BLOCK_R"]), up(inner, blocks["BLOCK_F"])
    weights = element * inner * (2 * aligned(width) + width)
    yield KernelCost(
        "hidden_backward", 6 * rows * padded * up(width, blocks["BLOCK_N"]), 2 * v.count * v.inner * width,
        element * v.count * (2 * width + 3 * inner) + weights, 2 * rows * padded,
    )  # fmt: skip
    blocks = _row(v, table, "residual_gemm").blocks
    yield _gemm("residual_gemm", v, blocks, 2 * inner, element * 2 * inner * aligned(width), 0, False)
    blocks = _row(v, table, "weight_grad").blocks
    for outputs in (2 * inner, inner):
        tile = up(outputs, blocks["BLOCK_P"]) * up(width, blocks["BLOCK_N"])
        yield KernelCost(
            "weight_grad", 2 * v.executed(blocks["BLOCK_R"]) * tile, 2 * v.count * outputs * width,
            element * v.count * (outputs + width) + 4 * blocks["SPLITS"] * outputs * width, 0,
        )  # fmt: skip


def _row(v: View, table: tuple[LaunchRow, ...], kernel: str) -> LaunchRow:
    return row_for(table, kernel, 8 * v.element, v.features, v.families)


def _rstd(v: View, written: bool) -> int:
    return 4 * v.count * written
