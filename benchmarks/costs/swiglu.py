"""FLOPs, bytes and special functions of the row kernels in `rtm_kernels.ops.swiglu`, launch by launch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from benchmarks.costs import KernelCost, row_for, up
from rtm_kernels.errors import InputError
from rtm_kernels.ops.swiglu.launch import VIEWS
from rtm_kernels.ops.swiglu.weights import aligned

HOPPER = ("hopper", "portable")


@dataclass(frozen=True)
class View:
    """Rows that a half layer is applied to: `batch` times `rows` rows of `features`, with inner width `inner`.

    `axis` is the axis that the features lie along, `element` the size of an element in bytes, `families` whose launch
    rows are taken.
    """

    batch: int
    rows: int
    features: int
    inner: int = 0
    terms: int = 0
    axis: str = "hidden"
    element: int = 2
    families: tuple[str, ...] = HOPPER

    @property
    def count(self) -> int:
        """Rows in all."""
        return self.batch * self.rows

    def executed(self, block: int) -> int:
        """Rows in all, with those that tiles of `block` rows add."""
        return self.batch * up(self.rows, block)


def forward(view: View, norm_features: bool = True) -> Iterator[KernelCost]:
    """The launches of `injected` and `swiglu`; with `norm_features` the rows are normalised over their features."""
    v, element = view, view.element
    inner, width = aligned(v.inner), v.features
    try:
        blocks = _blocks(v, "fused")
    except InputError:
        yield from inject(v)
        yield from _long_forward(v, norm_features)
        return
    rows, padded = v.executed(blocks["BLOCK_R"]), up(inner, blocks["BLOCK_F"])
    yield KernelCost(
        "fused", 6 * rows * padded * blocks["BLOCK_N"], 6 * v.count * v.inner * width,
        element * (v.count * width * (2 + v.terms) + inner * (2 * aligned(width) + width)) + _rstd(v, norm_features),
        2 * rows * padded + 2 * rows * norm_features,
    )  # fmt: skip


def _long_forward(v: View, norm_features: bool) -> Iterator[KernelCost]:
    inner, width, element = aligned(v.inner), v.features, v.element
    blocks = _blocks(v, "gate_up")
    rows, padded = v.executed(blocks["BLOCK_R"]), up(inner, blocks["BLOCK_F"])
    yield KernelCost(
        "gate_up", 4 * rows * padded * up(width, blocks["BLOCK_N"]), 4 * v.count * v.inner * width,
        element * (v.count * (width + inner) + 2 * inner * aligned(width)), 2 * rows * padded,
    )  # fmt: skip
    yield from gemm(v, inner, width * inner, normalised=norm_features)


def gemm(v: View, k: int, weight: int, residual: bool = True, normalised: bool = False) -> Iterator[KernelCost]:
    """The launches of `gemm` over K = `k` with a weight of that many elements."""
    inside = normalised
    try:
        blocks = _blocks(v, "gemm_norm" if inside else "gemm")
    except InputError:
        inside, blocks = False, _blocks(v, "gemm")
    rows = v.executed(blocks["BLOCK_R"])
    yield KernelCost(
        "gemm_norm" if inside else "gemm",
        2 * rows * up(v.features, blocks["BLOCK_N"]) * up(k, blocks["BLOCK_K"]), 2 * v.count * v.features * k,
        v.element * (v.count * (k + v.features * (1 + residual)) + weight) + _rstd(v, inside), 2 * rows * inside,
    )  # fmt: skip
    if normalised and not inside:
        yield normalise(v)


def inject(v: View) -> Iterator[KernelCost]:
    """The launch of `injected`, if there is an injection."""
    if v.terms:
        yield KernelCost("inject", 0, 0, v.element * v.count * v.features * (2 + v.terms), 0)


def normalise(view: View) -> KernelCost:
    """The launch of `normalise`: rows are read, normalised over their features and written."""
    rows = view.executed(_blocks(view, "norm")["BLOCK_R"])
    size = 2 * view.element * view.count * view.features  # the second reading is from the cache
    return KernelCost("norm", 0, 0, size + _rstd(view, True), 2 * rows)


def norm_backward(view: View) -> KernelCost:
    """The launch of `norm_backward`: dy and y are read, dr is written."""
    return KernelCost("norm_backward", 0, 0, 3 * view.element * view.count * view.features + _rstd(view, True), 0)


def backward(view: View) -> Iterator[KernelCost]:
    """The launches of `injected`, `swiglu_input_grad` and `swiglu_weight_grads`, for the rows of one call."""
    v, element = view, view.element
    inner, width = aligned(v.inner), v.features
    latent, useful = v.count * width, 6 * v.count * v.inner * width
    weights = element * inner * (2 * aligned(width) + width)
    yield from inject(v)
    try:
        blocks = _blocks(v, "fused_input_grad")
    except InputError:
        yield from _long_backward(v)
        return
    rows, padded = v.executed(blocks["BLOCK_R"]), up(inner, blocks["BLOCK_F"])
    products, moved = 10 * rows * padded * blocks["BLOCK_N"], 3 * latent + 3 * v.count * inner
    yield KernelCost("fused_input_grad", products, useful, element * moved + weights, 2 * rows * padded)
    for outputs in (2 * inner, inner):
        yield weight_grad(v, outputs)


def _long_backward(v: View) -> Iterator[KernelCost]:
    inner, width, element = aligned(v.inner), v.features, v.element
    blocks = _blocks(v, "hidden_backward")
    rows, padded = v.executed(blocks["BLOCK_R"]), up(inner, blocks["BLOCK_F"])
    weights = element * inner * (2 * aligned(width) + width)
    yield KernelCost(
        "hidden_backward", 6 * rows * padded * up(width, blocks["BLOCK_N"]), 2 * v.count * v.inner * width,
        element * v.count * (2 * width + 3 * inner) + weights, 2 * rows * padded,
    )  # fmt: skip
    yield from gemm(v, 2 * inner, 2 * inner * aligned(width))
    for outputs in (2 * inner, inner):
        yield weight_grad(v, outputs)


def weight_grad(v: View, outputs: int) -> KernelCost:
    """The launch of `weight_grad` for a weight [outputs, features]."""
    blocks = _blocks(v, "weight_grad")
    tile = up(outputs, blocks["BLOCK_P"]) * up(v.features, blocks["BLOCK_N"])
    moved = v.element * v.count * (outputs + v.features) + 4 * blocks["SPLITS"] * outputs * aligned(v.features)
    useful = 2 * v.count * outputs * v.features
    return KernelCost("weight_grad", 2 * v.executed(blocks["BLOCK_R"]) * tile, useful, moved, 0)


def _blocks(v: View, kernel: str) -> Mapping[str, int]:
    return row_for(VIEWS[v.axis], kernel, 8 * v.element, v.features, v.families).blocks


def _rstd(v: View, written: bool) -> int:
    return 4 * v.count * written
